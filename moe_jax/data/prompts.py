"""One prompt template per task, and the parts that may be shortened to fit a small context.

The form is the one UNCURL describes in its appendix (arXiv 2409.00879): the input, the options,
then the output. The paper's wording is not published with it, so the words here are our own.
Tasks whose options are long or many (a continuation, a definition, the entities of a passage) do
not list them: listing four would take most of a 128-token context, and the language model scores
each option in place anyway.
"""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple


class Clip(NamedTuple):
    """Characters [start, end) of a context that may be shortened, and which end of them to keep."""

    start: int
    end: int
    keep: Literal['head', 'tail']


@dataclasses.dataclass(frozen=True)
class Template:
    """A prompt with {fields}; `clips` lists (field, end to keep) in the order of shortening.

    The field {options} is made from the choices. Text that no clip names is never shortened.
    """

    text: str
    clips: tuple[tuple[str, Literal['head', 'tail']], ...]


TEMPLATES = {
    'boolq': Template(
        'Input: {passage}\nQuestion: {question}?\nOptions: {options}\nOutput:',
        (('passage', 'head'), ('question', 'tail'))),
    'rte': Template(
        'Input: {premise}\nQuestion: is this true then: {hypothesis}?\n'
        'Options: {options}\nOutput:',
        (('premise', 'head'), ('hypothesis', 'head'))),
    'cb': Template(
        'Input: {premise}\nQuestion: does the speaker believe that {hypothesis}?\n'
        'Options: {options}\nOutput:',
        (('premise', 'tail'), ('hypothesis', 'head'))),
    'copa': Template(
        'Input: {premise}\nQuestion: {ask}?\nOptions: {options}\nOutput:',
        (('premise', 'head'),)),
    'winogrande': Template(
        'Input: {sentence}\nQuestion: what stands at _?\nOptions: {options}\nOutput:',
        (('sentence', 'head'),)),
    'wsc': Template(
        'Input: {text}\nQuestion: does {pronoun} mean {noun}?\nOptions: {options}\nOutput:',
        (('text', 'tail'),)),
    'wic': Template(
        'Input: {sentence1} / {sentence2}\nQuestion: does {word} mean the same in both?\n'
        'Options: {options}\nOutput:',
        (('sentence1', 'tail'), ('sentence2', 'head'))),
    'multirc': Template(
        'Input: {paragraph}\nQuestion: {question} Is it: {answer}?\nOptions: {options}\nOutput:',
        (('paragraph', 'head'), ('answer', 'head'), ('question', 'tail'))),
    'record': Template(
        'Input: {passage}\nQuestion: what stands at _? {query}\nOutput:',
        (('passage', 'head'), ('query', 'head'))),
    'sst2': Template(
        'Input: {sentence}\nQuestion: is this praise?\nOptions: {options}\nOutput:',
        (('sentence', 'tail'),)),
    'domain_id': Template(
        'Input: {passage}\nQuestion: where is this from?\nOptions: {options}\nOutput:',
        (('passage', 'head'),)),
    'next_passage': Template(
        'Input: {passage}\nQuestion: how does it go on?\nOutput:',
        (('passage', 'tail'),)),
    'gloss_choice': Template(
        'Input: {headword}\nQuestion: what does it mean?\nOutput:',
        (('headword', 'head'),)),
}


def options(choices: Sequence[str]) -> str:
    """The choices as one line: '(A) no (B) yes'."""
    if len(choices) > len(string.ascii_uppercase):
        raise ValueError(f'options: {len(choices)} choices, more than the alphabet; '
                         f'use a template without {{options}}')
    return ' '.join(f'({letter}) {choice.strip()}'
                    for letter, choice in zip(string.ascii_uppercase, choices, strict=False))


def render(task: str, fields: Mapping[str, str], choices: Sequence[str],
           ) -> tuple[str, tuple[Clip, ...]]:
    """The context of one example, ending where the answer begins, and its clips.

    Raises KeyError for a task without template or a field that the template needs.
    """
    if task not in TEMPLATES:
        raise KeyError(f'render: no prompt for task {task!r}; there are {sorted(TEMPLATES)}')
    template = TEMPLATES[task]
    context = ''
    spans: dict[str, tuple[int, int]] = {}
    for literal, field, _, _ in string.Formatter().parse(template.text):
        context += literal
        if field is None:
            continue
        if field != 'options' and field not in fields:
            raise KeyError(f'render: the prompt of {task!r} needs the field {field!r}; '
                           f'given are {sorted(fields)}')
        start = len(context)
        context += options(choices) if field == 'options' else fields[field]
        spans[field] = (start, len(context))
    return context, tuple(Clip(*spans[field], keep) for field, keep in template.clips)
