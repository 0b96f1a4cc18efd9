"""What a model costs, from shapes alone, and what a forward pass takes, by the clock.

D width, F hidden widths, K experts per token, E experts, T tokens in a row, V vocabulary, L layers.
"""

import dataclasses
import math
import time

import jax

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

    A token uses topk experts of each MoE layer and everything else. Forward FLOPs per token are
    2 x (matrix parameters used, the head included, embeddings read by index not) + 2 H T (width of
    keys + width of values) per layer for attention over T tokens in a row (default: all positions;
    a layer's window at most), without the causal half.
    """
    tree = shapes(cfg)
    leaves = list(leaves_with_paths(tree))
    total = count_params(tree)
    idle = matrices = 0
    for path, leaf in leaves:
        size = math.prod(leaf.shape)
        used = size
        if '/moe/experts/' in path:
            used = size // leaf.shape[0] * min(cfg.topk, leaf.shape[0])
            idle += size - used
        expert_axis = 1 if '/moe/experts/' in path else 0
        read = path == 'embed/positions' or (path == 'embed/tokens' and not cfg.tied)
        if len(leaf.shape) - expert_axis >= 2 and not read:
            matrices += used
    length = cfg.positions if tokens_in_row is None else tokens_in_row
    seen = sum(min(length, cfg.window(i) or length) for i in range(cfg.layers))
    flops = 2 * matrices + 2 * cfg.heads * (cfg.key_width + cfg.value_width) * seen
    return Cost(total, total - idle, count_bytes(tree), flops)


def forward_milliseconds(
    configs: list[Config], shape: tuple[int, int], rounds: int
) -> list[list[float]]:
    """Milliseconds of `rounds` forward passes of fresh models, all models in every round.

    Tokens are random, [B, T] = shape; compilation is not counted. Interleaving makes the ratios
    hold on a machine whose speed drifts.
    """
    tokens = jax.random.randint(jax.random.key(0), shape, 0, min(c.vocab for c in configs))
    runs = []
    for cfg in configs:
        params = jax.jit(lambda key, cfg=cfg: init(cfg, key))(jax.random.key(1))
        run = jax.jit(lambda params, tokens, cfg=cfg: apply(cfg, params, tokens).sum())
        run(params, tokens).block_until_ready()
        runs.append((run, params))
    found: list[list[float]] = [[] for _ in configs]
    for _ in range(rounds):
        for times, (run, params) in zip(found, runs, strict=True):
            start = time.perf_counter()
            run(params, tokens).block_until_ready()
            times.append(round(1000 * (time.perf_counter() - start), 3))
    return found
