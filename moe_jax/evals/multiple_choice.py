"""Multiple choice by the log-probability of each option's text after the prompt.

M (example, option) rows, T tokens, R rows a batch.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from moe_jax.config import Config
from moe_jax.data.tasks.encode import encode_score
from moe_jax.data.tasks.example import Example
from moe_jax.evals.scores import Scores
from moe_jax.model import Params
from moe_jax.score import score


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Encoded examples: rows in a few lengths, so that few shapes compile."""

    examples: tuple[Example, ...]
    groups: dict[int, dict[str, np.ndarray]]

    @classmethod
    def encode(cls, examples: Sequence[Example], tokenizer: Tokenizer, length: int, *,
               end: int | None = None) -> 'Questions':
        """Examples in rows of at most `length` tokens; ValueError where one does not fit."""
        return cls(tuple(examples), encode_score(examples, tokenizer, length, end=end))


def evaluate(cfg: Config, params: Params, questions: Questions, *, rows: int = 32) -> Scores:
    """Score every option and normalise over each example's options.

    log_likelihood[m] = log softmax_o(sum of log-probabilities of option o's tokens)[label]; an
    example is correct when its label has the largest sum (ties go to the first option).
    """
    width = max(len(example.choices) for example in questions.examples)
    sums = np.full((len(questions.examples), width), -np.inf)
    for group in questions.groups.values():
        sums[group['example'], group['option']] = option_sums(cfg, params, group, rows)
    labels = np.array([example.label for example in questions.examples])
    index = np.arange(len(labels))
    top = sums.max(axis=1, keepdims=True)
    normaliser = top[:, 0] + np.log(np.exp(sums - top).sum(axis=1))
    return Scores(
        ids=tuple(example.id for example in questions.examples),
        groups=tuple(example.group for example in questions.examples),
        log_likelihood=sums[index, labels] - normaliser,
        weight=np.ones(len(labels)),
        correct=(sums.argmax(axis=1) == labels).astype(np.float64),
    )


def option_sums(
    cfg: Config, params: Params, group: dict[str, np.ndarray], rows: int
) -> np.ndarray:
    """Summed log-probability [M] of the answer tokens of each row, in batches of one shape."""
    count, length = group['tokens'].shape
    per_batch = max(1, rows * cfg.positions // length)
    found = []
    for first in range(0, count, per_batch):
        part = {k: _filled(group[k][first:first + per_batch], per_batch)
                for k in ('tokens', 'segments', 'answer')}
        log_probs = np.asarray(score(cfg, params, part['tokens'], part['segments']), np.float64)
        found.append((log_probs * part['answer'][:, 1:]).sum(axis=1))
    return np.concatenate(found)[:count]


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(array, ((0, rows - len(array)), (0, 0)))
