"""What `moe-jax prune` and `moe-jax sparsify` share: flags, checks, the plan, the new folder.

What can be refused is refused before weights are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import prune
from moe_jax.calibration.stats import Stats
from moe_jax.cli.job import Job, options_set
from moe_jax.cli.shared import (
    absent,
    batches,
    finish,
    load_with_progress,
    model_and_tasks,
    tokenizer_digest,
)
from moe_jax.config import Config
from moe_jax.hf.hub import located
from moe_jax.storage import folder

TOKENS = 65_536  # of each task, with --layerwise


class Command(NamedTuple):
    """One of the two commands, and what is asked of it.

    keywords: of both functions. text: with --layerwise, keywords of that function alone. check
    raises ValueError for what they would refuse, from a model's config and headers, and statistics
    (None: none, or layer by layer), alone.
    """

    at_once: Callable[..., prune.Plan]
    layerwise: Callable[..., prune.Layerwise]
    keywords: Mapping[str, Any]
    text: Mapping[str, Any]
    check: Callable[[Path, Stats | None], None]
    show: Callable[[prune.Plan, Config], None]


def shrink(model: Path, job: Job, command: Command, lineage: Mapping[str, Any]) -> None:
    """Check, plan, carry the plan out and save; lineage: what to record beside the options."""
    absent(job.out)
    text = {**options_set(job, 'tasks', 'tokens', 'data'), **command.text}
    name, model = str(model), located(model)
    origin = folder.origin(model)
    if job.to == 'hf' and origin is None:
        raise ValueError(f'{model}: did not come from a Hugging Face checkpoint; use --to native')
    _check_sources(job, text)
    stats = None if job.stats is None else Stats.load(job.stats)
    command.check(model, stats)
    if job.layerwise:
        _check_tasks(job)
    plan, params, cfg = (_by_layer if job.layerwise else _at_once)(model, job, command, stats)
    read = {name: str(value) if name == 'data' else value for name, value in text.items()}
    finish(job.out, cfg, params, job.to, origin, {
        'method': job.method, **lineage, 'options': dict(plan.options), 'of': name,
        **({'layerwise': read} if job.layerwise else {})}, plan, model)


def _check_sources(job: Job, text: Mapping[str, Any]) -> None:
    """Refuse, with ValueError, text without --layerwise, and --layerwise beside statistics."""
    if text and not job.layerwise:
        raise ValueError(f'--{", --".join(text)}: for --layerwise, which reads text; without it '
                         'statistics come from --stats')
    if job.stats is not None and job.layerwise:
        raise ValueError('--layerwise collects its own statistics from --tasks; leave --stats out')


def _check_tasks(job: Job) -> None:
    """Refuse, with ValueError, no tasks, and a group that is none of them."""
    if not job.tasks:
        raise ValueError('--layerwise reads text; give --tasks, such as boolq or lm-code')
    if job.group is not None and job.group not in job.tasks:
        raise ValueError(f'--group {job.group}: is not among --tasks {" ".join(job.tasks)}')


def _at_once(model: Path, job: Job, command: Command, stats: Stats | None
             ) -> tuple[prune.Plan, Any, Config]:
    """The plan from statistics, and what it makes."""
    cfg, params = load_with_progress(model, job.dtype)
    plan = command.at_once(job.method, stats, params, cfg, group=job.group, **command.keywords)
    command.show(plan, cfg)
    return plan, *prune.apply(params, cfg, plan, donate=True)


def _by_layer(model: Path, job: Job, command: Command, stats: Stats | None
              ) -> tuple[prune.Plan, Any, Config]:
    """The plan from text, layer by layer, and what it makes; statistics are its own."""
    del stats
    cfg, params, encoded = model_and_tasks(model, job.tasks, job.data, dtype=job.dtype)
    plan = command.layerwise(
        job.method, params, cfg,
        batches(encoded, cfg.positions, TOKENS if job.tokens is None else job.tokens),
        group=job.group, tokenizer=tokenizer_digest(model),
        progress=lambda done, layers: print(f'layer {done} of {layers}', flush=True),
        **command.text, **command.keywords)
    command.show(plan.plan, cfg)
    return plan.plan, plan.params, plan.cfg
