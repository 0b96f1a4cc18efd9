"""The measurements of a study as plain values, the only inputs of the rest of a report.

Letters: N examples, E experts of the pretrained model (Z in the paper), G experts left (D there).
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

SCRATCH = 'none'


class Model(NamedTuple):
    """A compared model: pretrained with `experts` per layer, `keep` left, shrunk by `method`
    ('none': not shrunk).
    """

    experts: int
    keep: int
    method: str


def scratch(experts: int) -> Model:
    """The model pretrained with `experts` per layer and never shrunk."""
    return Model(experts, experts, SCRATCH)


@dataclass(frozen=True)
class TaskNote:
    """What the study says about one task; `majority` is the accuracy of always giving the commonest
    answer.
    """

    split_note: str = ''
    metric: str | None = None
    majority: float | None = None
    examples: int | None = None


@dataclass(frozen=True)
class Study:
    """The plan of a study; every field may be empty when its record is missing.

    `methods` begins with the one that the study is about; `cells` are the ids of its records.
    """

    name: str = 'study'
    description: str = ''
    experts: tuple[int, ...] = ()
    keep: dict[int, tuple[int, ...]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    notes: dict[str, TaskNote] = field(default_factory=dict)
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    setup: dict[str, dict[str, Any]] = field(default_factory=dict)
    cells: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pretrain:
    """One pretrained model; `domains` are held-out losses in nats per token."""

    seed: int
    experts: int
    seconds: float
    domains: dict[str, float]
    parameters: int | None
    active: int | None
    tokens: int | None


@dataclass(frozen=True)
class Stage:
    """Quality after one stage of the recovery, in nats; `accuracy` is None for text."""

    name: str
    step: int
    log_likelihood: float
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Examples:
    """Per-example results [N]: nats per example (choice) or token (text), weight, 0/1 or None."""

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    log_likelihood: np.ndarray
    weight: np.ndarray
    correct: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Score:
    """One model on one task after the full budget, with its stages on the way."""

    seed: int
    task: str
    model: Model
    seconds: float
    stages: tuple[Stage, ...]
    examples: Examples
    domains: dict[str, float]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a forward pass over `tokens` tokens, one entry per round, by expert count."""

    seed: int
    milliseconds: dict[int, tuple[float, ...]]
    tokens: int | None
    parameter_bytes: dict[int, int]


@dataclass(frozen=True)
class Parallel:
    """Milliseconds of a forward pass over `tokens` tokens, experts of a layer over several devices.

    measured: each round; modelled: by device name. Both expert count -> degree -> milliseconds.
    """

    seed: int
    tokens: int | None
    measured: dict[int, dict[int, tuple[float, ...]]]
    modelled: dict[str, dict[int, dict[int, float]]]


@dataclass(frozen=True, eq=False)
class Usage:
    """Share of each domain's tokens that each expert gets: layer -> [domains, E]."""

    seed: int
    experts: int
    domains: tuple[str, ...]
    layers: dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Spectral picture of one layer's router: points [E, 2], labels [E], tokens routed [E]."""

    points: np.ndarray
    labels: np.ndarray
    count: np.ndarray


@dataclass(frozen=True, eq=False)
class Embedding:
    """Router clusters of every layer when `experts` are shrunk to `keep` for `task`."""

    seed: int
    experts: int
    keep: int
    task: str
    layers: dict[int, Clusters]


@dataclass(frozen=True)
class Records:
    """All inputs of a report; `problems` are sentences about records left out."""

    study: Study
    pretrains: tuple[Pretrain, ...]
    scores: tuple[Score, ...]
    latencies: tuple[Latency, ...]
    usages: tuple[Usage, ...]
    embeddings: tuple[Embedding, ...]
    problems: tuple[str, ...]
    parallels: tuple[Parallel, ...] = ()


def is_choice(records: Records, task: str) -> bool:
    """Whether a task is multiple choice: what the study says, or else whether its scores have
    answers.
    """
    note = records.study.notes.get(task)
    if note is not None and note.metric in ('choice', 'text'):
        return note.metric == 'choice'
    return any(s.examples.correct is not None for s in records.scores if s.task == task)


def factor(model: Model) -> float:
    """Pruning factor Z/D, as a float so that odd sizes (12 -> 5) still order."""
    return model.experts / model.keep
