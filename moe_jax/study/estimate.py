"""What a study costs, from shapes alone, before it starts."""

from rich.table import Table

from moe_jax import cost
from moe_jax.describe import human
from moe_jax.study.cells import compared, stage_options
from moe_jax.study.spec import Study

# float32 parameter, gradient and two Adam moments
STATE_BYTES = 16
H100_FLOPS, SHARE = 990e12, 0.3  # dense bf16 peak by the vendor's datasheet; a usual share of it


def flops(study: Study) -> dict[str, float]:
    """Training FLOPs (3 x forward) by part: 'pretrain Z' for each count, and 'recovery'."""
    seeds = len(study.seeds)
    rows = study.pretrain
    found = {
        f'pretrain {z}': 3.0 * seeds * _tokens(rows) * cost.count(study.model_with(z),
                                                                  rows.length).flops
        for z in study.experts
    }
    stages = stage_options(study, 0).values()
    each = sum(3.0 * _tokens(s) * cost.count(study.model, s.length).flops for s in stages)
    return found | {'recovery': each * seeds * len(compared(study)) * len(study.tasks)}


def table(study: Study) -> Table:
    """Parameters, training state and FLOPs of every part of a study, and their sum."""
    parts, seeds = flops(study), len(study.seeds)
    out = Table(title=f'{study.name}: cost of {seeds} seed{"s" * (seeds > 1)}',
                title_justify='left', show_footer=True)
    out.add_column('part', footer='total')
    out.add_column('parameters', justify='right')
    out.add_column('training state', justify='right')
    out.add_column('tokens', justify='right')
    out.add_column('FLOPs', justify='right', footer=f'{sum(parts.values()):.2g}')
    for z in study.experts:
        total = cost.count(study.model_with(z)).total
        out.add_row(f'pretrain {z} experts', human(total), f'{total * STATE_BYTES / 1e9:.3g} GB',
                    human(_tokens(study.pretrain) * seeds), f'{parts[f"pretrain {z}"]:.2g}')
    models, tasks = len(compared(study)), len(study.tasks)
    tokens = sum(_tokens(s) for s in stage_options(study, 0).values()) * models * tasks * seeds
    out.add_row(f'recovery of {models} models on {tasks} tasks', '', '', human(tokens),
                f'{parts["recovery"]:.2g}')
    took = duration(sum(parts.values()) / (H100_FLOPS * SHARE))
    out.caption = (f'At {SHARE:.0%} of the bf16 peak of an H100 (990 TFLOP/s) the arithmetic takes '
                   f'{took} of one GPU. Router, softmax and norms are not counted.')
    out.caption_justify = 'left'
    return out


def duration(seconds: float) -> str:
    """A rough time in its own unit: '0.1 seconds', '5.8 minutes', '402 hours'."""
    for unit, size in (('hours', 3600.0), ('minutes', 60.0)):
        if seconds >= 2 * size:
            return f'{seconds / size:,.3g} {unit}'
    return f'{seconds:.2g} seconds'


def _tokens(options) -> int:
    return options.steps * options.accumulate * options.batch * options.length
