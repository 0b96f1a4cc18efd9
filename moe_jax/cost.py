"""What a model costs, from shapes alone, and what a forward pass takes, by the clock.

D width, F hidden widths, K experts per token, E experts, T tokens in a row, V vocabulary, L layers.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax import sharding
from moe_jax.config import Config
from moe_jax.model import apply, init, shapes
from moe_jax.tree import count_bytes, count_params, leaves_with_paths


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters in all and used per token, bytes in float32, forward FLOPs per token."""

    total: int
    active: int
    bytes: int
    flops: int


def count(cfg: Config, tokens_in_row: int | None = None) -> Cost:
    """Exact counts of a model, without allocating it.

    Active is the most that a token can use: everything outside the MoE layers, and in each of these
    the router, min(K, E) experts, and constants in the places of K that no expert can fill (see
    `idle`). Forward FLOPs per token are 2 x (matrix parameters used, the head included; embeddings
    and constants, read by index, not) + 2 H T (width of keys + width of values) per layer for
    attention over T tokens in a row (default: all positions; a layer's window at most), without the
    causal half.
    """
    tree = shapes(cfg)
    leaves = list(leaves_with_paths(tree))
    total = count_params(tree)
    matrices = 0
    for path, leaf in leaves:
        used = math.prod(leaf.shape)
        if '/moe/experts/' in path:
            used = used // leaf.shape[0] * min(cfg.topk, leaf.shape[0])
        expert_axis = 1 if '/moe/experts/' in path else 0
        read = (path == 'embed/positions' or path.endswith('/moe/constants')
                or (path == 'embed/tokens' and not cfg.tied))
        if len(leaf.shape) - expert_axis >= 2 and not read:
            matrices += used
    length = cfg.positions if tokens_in_row is None else tokens_in_row
    seen = sum(min(length, cfg.window(i) or length) for i in range(cfg.layers))
    flops = 2 * matrices + 2 * cfg.heads * (cfg.key_width + cfg.value_width) * seen
    unused = sum(idle(cfg, tree[f'layer_{i}']['moe']) for i in cfg.moe_layers)
    return Cost(total, total - unused, count_bytes(tree), flops)


def idle(cfg: Config, moe: Mapping[str, Any]) -> int:
    """The fewest parameters of a MoE layer that a token leaves aside; moe is its subtree.

    A token fills K places with experts or constants, one of D numbers each, all different. As an
    expert is larger than a constant, the most is in use with min(K, E) experts and, where K > E,
    constants in the other places. (Which it is on average, only routing tells.)
    """
    experts = next(iter(moe['experts'].values())).shape[0]
    each = count_params(moe['experts']) // experts
    used = min(cfg.topk, experts)
    unused = each * (experts - used)
    if 'constants' in moe:
        constants, width = moe['constants'].shape
        unused += width * max(0, constants - (cfg.topk - used))
    return unused


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
    found: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for times, (run, params) in zip(found, runs, strict=True):
            start = time.perf_counter()
            run(params, tokens).block_until_ready()
            times.append(round(1000 * (time.perf_counter() - start), 3))
    return found


def _fresh(cfg: Config, stored: str, key: jax.Array) -> Any:
    """Fresh parameters, the experts' matrices in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(stored) if leaf.ndim > 2 else leaf,
                        init(cfg, key))
