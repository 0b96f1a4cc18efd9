"""What is asked of a plan of masks, checked before anything runs.

E experts, D model width, F expert hidden width.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args

import numpy as np

from moe_jax.base.checks import nearest, number
from moe_jax.base.tree import Params, host
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.layers import ffn
from prune.inputs import statistics
from prune.inputs.discovery import find
from prune.inputs.method import Method, Scope
from prune.inputs.options import checked_options, divided
from prune.inputs.request import Call
from prune.plans.masks import LEAVES, matrix
from prune.weights.cut import WITHIN, per_pattern
from prune.weights.methods import WEIGHT_METHODS
from prune.weights.stack import TRAFFIC, Stack, by_expert
from prune.weights.zeros import Pattern, Zeros

SPARSITY = 0.5
WHAT = 'method for weights'  # in messages


@dataclasses.dataclass(frozen=True)
class WeightRequest:
    """A criterion and its options, how much goes, and from which leaves (the parts of its call)."""

    call: Call
    sparsity: float
    scope: Scope
    pattern: Pattern | None
    leaves: tuple[str, ...]

    def check_statistics(self, stats: Stats | None, cfg: Config) -> None:
        """Raise ValueError for statistics that are missing, of other shapes, or not finite."""
        name, group, needs = self.call.name, self.call.group, self.call.needs
        if not needs:
            if group is not None:
                raise ValueError(f'group={group!r}: {name!r} reads no statistics')
            return
        shared = [i for i in cfg.moe_layers if cfg.alias(i) is not None]
        if shared and any(need.startswith('grad_') for need in needs):
            raise ValueError(f'{name}: reads gradients, which moe_jax.observe does not take '
                             f'where router rows share experts or stand for constants (layers '
                             f'{shared}); choose another method, such as \'wanda\'')
        if stats is None:
            observe = self.call.observe_options()
            how = ', '.join(f'{key}={value!r}' for key, value in observe.items())
            raise ValueError(
                f'method {name!r} needs the statistics {list(needs)}; see '
                f'moe_jax.observe{f", with {how}" if how else ""}')
        statistics.check_groups(stats, cfg, group)
        for i in cfg.moe_layers:
            self.statistics(stats, cfg, i)

    def statistics(self, stats: Stats | None, cfg: Config, layer: int) -> dict[str, np.ndarray]:
        """The statistics of one layer's experts, [E, ...] (`Stack.stats`)."""
        if not self.call.needs:
            return {}
        assert stats is not None  # `check_statistics` has seen to it
        sums = self._of_experts(stats, cfg, layer, self.call.needs)
        for name in (n for n in sums if n.startswith('grad_')):
            shape = matrix(name.partition('/')[2], cfg.width, cfg.expert_hidden)
            if sums[name].shape != (cfg.experts[layer], *shape):
                raise ValueError(f'statistic {name!r} of layer {layer} has shape '
                                 f'{sums[name].shape}, not {(cfg.experts[layer], *shape)}; observe '
                                 'this model')
        return sums

    def traffic(self, stats: Stats, cfg: Config, layer: int) -> np.ndarray:
        """Tokens that each expert of a layer was evaluated for, [E]."""
        return self._of_experts(stats, cfg, layer, (TRAFFIC,))['evaluated']

    def stacks(self, stats: Stats | None, params: Params, cfg: Config, layer: int
               ) -> Iterator[Stack]:
        """The matrices of one layer, one after the other."""
        sums = self.statistics(stats, cfg, layer)
        experts = params[f'layer_{layer}']['moe']['experts']
        for leaf in self.leaves:
            yield Stack(layer, leaf, host(experts[leaf]).astype(np.float32), sums)

    def scores(self, stack: Stack) -> np.ndarray:
        """float32 [E, in, out]; ValueError where they cannot be compared."""
        rank = self.call.method.scores
        assert rank is not None  # the form of the method
        scores = rank(stack, **self.call.options)
        if not np.isfinite(scores).all():
            raise ValueError(f'scores of layer {stack.layer}, {stack.leaf}, are not finite; look '
                             'for NaN in the model')
        return scores

    def cut(self, scores: np.ndarray) -> np.ndarray:
        """The mask [E, in, out] of one matrix, where no other decides with it."""
        if self.pattern is not None:
            return per_pattern(scores, self.pattern)
        return WITHIN[self.scope](scores, self.sparsity)

    def record(self) -> dict[str, Any]:
        """Every option with the value it had, for a plan's record."""
        pattern = None if self.pattern is None else '{}:{}'.format(*self.pattern)
        return self.call.record() | {
            'sparsity': self.sparsity, 'scope': self.scope, 'pattern': pattern,
            'leaves': ' '.join(self.leaves), 'group': self.call.group}

    def _of_experts(self, stats: Stats, cfg: Config, layer: int, names: Sequence[str]
                    ) -> dict[str, np.ndarray]:
        return by_expert(statistics.fetch_layer(
            self.call.name, stats, cfg, layer, self.call.group, names), cfg, layer)


