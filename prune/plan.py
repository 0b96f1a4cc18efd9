"""What to do to each MoE layer, as arrays, before any weight is touched.

Letters: E experts before, G experts after, R router rows after (G, or E with an alias), J
constants, D model width, F expert hidden width.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from moe_jax import ffn
from moe_jax.config import Config
from moe_jax.fingerprint import fingerprint
from prune.masks import matrix, zero_share
from prune.plan_checks import (
    check_alias,
    check_groups,
    check_masks,
    check_mix,
    check_perms,
    check_router,
    check_sizes,
    frozen,
)

ARRAYS = ('mix', 'perms', 'router', 'router_shift', 'alias', 'constants')
MATRICES = ('masks', 'weights')  # by leaf


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
      its members' matrices side by side (`prune.subspace`).
    masks: of 'gate', 'up', 'down': which weights of the experts AFTER mixing stay, a packed uint8
      [G, ceil(in * out / 8)] each (`prune.masks`); the rest become exactly zero.
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One `LayerPlan` per MoE layer, and the model they were made for.

    `experts`, `width`, `expert_hidden` are the source config's; `model` is the `fingerprint` of its
    parameters ('' = do not check) and `data` what names the data of the statistics. clamp: layers
    may keep fewer experts than a token uses; those then use all they have.
    """

    method: str
    layers: Mapping[int, LayerPlan]
    experts: tuple[int, ...]
    width: int
    expert_hidden: int
    model: str = ''
    data: str = ''
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    clamp: bool = False

    def __post_init__(self) -> None:
        moe = tuple(i for i, count in enumerate(self.experts) if count)
        if tuple(sorted(self.layers)) != moe:
            raise ValueError(
                f'plan has layers {sorted(self.layers)}; its model has MoE layers {list(moe)}'
            )
        for i, layer in self.layers.items():
            check_sizes(f'plan layer {i}', layer, self.experts[i], self.width, self.expert_hidden)

    def check(self, cfg: Config, params: Mapping[str, Any]) -> None:
        """Refuse, with ValueError, a model that is not the one this plan was made for."""
        for name in ('experts', 'width', 'expert_hidden'):
            ours, theirs = getattr(self, name), getattr(cfg, name)
            if ours != theirs:
                raise ValueError(
                    f'this plan is for a model with {name}={ours}; this model has {theirs}. '
                    'Make a new plan for it'
                )
        check_groups(self.method, self.layers, cfg.groups)
        known = ffn.shapes(cfg, cfg.expert_hidden)
        for i, layer in self.layers.items():
            if extra := sorted(set(layer.masks) - set(known)):
                raise ValueError(f'layer {i}: this plan masks {extra}, and the experts of this '
                                 f'model have {sorted(known)}')
        if self.model and self.model != fingerprint(params, cfg):
            raise ValueError(
                'this plan was made for other weights of the same shape (the routers differ). Make '
                "a new plan, or waive the check with dataclasses.replace(plan, model='')"
            )

    def describe(self) -> str:
        """A table for people: experts before and after, and what was noted, layer by layer."""
        lines = [' '.join([self.method, *(f'{k}={v}' for k, v in sorted(self.options.items()))])]
        for i, layer in sorted(self.layers.items()):
            unused = np.asarray(layer.notes.get('zero_traffic', ())).tolist()
            lines.append(
                f'layer {i}: {self._changes(layer)}, without traffic: {unused or "none"}'
                + (f'; {layer.notes["gates"]}' if 'gates' in layer.notes else '')
            )
        return '\n'.join(lines)

    def _changes(self, layer: LayerPlan) -> str:
        zeros = [f'{leaf} {zero_share(bits, matrix(leaf, self.width, self.expert_hidden)):.2%}'
                 for leaf, bits in layer.masks.items()]
        share = f'zero weights {", ".join(zeros)}'
        if layer.masks_only:
            return f'{layer.after} experts, {share}'
        largest = int((layer.mix != 0).sum(axis=1).max())
        return (f'{layer.before} -> {layer.after} experts, {layer.rows} router rows, '
                f'at most {largest} merged into one' + (f', {share}' if zeros else ''))

    def then(self, second: Self) -> Self:
        """This plan and then `second`, made for its outcome, as one (`prune.compose`).

        One of them must be masks alone; ValueError says what cannot be joined.
        """
        from prune import compose

        return compose.then(self, second)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one npz file (no pickle): arrays, and a JSON header; visible only when whole."""
        from prune import plan_file

        return plan_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The plan written by `save`, checked again; ValueError names a file that is not one."""
        from prune import plan_file

        return plan_file.load(path)
