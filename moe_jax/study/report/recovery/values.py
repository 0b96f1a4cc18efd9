"""The measurements of a recovery study as plain values, the only inputs of its report."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from moe_jax.study.report.expert_count.values import Examples, Pretrain, TaskNote

NONE = 'none'  # not shrunk, or not recovered


class Outcome(NamedTuple):
    """A compared model: shrunk in one way and trained by a recipe ('none': not trained)."""

    shrink: str
    recipe: str


UNSHRUNK = Outcome(NONE, NONE)


@dataclass(frozen=True)
class Way:
    """One way of shrinking: its method, and the experts kept or the share of weights set to 0."""

    label: str
    method: str
    experts: int | None
    sparsity: float | None


@dataclass(frozen=True)
class Plan:
    """The plan of a study; `ceiling` is the recipe that the unshrunk model gets too."""

    name: str = 'study'
    description: str = ''
    experts: int | None = None
    ways: tuple[Way, ...] = ()
    recipes: tuple[str, ...] = ()
    ceiling: str = ''
    tasks: tuple[str, ...] = ()
    notes: dict[str, TaskNote] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    tuning_rows: int | None = None
    setup: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Recovered:
    """One model on one task; `domains` are held-out losses in nats per token.

    search: loss on the rows kept back by rate, nats (None: it diverged), where rates were tried.
    trained: how many numbers the recipe trained. zeros: share of exact zeros inside the experts.
    """

    seed: int
    task: str
    model: Outcome
    rate: float | None
    search: dict[float, float | None]
    train_seconds: float
    trained: int
    zeros: float
    examples: Examples
    domains: dict[str, float]


@dataclass(frozen=True)
class Records:
    """All inputs of the report; `problems` are sentences about records left out."""

    study: Plan
    pretrains: tuple[Pretrain, ...]
    recovered: tuple[Recovered, ...]
    problems: tuple[str, ...]