def weight_request(
    name: str, cfg: Config, *, group: str | None = None, **options: Any
) -> WeightRequest:
    """The keywords of `prune.sparsify` as a request.

    Raises ValueError for an unknown method, option, scope or leaf (with the nearest name), a
    sparsity out of range, a pattern that does not fit, and a dense model.
    """
    method = find(WEIGHT_METHODS, name, WHAT)
    if not cfg.moe_layers:
        raise ValueError('no layer of this model has experts; there is nothing to sparsify')
    zeros, own_options = divided(options, Zeros)
    own = checked_options(name, method.function, own_options)
    scope = _scope(method, zeros.scope, zeros.pattern)
    leaves = _leaves(name, cfg, zeros.leaves)
    pattern = None if zeros.pattern is None else _pattern(name, cfg, zeros.pattern, leaves)
    return WeightRequest(Call(method, own, group, leaves), _sparsity(name, zeros.sparsity, pattern),
                         scope, pattern, leaves)


def _scope(method: Method, scope: Scope | None, pattern: Any) -> Scope:
    name = method.name
    if scope is not None and scope not in (known := get_args(Scope)):
        raise ValueError(f'{name}: scope={scope!r}; {nearest(str(scope), known)}')
    if pattern is not None and scope not in (None, 'output'):
        raise ValueError(f'{name}: a pattern compares the inputs of each output in small groups; '
                         f'leave out scope={scope!r}')
    if method.form == 'solve' and scope not in (None, 'output'):
        raise ValueError(f'{name}: scope={scope!r}: it prunes every output by itself; leave the '
                         "scope out, or choose a method that ranks weights, such as 'wanda'")
    assert method.scope is not None  # of every method for weights
    return 'output' if pattern is not None else scope or method.scope


def _leaves(name: str, cfg: Config, leaves: Collection[str] | None) -> tuple[str, ...]:
    known = [leaf for leaf in LEAVES if leaf in ffn.shapes(cfg, cfg.expert_hidden)]
    if leaves is None:
        return tuple(known)
    if isinstance(leaves, str) or not leaves:
        raise ValueError(f'{name}: leaves={leaves!r}: give a list of {", ".join(known)}')
    for leaf in leaves:
        if leaf not in known:
            raise ValueError(f'{name}: leaf {leaf!r}; {nearest(str(leaf), known)}')
    return tuple(leaf for leaf in known if leaf in leaves)


def _pattern(name: str, cfg: Config, pattern: Any, leaves: Collection[str]) -> Pattern:
    n, m = pattern if isinstance(pattern, tuple | list) and len(pattern) == 2 else (0, 0)
    if not (isinstance(n, int) and isinstance(m, int) and 1 <= n < m):
        raise ValueError(f'{name}: pattern={pattern!r}: give (n, m), n weights that stay of m '
                         'consecutive inputs, 1 <= n < m, such as (2, 4)')
    for leaf in leaves:
        if (inputs := matrix(leaf, cfg.width, cfg.expert_hidden)[0]) % m:
            raise ValueError(f'{name}: pattern={n}:{m}: {leaf} has {inputs} inputs, which do not '
                             f'divide by {m}; choose another pattern, or leave the leaf out')
    return n, m


def _sparsity(name: str, sparsity: float | None, pattern: Pattern | None) -> float:
    if sparsity is not None:
        number(f'{name}: sparsity', sparsity, 0, 1, note='the share of weights to set to zero')
    if pattern is None:
        return SPARSITY if sparsity is None else float(sparsity)
    share = 1 - pattern[0] / pattern[1]
    if sparsity is not None and abs(sparsity - share) > 1e-9:
        raise ValueError(f'{name}: pattern={pattern[0]}:{pattern[1]} sets a share of {share:g} to '
                         f'zero, not sparsity={sparsity:g}; give one of them')
    return share
