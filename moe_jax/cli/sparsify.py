"""`moe-jax sparsify`: zeros inside a saved model's experts; its flags are `prune`'s dataclass."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_jax.cli.job import Flat, Job, options_set
from moe_jax.cli.shared import Positional
from prune.weights.zeros import Zeros

if TYPE_CHECKING:
    from moe_jax.calibration.stats import Stats
    from moe_jax.config import Config
    from prune import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares(Zeros):
    """Zeros as a shell writes them: a pattern as N:M, leaves one after the other."""

    pattern: str | None = None
    leaves: tuple[str, ...] = ()

    def keywords(self) -> dict[str, Any]:
        """What was given, as `prune.sparsify` takes it."""
        options = options_set(self)
        return options | ({} if self.pattern is None else {'pattern': _pattern(self.pattern)})


def sparsify_model(model: Positional[Path], /, job: Flat[Job], zeros: Flat[Shares]) -> None:
    """Set a share of the weights inside the experts to zero, and save the model, plan, tokenizer.

    Args:
        model: a model's folder, native or a Hugging Face checkpoint, or a hub id (org/name).
        job: the method, what it reads, and the folder to write.
        zeros: how many weights go, and from where.
    """
    import prune
    from moe_jax.cli.shrink import Command, shrink

    own = prune.check_weight_options(job.method, job.own())
    keywords = {**zeros.keywords(), **own}
    check = functools.partial(_check, job, keywords)
    command = Command(prune.sparsify, prune.sparsify_layerwise, keywords, {}, check, _show)
    shrink(model, job, command, {})


def _pattern(text: str) -> tuple[int, int]:
    """'2:4' as (2, 4)."""
    match = re.fullmatch(r'(\d{1,9}):(\d{1,9})', text)
    if match is None:
        raise ValueError(f'--pattern {text}: give N:M, N weights that stay of M, such as 2:4')
    return int(match[1]), int(match[2])


def _check(job: Job, keywords: Mapping[str, Any], model: Path, stats: 'Stats | None'
           ) -> None:
    """Raise ValueError for what `prune.sparsify` or the export would refuse later."""
    from moe_jax.hf.expressible import Outcome, faults
    from moe_jax.storage import folder
    from prune.weights.layerwise import layerwise_weight_request
    from prune.weights.request import weight_request

    cfg = folder.config_of(model)
    if job.layerwise:
        layerwise_weight_request(job.method, cfg, group=job.group, **keywords)
    else:
        weight_request(job.method, cfg, group=job.group, **keywords).check_statistics(stats, cfg)
    if job.to == 'hf' and (reasons := faults(Outcome.of(cfg))):
        raise ValueError('--to hf: transformers has no config for what this model has: '
                         f'{"; ".join(reasons.values())}. Use --to native')


def _show(plan: 'Plan', cfg: 'Config') -> None:
    """Print the plan; the model keeps its size."""
    del cfg
    print(plan.describe())
