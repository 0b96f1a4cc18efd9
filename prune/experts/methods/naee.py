"""NAEE: of all sets of experts, keep the one that changes the layer's output the least.

Source: Lu et al., "Not All Experts are Equal: Efficient Expert Pruning and Skipping for
Mixture-of-Experts Large Language Models", ACL 2024, and its released code. Every set of G experts
is tried, each layer by itself; a set's router is the rows that stay.
`moe_jax.calibration.layerwise` with targets=True gives the paper's progressive form, its other
step.

Deviations: errors come from inner products of expert outputs (`prune.subsets.error`), not from
running the layer once per set, so a set costs K + K^2 numbers per token; tokens are a uniform
reservoir. The default loss is the sum of squared errors; the code adds up Frobenius norms of
batches without squaring them, so its choice depends on the batch: loss='batch_norm'. Exact ties go
to the set that comes first in lexicographic order.
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers
from prune.subsets import error, search
from prune.subsets.error import Sample


def choose(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    loss: Literal['sse', 'batch_norm'] = 'sse',
    batch: int = 2048,
    most: int = 200_000,
) -> dict[int, np.ndarray]:
    """Ids of the best set of each MoE layer, ascending [G].

    loss: 'sse', the sum of squared errors, or 'batch_norm', the released code's sum over batches of
      ||Y - Y'||_F.
    batch: tokens in a batch of 'batch_norm'.
    most: refuse, with ValueError, a layer with more sets than this.
    """
    for i, count in counts.items():
        if (sets := search.how_many(cfg.experts[i], count, cfg.groups)) > most:
            raise ValueError(
                f'layer {i}: there are {sets:,} ways to keep {count} of {cfg.experts[i]} experts, '
                f"more than most={most:,}; search with method 'greedy' or 'genetic', or raise most"
            )
    if batch < 1:
        raise ValueError(f'naee: batch={batch}: tokens in a batch, at least 1')
    chosen = {}
    for i, count in counts.items():
        sample = error.sample_of(stats[i], params[f'layer_{i}']['moe'], cfg)
        sets = search.every(cfg.experts[i], count, cfg.groups)
        values, scale = LOSS[loss](sample, cfg, sets, batch)
        chosen[i] = sets[error.least(values, scale)]
    return chosen


def sse(
    sample: Sample, cfg: Config, sets: np.ndarray, batch: int
) -> tuple[np.ndarray, float]:
    """Mean squared error of each set [n], and that of a layer which gives nothing."""
    del batch
    return error.errors(sample, cfg, sets), sample.scale


def batch_norm(
    sample: Sample, cfg: Config, sets: np.ndarray, batch: int
) -> tuple[np.ndarray, float]:
    """Sum over batches of ||Y - Y'||_F of each set [n], and that of a layer which gives nothing."""
    masks = error.masks_of(sets, sample.cross.shape[1], cfg.groups)
    sums = error.block_sums(sample, cfg, masks, batch)
    starts = np.arange(0, len(sample.square), batch)
    whole = np.add.reduceat(np.asarray(sample.square, np.float64), starts)
    return np.sqrt(np.maximum(sums, 0)).sum(axis=1), float(np.sqrt(whole).sum())


LOSS = {'sse': sse, 'batch_norm': batch_norm}


METHOD = Method(
    name='naee',
    title='NAEE',
    doc=__doc__,
    paper='NAEE, ACL 2024',
    kind='drop',
    cost=Cost.RESERVOIR,
    needs=error.NEEDS,
    choose=choose,
    place=150,
)
