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

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.layers import ffn
from moe_jax.model import fingerprint
from prune.plans import compose, file
from prune.plans.checks import (
    check_groups,
    check_sizes,
)
from prune.plans.layer import LayerPlan
from prune.plans.masks import matrix, zero_share


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

    def check(self, cfg: Config, params: Params) -> None:
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
        if fingerprint.differs(self.model, params, cfg, 'this plan'):
            raise ValueError(
                'this plan was made for other weights of the same shape '
                f'({fingerprint.reason(self.model, params, cfg)}). Make a new plan, or waive the '
                "check with dataclasses.replace(plan, model='')"
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
        """The plan that does what this one and then `second` do, made for this one's outcome.

        One of the two may change experts and routers; the other must be masks alone. Masks go
        along with the experts that a later plan keeps (`prune.plans.compose`). Raises ValueError
        for plans that do not follow one another, where both change experts, and for masks of
        experts that are merged later: a mean of masked experts is not zero where one of them is.
        """
        self._check_followed_by(second)
        layers = {i: compose.joined(i, layer, second.layers[i], self.width, self.expert_hidden)
                  for i, layer in self.layers.items()}
        named = {f'{second.method}.{key}': value for key, value in second.options.items()}
        return dataclasses.replace(
            self, method=f'{self.method}+{second.method}', layers=layers,
            options={**self.options, **named}, clamp=self.clamp or second.clamp)

    def _check_followed_by(self, second: Self) -> None:
        after = {i: layer.after for i, layer in self.layers.items()}
        before = {i: n for i, n in enumerate(second.experts) if n}
        sizes = [(plan.width, plan.expert_hidden) for plan in (self, second)]
        if after != before or sizes[0] != sizes[1]:
            raise ValueError(
                f'the first plan leaves {list(after.values())} experts in layers {list(after)} '
                f'with (width, expert_hidden)={sizes[0]}; the second is for '
                f'{list(before.values())} in {list(before)} with {sizes[1]}. Make it for the '
                'outcome of the first')
        same = all(layer.masks_only for layer in self.layers.values())
        if same and self.model and second.model and not fingerprint.same_routers(
                self.model, second.model):
            raise ValueError('the two plans are for different models (their routers differ); make '
                             'the second for the outcome of the first')

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one npz file (no pickle): arrays, and a JSON header; visible only when whole."""
        fields = {name: getattr(self, name) for name in file.FIELDS}
        return file.write(path, self.layers, fields | {'options': dict(self.options)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The plan written by `save`, checked again; ValueError names a file that is not one."""
        layers, fields = file.read(path)
        try:
            return cls(layers=layers, **fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: not a plan this version can read: {error}') from error
