"""Whether the arrays of a plan make sense; every refusal says which one does not.

Letters: E experts before, G experts after, R router rows after, J constants, D model width.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_jax.config import CLOSED
from prune.masks import LEAVES, matrix

if TYPE_CHECKING:
    from prune.plan import LayerPlan

INTEGERS = ('perms', 'alias')


def check_groups(method: str, layers: Mapping[int, 'LayerPlan'], groups: int) -> None:
    """Refuse, with ValueError, a plan that carries experts from one router group into another."""
    for i, layer in layers.items():
        if groups == 1 or layer.fresh is not None or layer.masks_only:
            continue
        new, old = np.nonzero(layer.router)
        if layer.rows % groups or (
                new * groups // layer.rows != old * groups // layer.before).any():
            raise ValueError(
                f'layer {i}: this plan of {method!r} joins experts of different router groups, or '
                f'keeps unequally many of the {groups}, and the router would choose among others. '
                "Choose a method that keeps experts where they are: 'frequency', 'random'"
            )


def frozen(name: str, value: Any) -> np.ndarray:
    array = np.array(value)
    if name in INTEGERS:
        if array.dtype.kind not in 'iu':
            raise ValueError(f'plan {name}: ids must be integers, got {array.dtype}')
        array = array.astype(np.int32)
    elif name == 'masks':
        if array.dtype != np.uint8:
            raise ValueError(f'plan masks: packed bits must be uint8, got {array.dtype}')
    else:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f'plan {name}: has values that are not finite')
    array.setflags(write=False)
    return array


def check_mix(mix: np.ndarray) -> None:
    if mix.ndim != 2 or not 0 < mix.shape[0] <= mix.shape[1]:
        raise ValueError(f'plan mix: shape {mix.shape}, must be [G, E] with 1 <= G <= E')
    worst = int(np.argmax(np.abs(mix.sum(axis=1) - 1)))
    if abs(float(mix[worst].sum()) - 1) > 1e-4:
        raise ValueError(f'plan mix: row {worst} sums to {mix[worst].sum()}, every row must to 1')


def check_perms(perms: np.ndarray, experts: int) -> None:
    if perms.ndim != 2 or perms.shape[0] != experts:
        raise ValueError(f'plan perms: shape {perms.shape}, must be [E={experts}, F]')
    bad = np.flatnonzero((np.sort(perms, axis=1) != np.arange(perms.shape[1])).any(axis=1))
    if bad.size:
        raise ValueError(f'plan perms: row {bad[0]} is no permutation of 0..{perms.shape[1] - 1}')


def check_router(layer: 'LayerPlan') -> None:
    if layer.masks_only:
        changed = [name for name in ('perms', 'router_shift', 'alias', 'constants')
                   if getattr(layer, name) is not None]
        if (not layer.masks or changed or layer.rank
                or not np.array_equal(layer.mix, np.eye(layer.before))):
            raise ValueError('plan router: give either router [R, E] or a seed `fresh`; only a '
                             'plan of masks over unchanged experts has neither')
        return
    if layer.router is not None and layer.fresh is not None:
        raise ValueError('plan router: give either router [R, E] or a seed `fresh`, not both')
    if layer.router is not None and layer.router.shape != (layer.rows, layer.before):
        raise ValueError(
            f'plan router: shape {layer.router.shape}, must be [R={layer.rows}, E={layer.before}]'
        )
    shift = layer.router_shift
    if shift is not None and (layer.router is None or shift.shape[:-1] != (layer.rows,)):
        raise ValueError(
            f'plan router_shift: shape {shift.shape}, must be [R={layer.rows}, D] beside router'
        )


def check_masks(layer: 'LayerPlan') -> None:
    for name, part in ((n, p) for n in ('masks', 'weights') for p in getattr(layer, n).items()):
        leaf, array = part
        if leaf not in LEAVES:
            raise ValueError(f'plan {name}: {leaf!r} is no matrix of an expert; there are '
                             f'{", ".join(LEAVES)}')
        rank = 2 if name == 'masks' else 3
        if array.ndim != rank or len(array) != layer.after:
            raise ValueError(f'plan {name}: {leaf} has shape {array.shape}, must have {rank} axes, '
                             f'the first G={layer.after} experts')
    if extra := sorted(set(layer.weights) - set(layer.masks)):
        raise ValueError(f'plan weights: {extra} have values and no mask')


def _check_matrices(where: str, layer: 'LayerPlan', width: int, hidden: int) -> None:
    for leaf, packed in layer.masks.items():
        shape = matrix(leaf, width, hidden)
        size = math.prod(shape)
        if packed.shape[1] != -(-size // 8):
            raise ValueError(f'{where}: mask of {leaf} has {packed.shape[1]} bytes an expert, and '
                             f'{shape} weights take {-(-size // 8)}')
        if size % 8 and (packed[:, -1] & (0xFF >> size % 8)).any():
            raise ValueError(f'{where}: mask of {leaf} has bits behind its last weight')
        values = layer.weights.get(leaf)
        if values is not None and values.shape[1:] != shape:
            raise ValueError(f'{where}: weights of {leaf} have shape {values.shape}, not '
                             f'{(layer.after, *shape)}')


def check_sizes(where: str, layer: 'LayerPlan', experts: int, width: int, hidden: int) -> None:
    if layer.before != experts:
        raise ValueError(f'{where}: mix has {layer.before} columns, the layer {experts} experts')
    if layer.perms is not None and layer.perms.shape[1] != hidden:
        raise ValueError(f'{where}: perms of {layer.perms.shape[1]} hidden units, not F={hidden}')
    if (shift := layer.router_shift) is not None and shift.shape[1] != width:
        raise ValueError(f'{where}: router_shift of width {shift.shape[1]}, not D={width}')
    _check_matrices(where, layer, width, hidden)


def check_alias(layer: 'LayerPlan') -> None:
    """An alias names every expert and every constant, and constants have an alias."""
    constants = 0 if layer.constants is None else len(layer.constants)
    if layer.constants is not None and (layer.constants.ndim != 2 or layer.alias is None):
        raise ValueError(f'plan constants: shape {layer.constants.shape}, must be [J, D] beside an '
                         'alias that says which router rows they serve')
    if layer.alias is None:
        return
    if set(layer.alias.tolist()) - {CLOSED} != set(range(layer.after + constants)):
        raise ValueError(
            f'plan alias {layer.alias.tolist()} must use every expert 0..{layer.after - 1}, '
            f'then each of the {constants} constants, and no other'
        )
