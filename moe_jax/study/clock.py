"""The time of a forward pass."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.model.decoder import apply, init, shapes


def forward_milliseconds(
    configs: list[Config],
    shape: tuple[int, int],
    rounds: int,
    meshes: Sequence[Mesh | None] | None = None,
    *,
    stored: str = 'float32',
) -> list[list[float]]:
    """Milliseconds of `rounds` forward passes of fresh models, all models in every round.

    Tokens are random, [B, T] = shape; compilation is not counted. Each model lies on its mesh
    (None: one device). stored: dtype of the experts' matrices in memory, which are cast to the
    config's where they are used. Interleaving makes the ratios hold on a machine whose speed
    drifts.
    """
    tokens = jax.random.randint(jax.random.key(0), shape, 0, min(c.vocab for c in configs))
    runs = []
    for cfg, mesh in zip(configs, meshes or [None] * len(configs), strict=True):
        where = None if mesh is None else sharding.shardings(shapes(cfg), mesh)
        params = jax.jit(partial(_fresh, cfg, stored), out_shardings=where)(jax.random.key(1))
        run = sharding.jit(lambda params, tokens, cfg=cfg: apply(cfg, params, tokens).sum())
        run(params, tokens).block_until_ready()
        runs.append((run, params))
    seconds: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for times, (run, params) in zip(seconds, runs, strict=True):
            start = time.perf_counter()
            run(params, tokens).block_until_ready()
            times.append(round(1000 * (time.perf_counter() - start), 3))
    return seconds


def _fresh(cfg: Config, stored: str, key: jax.Array) -> Any:
    """Fresh parameters, the experts' matrices in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(stored) if leaf.ndim > 2 else leaf,
                        init(cfg, key))
