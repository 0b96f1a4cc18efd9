"""The values every task source yields: multiple-choice examples, tasks of them, tasks of text."""

import collections
import dataclasses

from moe_jax.data.prompts import Clip


@dataclasses.dataclass(frozen=True)
class Example:
    """One multiple-choice question: the context ends exactly where an answer's text begins.

    Every choice begins with a space; `label` is the index of the right one; examples of one
    `group` (a passage, a headword) belong on one side of a split. `clips` are the parts of the
    context that may be shortened to fit a model, in the order in which to shorten them.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    label: int
    group: str
    clips: tuple[Clip, ...] = ()

    def __post_init__(self):
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise ValueError(f'example {self.id}: needs two or more distinct choices, '
                             f'has {self.choices}')
        if not 0 <= self.label < len(self.choices):
            raise ValueError(f'example {self.id}: label {self.label} is not the index of one of '
                             f'{len(self.choices)} choices')
        for choice in self.choices:
            if not choice.startswith(' ') or not choice.strip():
                raise ValueError(f'example {self.id}: choice {choice!r} must be a space and '
                                 f'then text')

    @property
    def answer(self) -> str:
        """The text of the right choice, with its leading space."""
        return self.choices[self.label]


@dataclasses.dataclass(frozen=True)
class Task:
    """Labelled examples in a train and a validation part; `split_note` says how they were split."""

    name: str
    examples_train: tuple[Example, ...]
    examples_validation: tuple[Example, ...]
    split_note: str
    source: str

    def __post_init__(self):
        for part in ('train', 'validation'):
            if not getattr(self, f'examples_{part}'):
                raise ValueError(f'task {self.name!r}: no {part} examples from {self.source}; '
                                 f'give it more data')


@dataclasses.dataclass(frozen=True)
class TextTask:
    """Plain text to fine-tune on and to score the perplexity of."""

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    split_note: str
    source: str

    def __post_init__(self):
        for part in ('train', 'validation'):
            if not any(text.strip() for text in getattr(self, part)):
                raise ValueError(f'task {self.name!r}: no {part} text from {self.source}; '
                                 f'give it more documents')


def majority(task: Task) -> float:
    """The validation accuracy of the best constant answer: the share of the most common label.

    If the choices differ between examples, the label is the most common position.
    """
    labels = collections.Counter(example.label for example in task.examples_validation)
    return labels.most_common(1)[0][1] / labels.total()
