"""How much each layer's output suffers as a ranking's experts go, before anything is cut.

Letters: E experts of a layer, G kept.
"""

from typing import Any

from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.experts import ranking
from prune.inputs import statistics
from prune.subsets.curve import relative_curve
from prune.subsets.error import NEEDS as SAMPLE_NEEDS
from prune.subsets.error import sample_of


def sensitivity(
    name: str,
    stats: Stats,
    params: Params,
    cfg: Config,
    *,
    group: str | None = None,
    **method_options: Any,
) -> dict[int, dict[int, float]]:
    """{layer: {G: relative error}} when the G best experts of method `name` are left, without
    retraining; 0 at G = E, and 1 is a layer that gives nothing.

    Mean |y_t - y'_t|^2 over mean |y_t|^2 of a layer's routed output, over the tokens of the
    reservoir (`prune.subsets.curve`), each layer by itself. G: from 1 to E, or what router groups
    allow.
    group: of the statistics (default all merged); further options are the method's own.

    Raises ValueError for a method that does not rank experts, and for what `prune.plan` refuses:
    an unknown name or option, statistics that are missing or of another model, router rows that
    share an expert.
    """
    values = ranking.scores(name, stats, params, cfg, group=group, **method_options)
    seen = statistics.fetch(name, stats, cfg, group, SAMPLE_NEEDS)
    least = cfg.traits.group_least * cfg.groups if cfg.groups > 1 else 1
    curves = {}
    for i, scores in values.items():
        sample = sample_of(seen[i], params[f'layer_{i}']['moe'], cfg)
        sizes = range(least, cfg.experts[i] + 1, cfg.groups)
        curves[i] = relative_curve(sample, cfg, scores, sizes)
    return curves
