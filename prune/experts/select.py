"""Experts to train: expert-specialized fine-tuning (ESFT) chooses those that a task uses.

    chosen = prune.select_experts(stats, cfg, by='gates', group='law')
    options = train.TrainOptions(..., trainable=train.Trainable(experts=chosen))

Source: Wang et al., "Let the Expert Stick to His Last: Expert-Specialized Fine-Tuning for Sparse
Architectural Large Language Models", EMNLP 2024.

Letters: E experts of a layer, R router rows (E, unless several rows share an expert), K experts per
token.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from moe_jax.base.checks import choice, number
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.experts.activation_scores import mean
from prune.inputs.statistics import check_groups

# The statistic of each way of scoring, and the paper's share of it (section 4).
SOURCE = {'gates': 'gate_sum', 'tokens': 'count'}
SHARE = {'gates': 0.1, 'tokens': 0.2}
ROUNDING = 1e-6  # of sums taken in float32


def select_experts(
    stats: Stats,
    cfg: Config,
    *,
    by: Literal['gates', 'tokens'] = 'gates',
    share: float | None = None,
    group: str | None = None,
    normalize: bool = False,
) -> dict[int, np.ndarray]:
    """The experts to train in every MoE layer, {layer: ascending ids}.

    In each layer the shortest prefix, from the highest score down, whose scores sum to `share` or
    more; ties go to the lower index. Scores of expert e over all T tokens of `group` (None: of all
    groups):

        'gates'    (1/T) sum_t g_te, the gate applied, 0 where e was not chosen
        'tokens'   (1/(T K)) sum_t 1[e chosen]

    share: above 0 and at most 1; by default the paper's 0.1 of gates, 0.2 of tokens. It is of
      absolute gate mass: where gates are not renormalized a layer's sum to less than 1.
    normalize: divide by the layer's sum first, so that `share` is of what the layer uses. The
      paper's 0.1 was not chosen for that.

    Deviations: the paper averages over samples first, which is the same for samples of one length;
    a layer whose scores all together do not reach the share is an error, where the paper's code
    takes every expert. Where router rows share an expert, it has the sum of their scores.

    Raises ValueError for an unknown way or group (with the nearest name), a share outside (0, 1] or
    out of reach, and statistics that are empty, not finite or of another model.
    """
    choice('by', by, SOURCE)
    share = SHARE[by] if share is None else share
    number('share', share, above=0, most=1,
           note='the score that the selected experts of a layer have together')
    check_groups(stats, cfg, group)
    chosen = {}
    for i in cfg.moe_layers:
        seen = stats.layer(i, group, names=('tokens', SOURCE[by]))
        score = _scores(seen, cfg, i, by)
        chosen[i] = _prefix(mean(score, score.sum()) if normalize else score, share, i)
    return chosen


def _scores(layer_stats: Mapping[str, Any], cfg: Config, layer: int, by: str) -> np.ndarray:
    """Checked scores of a layer's experts, [E] float64."""
    for name in ('tokens', SOURCE[by]):
        if name not in layer_stats:
            raise ValueError(f'select needs the statistic {name!r}, which layer {layer} lacks; '
                             'observe again')
    total = np.asarray(layer_stats[SOURCE[by]], np.float64)
    if total.shape != (cfg.router_rows(layer),):
        raise ValueError(f'statistic {SOURCE[by]!r} of layer {layer} has shape {total.shape}, this '
                         f'model has {cfg.router_rows(layer)} router rows; observe this model')
    if not (np.isfinite(total) & (total >= 0)).all():
        raise ValueError(f'statistic {SOURCE[by]!r} of layer {layer} has values that are negative '
                         'or not finite; look for NaN in the model or the data, and observe again')
    tokens = float(layer_stats['tokens'])
    if not 0 < tokens < np.inf:
        raise ValueError(f'statistics of layer {layer} saw no token; observe some batches first')
    per_token = total / tokens / (cfg.topk_in(layer) if by == 'tokens' else 1)
    return _of_experts(per_token, cfg.alias(layer), cfg.experts[layer])


def _of_experts(rows: np.ndarray, alias: tuple[int, ...] | None, experts: int) -> np.ndarray:
    """Scores of router rows [R] summed by the expert they use, [E]; constants have none."""
    if alias is None:
        return rows
    target = np.asarray(alias)
    real = (target >= 0) & (target < experts)
    return np.bincount(target[real], rows[real], minlength=experts)


def _prefix(score: np.ndarray, share: float, layer: int) -> np.ndarray:
    order = np.argsort(-score, kind='stable')
    reached = np.flatnonzero(np.cumsum(score[order]) >= share - min(ROUNDING, share / 2))
    if not reached.size:
        raise ValueError(
            f'layer {layer}: the scores of all its experts sum to {score.sum():.4f}, less than '
            f'share={share}; choose a smaller share, or normalize=True'
        )
    return np.sort(order[:reached[0] + 1])
