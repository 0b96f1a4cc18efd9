"""Results of single examples, for comparing models example by example."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """M examples: ids, groups (never independent inside one), nats, weights, right or wrong.

    `log_likelihood` [M]: of the right option, normalized over the options (choice), or the mean per
    token (text); `weight` [M]: 1, or tokens; `correct` [M] of 0 and 1, or None for text.
    Iterating yields (name, value) of the summaries. Raises ValueError if a log-likelihood is not
    finite: a comparison would take NaN for an answer.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    log_likelihood: np.ndarray
    weight: np.ndarray
    correct: np.ndarray | None = None

    def __post_init__(self) -> None:
        broken = np.flatnonzero(~np.isfinite(self.log_likelihood))
        if len(broken):
            raise ValueError(
                f'{len(broken)} of {len(self.ids)} examples have no finite log-likelihood, the '
                f'first is {self.ids[broken[0]]}; are the model\'s weights finite?'
            )

    @property
    def mean(self) -> float:
        """Weighted mean log-likelihood in nats; higher is better."""
        return float(np.average(self.log_likelihood, weights=self.weight))

    @property
    def accuracy(self) -> float | None:
        """Share of examples answered right; None for text."""
        return None if self.correct is None else float(self.correct.mean())

    def __iter__(self) -> Iterator[tuple[str, float]]:
        yield 'log_likelihood', self.mean
        if self.correct is None:
            yield 'perplexity', float(np.exp(-self.mean))
        else:
            yield 'accuracy', float(self.correct.mean())
