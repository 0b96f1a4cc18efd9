"""What a model costs, from shapes alone, and what a forward pass takes, by the clock.

D width, F hidden widths, K experts per token, E experts, T tokens in a row, V vocabulary, L layers.
"""

import dataclasses
import math

from moe_jax.base.tree import Params, count_bytes, count_params, leaves_with_paths
from moe_jax.config import Config
from moe_jax.model.decoder import shapes


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


def idle(cfg: Config, moe: Params) -> int:
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
