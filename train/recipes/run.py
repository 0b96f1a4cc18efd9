"""One run of training as one frozen value; a config file is a function that returns one."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

from moe_jax.base import config_file
from moe_jax.base.checks import integer
from moe_jax.config import Config
from moe_jax.data import limits
from train.forecasting import mesh as spread
from train.loop.options import TrainOptions
from train.recipes.distill import Distill
from train.trainable.trainable import Trainable

Pairs = tuple[tuple[str, float], ...]
Shares = Mapping[str, float] | Pairs  # a `Run` holds the latter
COUNTS = ('corpus_characters', 'task_limit', 'validation_limit', 'heldout_tokens', 'score_rows')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A model, what it reads, and how it is trained; for `moe-jax train`.

    model: of a run with fresh weights; start: the folder of the model to go on from, native or of
    transformers; one of the two. teacher: the folder of the model that the one in start was made
    from, and recipe: what to learn from it; both or neither. domains and tasks: {name: share of the
    rows}, texts of the corpus and training sides of tasks (both empty: all domains in equal
    shares). mesh: {axis: size} ({}: one device), of the teacher too. Limits: characters of each
    domain, examples a task may train on, examples it is scored on, held-out tokens of each text,
    rows that are scored at a time. Raises ValueError for what cannot be run.
    """

    name: str
    description: str = ''
    options: TrainOptions
    model: Config | None = None
    start: str | None = None
    teacher: str | None = None
    recipe: Distill | None = None
    domains: Shares = ()
    tasks: Shares = ()
    mesh: Mapping[str, int] | tuple[tuple[str, int], ...] = ()
    corpus_characters: int = limits.CORPUS_CHARACTERS
    task_limit: int = limits.TASK_LIMIT
    validation_limit: int = limits.VALIDATION_LIMIT
    heldout_tokens: int = limits.HELDOUT_TOKENS
    score_rows: int = limits.SCORE_ROWS

    def __post_init__(self) -> None:
        for name in ('domains', 'tasks', 'mesh'):
            pairs = getattr(self, name)
            pairs = tuple(pairs.items() if isinstance(pairs, Mapping) else pairs)
            object.__setattr__(self, name, pairs)
        _check(self)

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)

    @property
    def axes(self) -> dict[str, int]:
        """The sizes of the mesh by axis."""
        return dict(self.mesh)


def _check(run: Run) -> None:
    if not run.name or run.name != Path(run.name).name:
        raise ValueError(f'run name {run.name!r}: must be a valid folder name')
    if (run.model is None) == (run.start is None):
        raise ValueError(f'run {run.name}: give either a model, for fresh weights, or start, the '
                         'folder of the model to go on from')
    _check_teacher(run)
    for name in COUNTS:
        integer(f'run {run.name}: {name}', getattr(run, name), 1)
    names = [name for name, _ in (*run.domains, *run.tasks)]
    if len(set(names)) < len(names):
        raise ValueError(f'run {run.name}: domains and tasks {names}: some are '
                         'listed more than once')
    for name, share in cast(Pairs, (*run.domains, *run.tasks)):
        if not 0 < share < float('inf'):
            raise ValueError(f'run {run.name}: share {share!r} of {name}: must be positive')
    try:
        spread.check(run.axes, run.options)
    except ValueError as error:
        raise ValueError(f'run {run.name}: {error}') from None
    if run.model is not None:
        check_length(run.options, run.model)


def _check_teacher(run: Run) -> None:
    if (run.teacher is None) != (run.recipe is None):
        raise ValueError(f'run {run.name}: teacher={run.teacher!r}, recipe={run.recipe!r}: give '
                         'both, to learn from a teacher, or neither')
    if run.recipe is not None and not isinstance(run.recipe, Distill):
        raise ValueError(f'run {run.name}: recipe={run.recipe!r}: must be a train.Distill')
    if run.teacher is not None and run.start is None:
        raise ValueError(f'run {run.name}: a teacher is for a model that was made from it; give '
                         'start, the folder of that model')


def check_length(options: TrainOptions, model: Config, what: str = 'the model') -> None:
    """Refuse, with ValueError, rows that the model has no positions for."""
    if options.length > model.positions:
        raise ValueError(f'rows of length={options.length} tokens; {what} has '
                         f'{model.positions} positions')


def load(path: str | Path, variant: str = 'config') -> Run:
    """Run a config file's function `variant` ('config', 'smoke') and return its run.

    Whatever the file raises becomes a ValueError that names the file, the line and the fault.
    """
    return config_file.load(path, variant, (Run,), (Config, TrainOptions, Trainable, Distill))
