"""Layer by layer: observe a layer on what the changed layers before it give, then change it.

One layer is on the device at a time; the residual stream of all batches waits on the host. It uses
the collector of `observe`, so that both give the same statistics where nothing is changed.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from moe_jax.base import processes
from moe_jax.base.tree import Params
from moe_jax.calibration import reservoir
from moe_jax.calibration.block_pass import embed, layer_config, step, watched
from moe_jax.calibration.collector import Batch, Options, collected
from moe_jax.calibration.observe import check, rows
from moe_jax.calibration.stats import Stats
from moe_jax.calibration.table import STATISTICS, WRAP, Sums
from moe_jax.config import Config
from moe_jax.model.fingerprint import fingerprint
from moe_jax.model.inputs import each
from moe_jax.routing.designs.top_k import top_k

# (layer index, its one-layer config, its parameters, its statistics) -> parameters, config
Compress = Callable[[int, Config, Params, Stats], tuple[Params, Config]]
Streams = list[np.ndarray]
# Too large to be kept for all layers: `compress` sees them, and what is returned lacks them.
GRAMS = tuple(name for name, about in STATISTICS.items() if about.option == 'grams')


def layerwise(
    cfg: Config,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    compress: Compress,
    *,
    targets: bool = False,
    progress: Callable[[int, int], None] | None = None,
    tokenizer: str = '',
    **options: Any,
) -> tuple[Params, Config, Stats]:
    """Change a model from its first layer to its last; returns params, config and what was seen.

    compress(i, cfg, layer, stats) gets MoE layer i as a model of one layer, the parameters of the
    whole block and its statistics (of layer 0), and returns both for the new layer. options: as for
    `moe_jax.observe`, but mesh and gradients; grams are for compress alone. targets: sample_cross
    and sample_square are of the original model's outputs instead of this prefix's, so that later
    layers make up for earlier ones (Lu et al. 2024, progressive pruning). progress(done, layers) is
    called after each layer.
    """
    chosen = Options(**options)
    cfg = cfg.replace(skip=None)
    check(cfg, chosen)
    if chosen.gradients:
        raise ValueError('layerwise: gradients need the whole model; use moe_jax.observe')
    items = [(raw.get('group') or 'all', batch) for raw in each(batches, 'layerwise')
             if (batch := rows(cfg, raw)) is not None]
    if not items:
        raise ValueError('observe: no valid token in the batches (empty, or only padding)')
    stream = [processes.fetch(embed(cfg, params, b.tokens, b.segments)) for _, b in items]
    original = list(stream) if targets else None
    new, one_layer, seen = dict(params), {}, {}
    for i in range(cfg.layers):
        name, one = f'layer_{i}', layer_config(cfg, i)
        layer = params[name]
        if cfg.experts[i]:
            goal = None if original is None else _observed(one, layer, items, original, chosen)
            own = _observed(one, layer, items, stream, chosen)
            seen[i] = _finished(one, layer, own, goal, chosen)
            stats = Stats(fingerprint({'layer_0': layer}, one),
                          {group: {0: sums} for group, sums in seen[i].items()}, tokenizer,
                          reservoir=chosen.reservoir)
            new[name], one_layer[i] = compress(i, one, layer, stats)
            seen[i] = {group: {n: a for n, a in sums.items() if n not in GRAMS}
                       for group, sums in seen[i].items()}
        if original is not None:
            original = _stepped(one, layer, items, original)
        stream = _stepped(one_layer.get(i, one), new[name], items, stream)
        if progress is not None:
            progress(i + 1, cfg.layers)
    groups = {g: {i: layers[g] for i, layers in seen.items()} for g in seen[cfg.moe_layers[0]]}
    data = f'{sum(batch.data for _, batch in items) % WRAP:016x}'
    stats = Stats(fingerprint(params, cfg), groups, tokenizer, data, chosen.reservoir)
    return new, _joined(cfg, one_layer), stats


def _joined(cfg: Config, layers: Mapping[int, Config]) -> Config:
    """The config of a model whose MoE layers were replaced one by one."""
    experts, aliases, constants = list(cfg.experts), [], []
    router, topk = cfg.router, max(one.topk for one in layers.values())
    if any(one.router != router for one in layers.values()):
        clamp = any(one.clamp or one.topk < topk for one in layers.values())
        router = top_k(router, 'layers of several K').replace(topk=topk, clamp=cfg.clamp or clamp)
    for i in range(cfg.layers):
        one = layers.get(i, layer_config(cfg, i))
        experts[i] = one.experts[0]
        aliases.append(one.alias(0))
        constants.append(one.constants_in(0))
    return cfg.replace(
        experts=tuple(experts), router=router, aliases=tuple(aliases) if any(aliases) else (),
        constants=tuple(constants) if any(constants) else (),
    )


def _observed(one: Config, layer: Params, items: list[tuple[str, Batch]], stream: Streams,
              options: Options) -> dict[str, Sums]:
    """The statistics of one MoE layer on a stream, by group."""
    run = watched(one, options.observer)

    def on(x: np.ndarray) -> Callable[..., Any]:
        return lambda *rest: [{0: part} for part in run(layer, x, *rest)[1:]]

    runs = ((group, batch, on(x)) for (group, batch), x in zip(items, stream, strict=True))
    return {group: layers[0] for group, layers in collected(options, runs)[0].items()}


def _finished(one: Config, layer: Params, seen: dict[str, Sums], goal: dict[str, Sums] | None,
              options: Options) -> dict[str, Sums]:
    """The statistics of one MoE layer with what its experts give on the sample, by group."""
    if not options.reservoir:
        return seen
    experts = layer['moe']['experts']
    return {
        group: reservoir.finish(one, experts, sums, options.outputs,
                             None if goal is None else {**goal[group], 'experts': experts})
        for group, sums in seen.items()
    }


def _stepped(one: Config, layer: Params, items: list[tuple[str, Batch]], stream: Streams
             ) -> Streams:
    """The stream after one layer."""
    run = step(one)
    return [processes.fetch(run(layer, x, batch.tokens, batch.segments))
            for x, (_, batch) in zip(stream, items, strict=True)]
