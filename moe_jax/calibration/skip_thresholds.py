"""Thresholds of dynamic execution from statistics: how much each layer may skip (`Config.skip`).

K experts per token, B bins of a histogram.
"""

import math

import numpy as np

from moe_jax.calibration.stats import Stats
from moe_jax.calibration.table import BINS
from moe_jax.config import Config
from moe_jax.routing.skipping import Skip


def calibrated_skip(
    cfg: Config, stats: Stats, *, share: float = 0.5, protect: float = 0.0,
    group: str | None = None,
) -> Skip:
    """A 'ratio' rule that leaves out slots 2 to K for about this share of the tokens each.

    The threshold of a layer's slot k is the quantile `share` of gate_k over the token's largest,
    read off `ratio_hist` within its bin of 1/1000; share 0.5 is the median of Lu et al. 2024
    (arXiv 2402.14800, section 3.3), and share 0 skips nothing. So a token then uses about
    1 + (1 - share)(K - 1) experts, and more where a correction bias often puts another than the
    largest gate first; `moe_jax.compare(...).active` says how many it really is.
    protect: the share of a row's most important tokens that use all K (MC-MoE). group: calibrate on
    one group of the statistics. Use it as `cfg.replace(skip=...)`.

    Raises ValueError for a share outside [0, 1), a model with one expert per token, and statistics
    of other layers or without tokens; KeyError for a group that is not there.
    """
    if not (isinstance(share, int | float) and 0 <= share < 1):
        raise ValueError(f'share={share!r}: of the tokens that skip a slot, 0 or more and below 1')
    if cfg.topk == 1:
        raise ValueError('this model uses one expert per token (topk=1): nothing can be skipped')
    if not stats.groups or stats.layers != cfg.moe_layers:
        raise ValueError(f'statistics of layers {list(stats.layers) if stats.groups else []}; this '
                         f'model has MoE layers {list(cfg.moe_layers)}: observe this model')
    thresholds = []
    for i in range(cfg.layers):
        row: tuple[float, ...] = ()
        if cfg.experts[i]:
            hist = stats.layer(i, group, ('ratio_hist',))['ratio_hist']
            if not len(hist) == cfg.topk_in(i) - 1 or (len(hist) and not hist[0].sum()):
                raise ValueError(f'ratio_hist of layer {i} has {len(hist)} slots and '
                                 f'{int(hist.sum())} counts; observe this model on some tokens')
            row = tuple(_quantile(counts, share) for counts in hist)
            row += (0.0,) * (cfg.topk - 1 - len(row))  # slots that a small layer does not have
        thresholds.append(row)
    return Skip(kind='ratio', thresholds=tuple(thresholds), protect=protect)


def uniform_skip(cfg: Config, kind: str, threshold: float, protect: float = 0.0) -> Skip:
    """One threshold for every layer and slot, such as p = 0.4 of 'top_p' (Huang et al. 2024)."""
    each = cfg.topk - 1 if kind == 'ratio' else 1
    return Skip(kind=kind, protect=protect, thresholds=tuple(
        (float(threshold),) * each if count else () for count in cfg.experts))


def _quantile(counts_B: np.ndarray, share: float) -> float:
    """The value below which a share of the counts lies, linear within a bin of [0, 1]."""
    if share == 0:
        return 0.0
    below = np.concatenate([[0], np.cumsum(counts_B, dtype=np.float64)])
    goal = share * below[-1]
    bin_ = int(np.searchsorted(below, goal, side='left')) - 1
    inside = (goal - below[bin_]) / counts_B[bin_]
    return min(math.nextafter(1.0, 0.0), (bin_ + float(inside)) / BINS)
