"""How a layer's reconstruction error grows as a ranking's experts go: the prices of a budget.

Letters: E experts of a layer, G kept.
"""

from collections.abc import Iterable

import numpy as np

from moe_jax.config import Config
from prune.subsets.error import Sample, mask_errors
from prune.subsets.top import top


def error_curve(
    sample: Sample, cfg: Config, scores: np.ndarray, counts: Iterable[int]
) -> dict[int, float]:
    """{G: mean |y_t - y'_t|^2} when the G experts of highest scores [E] are left, for each count.

    The sets are nested, ties go to the lower index, and with router groups each keeps equally many.
    Raises ValueError for scores of another size and for a count that cannot be kept.
    """
    experts, counts = sample.cross.shape[1], list(counts)
    if np.shape(scores) != (experts,):
        raise ValueError(f'scores of shape {np.shape(scores)} for a layer of {experts} experts')
    for count in counts:
        if not 1 <= count <= experts or count % cfg.groups:
            raise ValueError(f'cannot keep {count} experts; valid: 1 to {experts}, in multiples of '
                             f'the {cfg.groups} router groups')
    masks = np.zeros((len(counts), experts), bool)
    for mask, count in zip(masks, counts, strict=True):
        mask[top(scores, count, cfg.groups)] = True
    return dict(zip(counts, mask_errors(sample, cfg, masks).tolist(), strict=True))


def relative_curve(
    sample: Sample, cfg: Config, scores: np.ndarray, counts: Iterable[int]
) -> dict[int, float]:
    """`error_curve` over mean |y_t|^2: 1 is a layer that gives nothing, whatever its scale.

    Zeros for a layer whose output is zero.
    """
    curve = error_curve(sample, cfg, scores, counts)
    scale = sample.scale
    return {count: value / scale if scale > 0 else 0.0 for count, value in curve.items()}
