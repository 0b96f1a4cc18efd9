"""Small models of every router design, and rows of text for them."""

import numpy as np

from moe_jax import Config
from moe_jax.routing.designs import designs
from moe_jax.routing.designs.expert_choice import ExpertChoice
from moe_jax.routing.designs.hash import Hash
from moe_jax.routing.designs.top_k import TopK

# Every design in each form that runs other code; the contract refuses one that is missing here.
ROUTERS = {
    'top_k': TopK(topk=2, gate='softmax_topk_renorm', balance=0.1, zloss=0.01),
    'expert_choice': ExpertChoice(capacity=1.5),
    'expert_choice of a batch': ExpertChoice(capacity=1.0, over='batch'),
    'hash': Hash(topk=2, seed=3),
}
assert {router.design for router in ROUTERS.values()} == set(designs())


def config(router, **fields) -> Config:
    return Config(vocab=29, positions=16, width=8, heads=2, mlp_hidden=12, expert_hidden=6,
                  capacity_train=None, capacity_eval=None,
                  **{'router': router, 'experts': (5, 0, 5), **fields})


def rows(seed: int = 0, batch: int = 3, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments [B, T]: the last row padded, the first of two segments."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 29, (batch, length)).astype(np.int32)
    segments = np.ones((batch, length), np.int32)
    segments[-1, 7:] = 0
    segments[0, 5:] = 2
    return tokens, segments
