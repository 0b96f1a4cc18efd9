"""Multiple choice by the log-probability of each option's text after the prompt.

X examples, O options of the example that has most.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data.tasks.encode import Prompt, encode_score
from moe_jax.data.tasks.example import Example
from moe_jax.data.tokenizer import Marks
from moe_jax.evals.scores import Scores
from moe_jax.inference.continuations import score_continuations


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Examples, and the token ids of each."""

    examples: tuple[Example, ...]
    prompts: tuple[Prompt, ...]

    @classmethod
    def encode(cls, examples: Sequence[Example], tokenizer: Tokenizer, length: int, *,
               marks: Marks | None = None) -> 'Questions':
        """Examples of at most `length` tokens; ValueError where one does not fit."""
        return cls(tuple(examples), tuple(encode_score(examples, tokenizer, length, marks=marks)))


def evaluate(cfg: Config, params: Params, questions: Questions, *, rows: int = 32) -> Scores:
    """Score every option and normalize over each example's options, `rows` rows at a time.

    log_likelihood[m] = log softmax_o(sum of log-probabilities of option o's tokens)[label]; an
    example is correct when its label has the largest sum (ties go to the first option).
    """
    sums = option_sums(cfg, params, questions, rows)
    labels = np.array([example.label for example in questions.examples])
    index = np.arange(len(labels))
    top = sums.max(axis=1, keepdims=True)
    normalizer = top[:, 0] + np.log(np.exp(sums - top).sum(axis=1))
    return Scores(
        ids=tuple(example.id for example in questions.examples),
        groups=tuple(example.group for example in questions.examples),
        log_likelihood=sums[index, labels] - normalizer,
        weight=np.ones(len(labels)),
        correct=(sums.argmax(axis=1) == labels).astype(np.float64),
    )


def option_sums(cfg: Config, params: Params, questions: Questions, rows: int) -> np.ndarray:
    """Summed log-probability [X, O] of every option's tokens; -inf where an example has fewer.

    Raises ValueError where a context and its option exceed the model's positions.
    """
    pairs = [(context, option) for context, options in questions.prompts for option in options]
    longest = max(len(context) + len(option) for context, option in pairs)
    if longest > cfg.positions:
        raise ValueError(f'an example takes {longest} tokens; the model has {cfg.positions} '
                         'positions: encode the examples with that length')
    counts = np.array([len(options) for _, options in questions.prompts])
    sums = np.full((len(counts), counts.max()), -np.inf)
    sums[np.arange(counts.max())[None] < counts[:, None]] = score_continuations(
        cfg, params, pairs, batch=rows).log_prob
    return sums
