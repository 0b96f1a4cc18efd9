"""`moe-jax prune`: a smaller model from a saved one; its flags are `prune`'s dataclasses."""

import dataclasses
import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from moe_jax.cli.job import Flat, Job, options_set
from moe_jax.cli.shared import Positional, at_least
from prune.budget.amounts import Amounts
from prune.experts.common import Common

if TYPE_CHECKING:
    from moe_jax.config import Config
    from prune import Plan

UNITS = {
    'parameters': {'': 1, 'k': 10**3, 'M': 10**6, 'B': 10**9},
    'memory': {'': 1, 'kB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12, 'KiB': 2**10,
               'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40},
}
Size = Annotated[str | None, tyro.conf.arg(metavar='SIZE')]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(Amounts):
    """Amounts whose sizes have units."""

    parameters: Size = None
    memory: Size = None

    def keywords(self) -> dict[str, Any]:
        """The amounts that were given, as `prune.plan` takes them."""
        amounts = options_set(self)
        return amounts | {name: _size(name, amounts[name]) for name in UNITS if name in amounts}


def prune_model(
    model: Positional[Path],
    /,
    job: Flat[Job],
    amounts: Flat[Sizes],
    common: Flat[Common],
    targets: bool = False,
    reservoir: int | None = None,
) -> None:
    """Plan a smaller model, carry the plan out and save it, with its plan and tokenizer.

    How much stays is said by exactly one of --experts, --ratio, --mass, --parameters and --memory.

    Args:
        model: a model's folder, native or a Hugging Face checkpoint, or a hub id (org/name).
        job: the method, what it reads, and the folder to write.
        amounts: how much stays.
        common: what serves every method.
        targets: with --layerwise: layers are to give what they gave in the original model.
        reservoir: with --layerwise: tokens of each task to sample, where the method needs a sample
            (default: 8192).
    """
    at_least(1, reservoir=reservoir)
    import prune
    from moe_jax.cli import prune_checks
    from moe_jax.cli.shrink import Command, shrink
    from prune.catalog import registry
    from prune.inputs.method import Cost

    own = prune.check_options(job.method, job.own())
    if registry.method(job.method).cost is Cost.CHECKPOINTS:
        raise ValueError(f'{job.method} compares two checkpoints, and this command reads one; use '
                         'prune.plan in Python')
    budget = amounts.keywords()
    keywords = {**budget, **vars(common), **own}
    text = {name: value for name, value in (('targets', targets), ('reservoir', reservoir))
            if value not in (None, False)}
    check = functools.partial(prune_checks.check, job, keywords, targets)
    command = Command(prune.plan, prune.plan_layerwise, keywords, text, check, _show)
    shrink(model, job, command, {'budget': budget})


def _size(name: str, text: str) -> int:
    """'1.2B' parameters or '24GB' of memory as a number, rounded down."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([A-Za-z]*)', re.sub('[_, ]', '', str(text)))
    if match is None or match[2] not in UNITS[name]:
        valid = ', '.join(filter(None, UNITS[name]))
        raise ValueError(f'--{name} {text}: give a number, or one with a unit of {valid}')
    return int(Decimal(match[1]) * UNITS[name][match[2]])


def _show(plan: 'Plan', cfg: 'Config') -> None:
    """Print the plan, and what becomes of the model's size."""
    from moe_jax.model.cost import count
    from prune.surgery.apply import config_of

    print(plan.describe())
    small = config_of(plan, cfg)
    before, after = count(cfg), count(small)
    print(f'parameters {before.total:,} -> {after.total:,}, active per token at most '
          f'{before.active:,} -> {after.active:,}')
    uses = sorted({small.topk_in(i) for i in small.moe_layers})
    if uses != [cfg.topk]:
        print(f'experts per token {cfg.topk} -> {" or ".join(map(str, uses))}, by layer')
