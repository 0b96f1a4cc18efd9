"""The error of each layer's output in a smaller model, against the original's layer.

B rows, T tokens, D width. Sums run over the tokens that are not padding.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params
from moe_jax.calibration.block_pass import embed, layer_config, step
from moe_jax.config import Config
from moe_jax.model.inputs import each, rows_of


class LayerError(NamedTuple):
    """Squared errors of a layer as shares.

    local: sum |f'(x) - f(x)|^2 / sum |f(x) - x|^2 of block f and its smaller f', both on the
      original's stream x: the error of this layer alone, as a share of the block's addition.
    stream: sum |x' - x|^2 / sum |x|^2 after the layer, x' the smaller model's own stream: what has
      added up so far.
    """

    local: float
    stream: float


def reconstruction(
    cfg: Config,
    params: Params,
    small_cfg: Config,
    small: Params,
    batches: Iterable[Mapping[str, Any]],
) -> dict[str, dict[int, LayerError]]:
    """{group: {layer: `LayerError`}} of a smaller model, batches as for `moe_jax.observe`.

    Runs both models block by block, the smaller blocks twice. Raises ValueError if layers or
    widths differ, no token is valid, or a stream is not finite.
    """
    for name in ('layers', 'width'):
        if (ours := getattr(cfg, name)) != (theirs := getattr(small_cfg, name)):
            raise ValueError(f'reconstruction: the models have {ours} and {theirs} {name}; layers '
                             'can only be held against each other one by one')
    totals: dict[str, np.ndarray] = {}
    for raw in each(batches, 'reconstruction'):
        rows = rows_of(cfg, raw, 'reconstruction')
        if (rows[1] > 0).any():
            errors = np.asarray(_errors(cfg, params, small_cfg, small, *rows), np.float64)
            group = raw.get('group') or 'all'
            totals[group] = totals.get(group, 0.0) + errors
    if not totals:
        raise ValueError('reconstruction: no valid token in the batches (empty, or only padding)')
    if not all(np.isfinite(errors).all() for errors in totals.values()):
        raise ValueError('reconstruction: the stream of a model is not finite; look for NaN and '
                         'infinity in the weights')
    return {group: {i: LayerError(_share(*row[:2]), _share(*row[2:]))
                    for i, row in enumerate(errors)} for group, errors in totals.items()}


def _errors(cfg, params, small_cfg, small, tokens, segments) -> list[Any]:
    """Squared sums of each layer: local error, the block's addition, stream error, stream."""
    x, y = embed(cfg, params, tokens, segments), embed(small_cfg, small, tokens, segments)
    errors = []
    for i in range(cfg.layers):
        f, g = step(_kept_skip(cfg, i)), step(_kept_skip(small_cfg, i))
        layer, smaller = params[f'layer_{i}'], small[f'layer_{i}']
        after, local = (run(block, x, tokens, segments)
                        for run, block in ((f, layer), (g, smaller)))
        y = g(smaller, y, tokens, segments)
        errors.append(_squares(x, after, local, y, segments))
        x = after
    return jax.device_get(errors)


@lru_cache(maxsize=256)
def _kept_skip(cfg: Config, layer: int) -> Config:
    """`layer_config`, with the layer's skipping."""
    one, skip = layer_config(cfg, layer), cfg.skip
    if skip is None:
        return one
    return one.replace(skip=dataclasses.replace(skip, thresholds=(skip.thresholds[layer],)))


@jax.jit
def _squares(x, after, local, y, segments):
    live = (segments > 0)[..., None]

    def total(a, b=None):
        gap = a.astype(jnp.float32) - (0.0 if b is None else b.astype(jnp.float32))
        return jnp.where(live, jnp.square(gap), 0.0).sum()

    return total(local, after), total(after, x), total(y, after), total(after)


def _share(error: float, scale: float) -> float:
    if scale > 0:
        return float(error / scale)
    return math.inf if error > 0 else 0.0
