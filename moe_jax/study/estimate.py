"""The cost of a study, computed from shapes alone before it starts."""

from typing import NamedTuple

from rich.table import Table

from moe_jax.base.text import human
from moe_jax.model import cost
from moe_jax.study.cell import tokens
from moe_jax.study.expert_count.cells import compared, stage_options
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.recovery.cells import recovered
from moe_jax.study.recovery.spec import RecoveryStudy
from train.forecasting.forecast import duration

# float32 parameter, gradient and two Adam moments
STATE_BYTES = 16
H100_FLOPS, SHARE = 990e12, 0.3  # dense bf16 peak by the vendor's datasheet; a usual share of it


class Part(NamedTuple):
    """A part of a study: its name, parameters of a model it trains, tokens and training FLOPs."""

    name: str
    parameters: int | None
    tokens: float
    flops: float


def table(study: Study) -> Table:
    """Parameters, training state and FLOPs of every part of an expert-count study."""
    seeds, models = len(study.seeds), len(compared(study))
    stages, count = stage_options(study, 0).values(), models * len(study.tasks) * seeds
    each = sum(3.0 * tokens(s) * cost.count(study.model, s.length).flops for s in stages)
    parts = [*(_pretrained(study, z) for z in study.experts),
             Part(f'recovery of {models} models on {len(study.tasks)} tasks', None,
                  count * sum(tokens(s) for s in stages), count * each)]
    return _sheet(study.name, seeds, parts)


def recovery_table(study: RecoveryStudy) -> Table:
    """Parameters, training state and FLOPs of every part of a recovery study.

    A recipe with a teacher adds a forward pass of the teacher; no recipe counts as cheaper for
    training less.
    """
    seeds, tasks = len(study.seeds), len(study.tasks)
    each = tokens(study.recover)
    flops = cost.count(study.model_with(study.experts), study.recover.length).flops
    recipes = [recipe for _, recipe in recovered(study) if recipe is not None]
    passes = sum(4.0 if recipe.distill else 3.0 for recipe in recipes)
    runs = (len(study.rates) + seeds - 1) * tasks
    parts = [
        _pretrained(study, study.experts),
        Part(f'{len(recipes)} recoveries on {tasks} tasks, {len(study.rates)} rates tried', None,
             runs * len(recipes) * each, runs * passes * each * flops),
    ]
    return _sheet(study.name, seeds, parts)


def _pretrained(study: Study | RecoveryStudy, experts: int) -> Part:
    """Pretraining with a number of experts, over all seeds: 3 x forward."""
    taken, cfg = tokens(study.pretrain) * len(study.seeds), study.model_with(experts)
    return Part(f'pretrain {experts} experts', cost.count(cfg).total, taken,
                3.0 * taken * cost.count(cfg, study.pretrain.length).flops)


def _sheet(name: str, seeds: int, parts: list[Part]) -> Table:
    total = sum(part.flops for part in parts)
    out = Table(title=f'{name}: cost of {seeds} seed{"s" * (seeds > 1)}',
                title_justify='left', show_footer=True)
    out.add_column('part', footer='total')
    out.add_column('parameters', justify='right')
    out.add_column('training state', justify='right')
    out.add_column('tokens', justify='right')
    out.add_column('FLOPs', justify='right', footer=f'{total:.2g}')
    for part in parts:
        size, state = '', ''
        if part.parameters is not None:
            size = human(part.parameters)
            state = f'{part.parameters * STATE_BYTES / 1e9:.3g} GB'
        out.add_row(part.name, size, state, human(int(part.tokens)), f'{part.flops:.2g}')
    took = duration(total / (H100_FLOPS * SHARE))
    out.caption = (f'At {SHARE:.0%} of the bf16 peak of an H100 (990 TFLOP/s) the arithmetic takes '
                   f'{took} of one GPU. Router, softmax and norms are not counted.')
    out.caption_justify = 'left'
    return out
