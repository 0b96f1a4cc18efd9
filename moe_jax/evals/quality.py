"""The distance of a smaller model from its original, without any label.

Both models read the same text; p is the next-token distribution of the original, q that of the
smaller one. B rows, T tokens, D width, V vocabulary; a row is what an interval resamples.

    lost         -log q - (-log p) of the actual next token, nats
    kl           KL(p | q) = sum p (log p - log q), nats
    acceptance   sum min(p, q) = 1 - total variation: the share of tokens that speculative sampling
                 with q as the draft would accept (Leviathan et al. 2023), ESAP in EvoESAP
    agreement    1 if both models give the same token the highest probability
    nats, nats_small   -log p and -log q of the token that follows; their exponential is perplexity
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

from moe_jax.base import processes, sharding
from moe_jax.base.checks import nearest
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.inference.score import BLOCK, by_blocks
from moe_jax.layers.positions import has_past
from moe_jax.model.decoder import hidden, unembed
from moe_jax.model.inputs import each, rows_of, weighed

METRICS = ('nats', 'nats_small', 'lost', 'kl', 'acceptance', 'agreement')
RESAMPLES = 2000
Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Quality:
    """The result of `compare`: per data group, 'tokens' and the sums of METRICS, float64 [rows].

    active: experts a token uses on average in each MoE layer of the smaller model.
    """

    groups: Mapping[str, Rows]
    active: tuple[float, ...] = ()

    def mean(self, metric: str, group: str | None = None) -> float:
        """Mean over tokens, of one group or of all."""
        rows = self._rows(metric, group)
        return float(rows[metric].sum() / rows['tokens'].sum())

    def interval(self, metric: str, group: str | None = None, level: float = 0.95, seed: int = 0
                 ) -> tuple[float, float]:
        """Percentile bootstrap interval of `mean` over rows; (nan, nan) for fewer than two rows."""
        rows = self._rows(metric, group)
        if len(rows['tokens']) < 2:
            return math.nan, math.nan
        from scipy import stats  # it took two fifths of the import time of this library

        interval = stats.bootstrap(
            (rows[metric], rows['tokens']), _ratio, paired=True, vectorized=True,
            method='percentile', confidence_level=level, n_resamples=RESAMPLES, batch=200,
            rng=np.random.default_rng(seed)).confidence_interval
        return float(interval.low), float(interval.high)

    def summary(self, group: str | None = None) -> dict[str, float]:
        """All means, and both perplexities."""
        means = {metric: self.mean(metric, group) for metric in METRICS}
        return {'tokens': float(self._rows('tokens', group)['tokens'].sum()), **means,
                'perplexity': _exp(means['nats']), 'perplexity_small': _exp(means['nats_small'])}

    def table(self) -> Table:
        """A table with a line per data group; ppl is the original's perplexity."""
        out = Table('group', 'tokens', 'ppl', 'smaller', 'nats lost [95%]', 'KL', 'accepted',
                    box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for group in [*sorted(self.groups), *([None] if len(self.groups) > 1 else [])]:
            summary = self.summary(group)
            low, high = self.interval('lost', group)
            out.add_row(group or 'all', f'{summary["tokens"]:,.0f}',
                        *(f'{summary[name]:,.{0 if summary[name] >= 1000 else 2}f}'
                          for name in ('perplexity', 'perplexity_small')),
                        f'{summary["lost"]:.3f} [{low:.3f}, {high:.3f}]',
                        *(f'{summary[name]:.3f}' for name in ('kl', 'acceptance')))
        return out

    def _rows(self, metric: str, group: str | None) -> Rows:
        if metric != 'tokens' and metric not in METRICS:
            raise ValueError(f'no metric {metric!r}; {nearest(metric, METRICS)}')
        if group is not None and group not in self.groups:
            raise ValueError(f'no group {group!r}; {nearest(group, list(self.groups))}')
        parts = [self.groups[g] for g in (sorted(self.groups) if group is None else [group])]
        return {name: np.concatenate([part[name] for part in parts]) for name in (metric, 'tokens')}


def compare(
    cfg: Config,
    params: Params,
    small_cfg: Config,
    small: Params,
    batches: Iterable[Mapping[str, Any]],
) -> Quality:
    """The distance of a smaller model (small_cfg, small) from its original on `batches`.

    Each batch: 'tokens' int [B, T], 'mask' bool or 'segments' int [B, T] (False, 0: padding),
    optional 'group' str and 'weights' [B, T] (0 where a token is not to be predicted, such as a
    prompt). Tokens count if one precedes them in their segment. Raises ValueError if the
    models have different vocabularies, and if no token is to be predicted.
    """
    _check_vocabulary(cfg, small_cfg)
    return _gathered(small_cfg, (
        (group, *_distance(cfg, params, small_cfg, small, _hidden(cfg)(params, *rows[:2])[0], rows))
        for group, rows in _read(cfg, batches)))


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The original's outputs on some batches, for comparison with many smaller models.

    It keeps the inputs of the original's head, [B, T, D] of each batch, on the host: comparing then
    costs one pass of the smaller model and two heads.
    """

    cfg: Config
    params: Params
    rows: tuple[tuple[str, tuple[np.ndarray, ...]], ...]
    hidden: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, cfg: Config, params: Params, batches: Iterable[Mapping[str, Any]]) -> 'Reference':
        """Run the original once; batches as for `compare`."""
        rows = tuple(_read(cfg, batches))
        return cls(cfg, params, rows,
                   tuple(processes.fetch(_hidden(cfg)(params, *r[:2])[0]) for _, r in rows))

    def compare(self, small_cfg: Config, small: Params) -> Quality:
        """As `moe_jax.compare`, with this original."""
        _check_vocabulary(self.cfg, small_cfg)
        return _gathered(small_cfg, (
            (group, *_distance(self.cfg, self.params, small_cfg, small, x, rows))
            for (group, rows), x in zip(self.rows, self.hidden, strict=True)))


def _exp(nats: float) -> float:
    """Perplexity; infinite if it exceeds the range of a float."""
    return math.exp(nats) if nats < 709 else math.inf


def _ratio(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    total = weights.sum(axis=axis)
    return values.sum(axis=axis) / np.where(total > 0, total, 1.0)


def _read(cfg: Config, batches: Iterable[Mapping[str, Any]]
          ) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
    """(group, (tokens, segments, weight of each predicted token [B, T-1])) of what has any."""
    for batch in each(batches, 'compare'):
        tokens, segments = rows_of(cfg, batch, 'compare')
        weights = weighed(batch.get('weights'), segments, 'compare')[:, 1:] * has_past(segments)
        if weights.any():
            yield batch.get('group') or 'all', (tokens, segments, weights)


def _gathered(small_cfg: Config, found: Iterable[tuple[str, Any, Any]]) -> Quality:
    """Sums by row of all batches; rows where nothing is predicted are left out."""
    groups: dict[str, list[Rows]] = {}
    active, seen = np.zeros(len(small_cfg.moe_layers)), 0.0
    for group, rows, used in found:
        rows = {name: np.asarray(value, np.float64) for name, value in rows.items()}
        kept = rows['tokens'] > 0
        groups.setdefault(group, []).append({name: value[kept] for name, value in rows.items()})
        experts, tokens = (np.asarray(value, np.float64) for value in used)
        active, seen = active + experts * tokens, seen + tokens
    if not groups:
        raise ValueError('compare: nothing to predict in the batches (empty, only padding, or '
                         'weights of 0)')
    joined = {group: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
              for group, parts in groups.items()}
    if bad := [g for g, rows in joined.items() if not np.isfinite(rows['lost']).all()]:
        raise ValueError(f'compare: log-probabilities of group {bad[0]!r} are not finite; look for '
                         'NaN and infinity in the weights')
    return Quality(joined, tuple((active / seen).tolist()))


def _check_vocabulary(cfg: Config, small_cfg: Config) -> None:
    if cfg.vocab != small_cfg.vocab:
        raise ValueError(f'compare: vocabularies of {cfg.vocab} and {small_cfg.vocab} tokens; the '
                         'two models must share one')


def _distance(cfg, params, small_cfg, small, x, rows):
    """Sums by row, and (experts used, tokens seen), given the original's hidden state x."""
    # Both models use the same kind of program; otherwise a model has a distance to itself.
    y, active = _hidden(small_cfg)(small, *rows[:2])
    sums, tokens = _compared(cfg, small_cfg)(params, small, x, y, *rows)
    return sums, (active, tokens)


@lru_cache(maxsize=64)
def _hidden(cfg: Config):
    """(parameters, tokens, segments) -> what the head reads [B, T, D], experts used; jitted."""

    @sharding.jit
    def run(params, tokens, segments):
        x, out = hidden(cfg, params, tokens, segments)
        return x, sharding.replicate(out['active'])

    return run


@lru_cache(maxsize=64)
def _compared(cfg: Config, small_cfg: Config):
    """(original, smaller, what their heads read [B, T, D], tokens, segments, weights [B, T-1]) ->
    sums by row, tokens seen; jitted."""

    @sharding.jit
    def run(params, small, x, y, tokens, segments, weights):
        targets = jnp.roll(tokens, -1, axis=1)  # slicing x and y would copy them

        def block(x, y, wanted):
            return _distances(unembed(cfg, params, x), unembed(small_cfg, small, y), wanted)

        distances = by_blocks(block, (x, y, targets), max(1, BLOCK // (2 * cfg.vocab)))
        sums = {name: (value[:, :-1] * weights).sum(axis=1) for name, value in distances.items()}
        valid = (segments > 0).sum()
        sums |= {'tokens': weights.sum(axis=1)}
        return sharding.replicate((sums, valid))

    return run


def _distances(a: jax.Array, b: jax.Array, wanted: jax.Array) -> dict[str, jax.Array]:
    """METRICS of logits a (original) and b [M, V] and the tokens that follow [M]."""
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    nats, nats_small = (-jnp.take_along_axis(z, wanted[:, None], axis=-1)[:, 0] for z in (p, q))
    return {
        'nats': nats, 'nats_small': nats_small, 'lost': nats_small - nats,
        'kl': (jnp.exp(p) * (p - q)).sum(axis=-1),
        'acceptance': jnp.exp(jnp.minimum(p, q)).sum(axis=-1),
        'agreement': (jnp.argmax(a, axis=-1) == jnp.argmax(b, axis=-1)).astype(jnp.float32),
    }
