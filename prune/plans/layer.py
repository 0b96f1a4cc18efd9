"""The plan of one layer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import CLOSED
from prune.plans.arrays import ARRAYS, MATRICES, check_mix, check_perms, frozen
from prune.plans.masks import LEAVES


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerPlan:
    """The surgery of one MoE layer.

    mix [G, E] float32: new expert g is sum_e mix[g, e] * expert e; rows sum to one, so a one-hot
      row keeps an expert.
    perms [E, F] int, optional: before mixing, hidden unit f of expert e is its old unit
      perms[e, f].
    router [R, E] float32: new router row r is sum_e router[r, e] * row e, plus router_shift [R, D]
      if given.
    fresh: seed of a random router, instead of `router`.
    alias [R] int, optional: the new expert that router row r uses; without it R = G. G + j stands
      for constant j, moe_jax.config.CLOSED for a row that counts in the softmax and is never
      chosen.
    constants [J, D] float32, optional: vectors that take the place of experts.
    rank: if not 0, every merged matrix is projected on the first `rank` left singular directions of
      its members' matrices side by side (`prune.similarity.subspace`).
    masks: of 'gate', 'up', 'down': which weights of the experts AFTER mixing stay, a packed uint8
      [G, ceil(in * out / 8)] each (`prune.plans.masks`); the rest become exactly zero.
    weights: of masked matrices, float32 [G, in, out]: values in place of those that mixing gives.
    notes: diagnostics for reports (arrays, strings, numbers); nothing is computed from them.

    A layer with masks alone has mix [E, E] one and neither router nor fresh: experts, router rows,
    alias and constants stay as they are (`masks_only`).

    Raises ValueError for wrong shapes, values that are not finite, and ids out of range.
    """

    mix: np.ndarray
    perms: np.ndarray | None = None
    router: np.ndarray | None = None
    router_shift: np.ndarray | None = None
    fresh: int | None = None
    alias: np.ndarray | None = None
    constants: np.ndarray | None = None
    rank: int = 0
    masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, frozen(name, value))
        for name in MATRICES:
            parts = {leaf: frozen(name, part) for leaf, part in getattr(self, name).items()}
            object.__setattr__(self, name, parts)
        check_mix(self.mix)
        check_masks(self)
        if self.perms is not None:
            check_perms(self.perms, self.before)
        check_router(self)
        check_alias(self)

    @property
    def before(self) -> int:
        """E, experts the layer has."""
        return self.mix.shape[1]

    @property
    def after(self) -> int:
        """G, experts the layer will have."""
        return self.mix.shape[0]

    @property
    def masks_only(self) -> bool:
        """Whether experts and router stay, and some weights of experts become zero."""
        return self.router is None and self.fresh is None

    @property
    def rows(self) -> int:
        """R, rows the router will have (with `masks_only`: at least)."""
        return self.after if self.alias is None else len(self.alias)


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
