"""The teacher of a run of `moe-jax train`: what it takes, whether it fits, what it says.

Modules are imported inside the functions, as in `commands_train.py`, which calls these.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prune import Plan
    from train import Objective, Run

PLAN = 'plan.npz'  # as `moe-jax prune` and `moe-jax sparsify` save it beside the model


def checked(run: 'Run') -> 'Plan | None':
    """The plan that made the student, where the expert term needs one.

    Refuses, with FileNotFoundError or ValueError and before text or weights are read, a teacher
    that this student cannot learn from.
    """
    import prune
    from moe_jax.storage import folder
    from train.recipes.distill import check_teacher
    from train.recipes.run import check_length

    assert run.start is not None and run.teacher is not None and run.recipe is not None
    cfg, theirs = folder.config_of(run.start), folder.config_of(run.teacher)
    try:
        check_length(run.options, theirs, 'the teacher')
        _check_tokens(run, cfg.vocab, theirs.vocab)
        plan = _plan(run, cfg.experts, theirs.experts) if run.recipe.experts else None
        check_teacher(cfg, theirs, run.recipe, plan and prune.stands_for(plan))
    except ValueError as error:
        raise ValueError(f'run {run.name}: {error}') from None
    return plan


def objective(
    run: 'Run', cfg: Any, params: Any, teacher: tuple[Any, Any], first: dict[str, Any],
    plan: 'Plan | None', say: Callable[[str], None],
) -> 'Objective':
    """What the student (cfg, params) minimizes; first: the run's first batch; plan: of `checked`.
    """
    import prune
    import train
    from moe_jax.model import fingerprint

    assert run.recipe is not None  # a run with a teacher has one
    if plan is not None and plan.model and fingerprint.differs(
            plan.model, teacher[1], teacher[0], 'the plan of the start'):
        say(f'{run.teacher} is not the model {run.start} was pruned from; its experts are '
            'taken for those of that model')
    return train.towards(cfg, params, teacher, first, run.options, run.recipe,
                         stands_for=plan and prune.stands_for(plan))


def addition(run: 'Run') -> str:
    """What the teacher adds to a forecast of the run, in words."""
    from moe_jax.base.tree import leaves_with_paths
    from moe_jax.model import cost, decoder
    from moe_jax.storage import folder
    from train.forecasting import memory
    from train.forecasting.forecast import amount

    assert run.teacher is not None and run.recipe is not None  # of a run with a teacher
    cfg, options = folder.config_of(run.teacher), run.options
    held = sum(memory.held(run.axes, path, tuple(leaf.shape))
               for path, leaf in leaves_with_paths(decoder.shapes(cfg)))
    tokens = options.accumulate * options.batch * options.length
    said = [f'{amount(held, "B")} of parameters on each device']
    if run.recipe.logits or run.recipe.hidden:
        flops = tokens * cost.count(cfg, options.length).flops
        said.append(f'{amount(flops, "")} FLOPs in every step')
    if run.recipe.experts:
        said.append('the work of the expert term, which is not counted here')
    return f'The teacher adds: {", ".join(said)}.'


def _check_tokens(run: 'Run', ours: int, theirs: int) -> None:
    """Refuse a teacher to which the student's tokens are others."""
    from moe_jax.data import tokenizer
    from moe_jax.storage import folder

    if ours != theirs:
        raise ValueError(f'the teacher has vocab={theirs} and the student {ours}; both have to '
                         'read the same tokens')
    assert run.start is not None and run.teacher is not None  # of a run with a teacher
    own, other = (folder.side_file(path, 'tokenizer.json') for path in (run.start, run.teacher))
    if own and other and tokenizer.digest(own) != tokenizer.digest(other):
        raise ValueError(f'{own} and {other} differ, and both models have to read the same tokens; '
                         'put one file in both, if they are the same tokenizer')


def _plan(run: 'Run', ours: tuple[int, ...], theirs: tuple[int, ...]) -> 'Plan | None':
    """The plan beside the student; None where expert g learns from expert g."""
    from moe_jax.storage import folder
    from prune import Plan

    assert run.start is not None  # of a run with a teacher
    path = folder.side_file(run.start, PLAN)
    if path is None and ours != theirs:
        raise ValueError(f'{run.start} has {list(ours)} experts by layer and {run.teacher} '
                         f'{list(theirs)}, and no {PLAN} in {run.start} says which stands for '
                         f'which; put the one that `moe-jax prune` wrote there, or leave the '
                         'expert term out with experts=0')
    plan = None if path is None else Plan.load(path)
    if plan is not None and plan.experts != theirs:
        raise ValueError(f'{path}: is for a model with {list(plan.experts)} experts by layer and '
                         f'{run.teacher} has {list(theirs)}; give that model as the teacher, join '
                         'plans made one after the other (first.then(second) in Python), or leave '
                         'the expert term out with experts=0')
    return plan
