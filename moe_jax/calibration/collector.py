"""The pass over one batch and the statistics it leaves, for `observe` and `layerwise`.

B rows, T tokens, N = B*T, C tokens picked for the reservoir, P parts of the batch
(`sharding.row_parts`).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from moe_jax.base import processes
from moe_jax.base.tree import Params
from moe_jax.calibration import reservoir as sample
from moe_jax.calibration.block_pass import embed, layer_config, step, watched
from moe_jax.calibration.expert_gradients import gradient_sums
from moe_jax.calibration.expert_sums import ExpertSums, joined
from moe_jax.calibration.table import WRAP, Sums, merge, merge_layers, statistic, tally
from moe_jax.config import Config

FLUSH = 16  # batches whose sums are added on the device before they go to the host
NOWHERE = np.iinfo(np.int32).max
Layers = dict[int, Sums]
Collect = Callable[..., tuple[dict[int, Any], dict[int, Any]]]


class Options(NamedTuple):
    """The options of `observe`: the tokens of the reservoir, and what else to collect."""

    reservoir: int = 0
    outputs: sample.Outputs = 'gram'
    dense: bool = False
    grams: bool = False
    gradients: bool = False

    @property
    def observer(self) -> ExpertSums:
        """The observer that evaluates and sums the experts of a layer."""
        return ExpertSums(self.grams, self.dense)


class Batch(NamedTuple):
    """tokens, segments int32 [B, T] and the keys of their tokens, uint64 [B, T]."""

    tokens: np.ndarray
    segments: np.ndarray
    keys: np.ndarray

    @property
    def data(self) -> int:
        """The batch's share of a sum over tokens that names the data."""
        return int(self.keys[self.segments > 0].sum(dtype=np.uint64)) % WRAP


def model_pass(cfg: Config, options: Options, mesh: Mesh | None, params: Params) -> Collect:
    """(tokens, segments, pick [P, C]) -> sums and per-token arrays, by layer."""
    ones = [layer_config(cfg, i) for i in range(cfg.layers)]

    def run(tokens, segments, pick):
        x, sums, rows = embed(cfg, params, tokens, segments), {}, {}
        for i, one in enumerate(ones):
            layer = params[f'layer_{i}']
            if cfg.experts[i]:
                run = watched(one, options.observer, mesh)
                x, sums[i], rows[i] = run(layer, x, tokens, segments, pick)
            else:
                x = step(one, mesh)(layer, x, tokens, segments)
        if options.gradients:
            for i, gradients in gradient_sums(cfg, params, tokens, segments).items():
                sums[i] |= gradients
        return sums, rows

    return run


def collected(
    options: Options, items: Iterable[tuple[str, Batch, Callable[..., Any]]], parts: int = 1
) -> tuple[dict[str, Layers], str]:
    """{group: statistics} of (group, batch, run) items, and their data's name as in `Stats`.

    run: as `model_pass` gives it. Batches of padding alone are left out; ValueError if all are.
    """
    collector, groups = Collector(options, parts), {}
    name, count, data = '', 0, 0

    def settle() -> None:
        if count:
            part = collector.take()
            groups[name] = merge_layers(groups[name], part, options.reservoir) if (
                name in groups) else part

    for group, batch, run in items:
        if not batch.segments.any():
            continue
        if group != name or count == FLUSH:
            settle()
            name, count = group, 0
        collector.add(group, batch, run)
        count, data = count + 1, (data + batch.data) % WRAP
    if not count:
        raise ValueError('observe: no valid token in the batches (empty, or only padding)')
    settle()
    return groups, f'{data:016x}'


class Collector:
    """Runs batches through a pass and hands out their statistics, some batches at a time."""

    def __init__(self, options: Options, parts: int = 1) -> None:
        self.options, self.parts = options, parts
        self.smallest: dict[str, np.ndarray] = {}  # the reservoir's keys so far, by group
        self.sums: Any = None
        self.host: list[Layers] = []

    def add(self, group: str, batch: Batch, run: Callable[..., Any]) -> None:
        """Run one batch: `run(tokens, segments, pick)` as `model_pass` returns."""
        pick = self._pick(group, batch)
        sums, rows = run(batch.tokens, batch.segments, pick)
        self.sums = sums if self.sums is None else _added(self.sums, sums)
        self.host.append(_on_host(processes.fetch(rows), batch, pick))

    def take(self) -> Layers:
        """The statistics of the batches since the last call, in numpy."""
        layers = {i: _checked(i, sums) for i, sums in processes.fetch(self.sums).items()}
        for i, sums in layers.items():
            parts = [part[i] for part in self.host]
            sums['vocab'] = tally(np.concatenate([part.pop('vocab') for part in parts]))
            if parts[0]:
                total = parts[0]
                for part in parts[1:]:
                    total = merge(total, part, self.options.reservoir)
                best = np.argsort(total['sample_key'], kind='stable')[:self.options.reservoir]
                sums |= {name: value[best] for name, value in total.items()}
        self.sums, self.host = None, []
        return layers

    def _pick(self, group: str, batch: Batch) -> np.ndarray:
        """Flat places in each part of the batch that enter the reservoir, NOWHERE for none."""
        size = self.options.reservoir
        keys, valid = (a.reshape(self.parts, -1) for a in (batch.keys, batch.segments > 0))
        picks = np.full((self.parts, min(size, keys.shape[1])), NOWHERE, np.int32)
        if not size:
            return picks
        held = self.smallest.get(group, np.zeros(0, np.uint64))
        below = held[-1] if len(held) == size else np.uint64(2**64 - 1)
        for p in range(self.parts):
            places = sample.pick(keys[p], valid[p], size, below)
            picks[p, : len(places)] = places
        new = np.sort(np.concatenate([held, keys[valid]]))
        self.smallest[group] = new[:size]
        return picks


@jax.jit
def _added(a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
    return {i: joined(a[i], b[i]) for i in a}


def _on_host(rows: Mapping[int, Any], batch: Batch, pick: np.ndarray) -> Layers:
    """Each layer's part of the vocabulary tally and of the reservoir."""
    valid, layers = batch.segments.ravel() > 0, {}
    tokens = batch.tokens.ravel()[valid].astype(np.int64)
    taken = pick.ravel() != NOWHERE
    place = (pick + np.arange(len(pick))[:, None] * (len(valid) // len(pick))).ravel()[taken]
    for i, layer in rows.items():
        first = layer.pop('top1')[valid].astype(np.int64)
        layers[i] = {'vocab': np.stack([tokens, first, np.ones_like(first)], axis=1)}
        if pick.shape[1]:
            layers[i] |= {'sample_key': batch.keys.ravel()[place],
                         **{name: value[taken] for name, value in layer.items()}}
    return layers


def _checked(index: int, layer: Mapping[str, np.ndarray]) -> Sums:
    for name, value in layer.items():
        if not np.isfinite(value).all():
            raise ValueError(f'observe: {name} of layer_{index} is not finite; look for NaN and '
                             f'infinity in the weights up to layer_{index}/moe')
    return {
        name: np.asarray(value, np.int64 if statistic(name).kind == 'count' else np.float64)
        for name, value in layer.items()
    }


