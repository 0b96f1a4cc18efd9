"""Whether the arrays of a plan make sense; every refusal says which one does not.

Letters: E experts before, G experts after, R router rows after, J constants, D model width.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from prune.plans.masks import matrix

if TYPE_CHECKING:
    from prune.plans.layer import LayerPlan


def check_groups(method: str, layers: Mapping[int, 'LayerPlan'], groups: int) -> None:
    """Refuse, with ValueError, a plan that carries experts from one router group into another."""
    for i, layer in layers.items():
        if groups == 1 or layer.fresh is not None or layer.masks_only:
            continue
        assert layer.router is not None  # where it is neither drawn nor left alone
        new, old = np.nonzero(layer.router)
        if layer.rows % groups or (
                new * groups // layer.rows != old * groups // layer.before).any():
            raise ValueError(
                f'layer {i}: this plan of {method!r} joins experts of different router groups, or '
                f'keeps unequally many of the {groups}, and the router would choose among others. '
                "Choose a method that keeps experts where they are: 'frequency', 'random'"
            )


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
