"""Mappings from a raw row of a published data set to an Example, for every file format.

The mappings accept the columns of the Hugging Face copies (super_glue, glue, winogrande), of the
original SuperGLUE v2 JSON lines (nested passages, labels as words or booleans), and a generic
layout {context, choices, label, group?}. Errors name the file, the row and the column.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from moe_jax.data import prompts
from moe_jax.data.tasks.example import Example
from moe_jax.data.tasks.splits import group_key

YES_NO = (' yes', ' no')
NO_YES = (' no', ' yes')


class Row(NamedTuple):
    """One record and its place in its file, for errors."""

    values: Mapping[str, Any]
    where: str

    def column(self, *names: str) -> Any:
        """The value of the first of these columns that the row has."""
        for name in names:
            if name in self.values:
                return self.values[name]
        raise ValueError(f'{self.where}: no column {" or ".join(map(repr, names))}; '
                         f'columns are {sorted(self.values)}')

    def text(self, *names: str) -> str:
        """A text column, white space collapsed."""
        value = self.column(*names)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f'{self.where}: column {names[0]!r} is {value!r}, not text')
        return ' '.join(value.split())

    def label(self, classes: Sequence[str], *names: str) -> int:
        """A label column as an index: an index, a boolean or the name of a class."""
        value = self.column(*names)
        if isinstance(value, str) and value in classes:
            return classes.index(value)
        if value is None or value in (-1, ''):
            raise ValueError(f'{self.where}: column {names[0]!r} is {value!r}: an unlabeled '
                             f'(test) row; give labeled rows only')
        if not isinstance(value, int) or not 0 <= value < len(classes):
            raise ValueError(f'{self.where}: column {names[0]!r} is {value!r}; labels are '
                             f'0..{len(classes) - 1} or {list(classes)}')
        return int(value)


class Item(NamedTuple):
    """The contents of a row before the prompt: fields of the template, choices, label, group."""

    fields: dict[str, str]
    choices: tuple[str, ...]
    label: int
    group: str


def statement(text: str) -> str:
    """A sentence without its period, for use inside a question."""
    return text.rstrip(' .?!')


def boolq(row: Row) -> Item:
    """A yes/no question on a passage; grouped by passage."""
    passage = row.text('passage')
    return Item({'passage': passage, 'question': row.text('question').rstrip(' ?')}, NO_YES,
                row.label(('False', 'True'), 'label', 'answer'), group_key(passage))


def rte(row: Row) -> Item:
    """Whether a hypothesis follows from a premise (SuperGLUE or GLUE columns); by premise."""
    premise = row.text('premise', 'sentence1')
    hypothesis = statement(row.text('hypothesis', 'sentence2'))
    return Item({'premise': premise, 'hypothesis': hypothesis}, YES_NO,
                row.label(('entailment', 'not_entailment'), 'label'), group_key(premise))


def cb(row: Row) -> Item:
    """Whether a speaker holds a clause to be true, false or open; by premise."""
    premise, hypothesis = row.text('premise'), statement(row.text('hypothesis'))
    return Item({'premise': premise, 'hypothesis': hypothesis}, (*YES_NO, ' maybe'),
                row.label(('entailment', 'contradiction', 'neutral'), 'label'), group_key(premise))


def copa(row: Row) -> Item:
    """The likelier of two causes or effects of a premise; by premise."""
    premise, relation = row.text('premise'), row.column('question')
    asks = {'cause': 'why did it happen', 'effect': 'what came of it'}
    if relation not in asks:
        raise ValueError(f"{row.where}: column 'question' is {relation!r}, not one of {list(asks)}")
    choices = (f' {row.text("choice1")}', f' {row.text("choice2")}')
    return Item({'premise': premise, 'ask': asks[relation]}, choices,
                row.label(('choice1', 'choice2'), 'label'), group_key(premise))


def winogrande(row: Row) -> Item:
    """Which of two options fills the blank; by the pair of options."""
    sentence, first, second = row.text('sentence'), row.text('option1'), row.text('option2')
    if '_' not in sentence:
        raise ValueError(f"{row.where}: column 'sentence' has no _ to fill: {sentence!r}")
    # Twin sentences share their two options, in either order, so these are the group.
    return Item({'sentence': sentence}, (f' {first}', f' {second}'),
                row.label(('1', '2'), 'answer'),
                group_key(*sorted((first.lower(), second.lower()))))


def wsc(row: Row) -> Item:
    """Whether a pronoun, marked *so*, stands for a noun; by text."""
    text, pronoun, noun = row.text('text'), row.text('span2_text'), row.text('span1_text')
    words, start = text.split(), row.column('span2_index')
    length = len(pronoun.split())
    if not isinstance(start, int) or not 0 <= start <= len(words) - length:
        raise ValueError(f"{row.where}: column 'span2_index' is {start!r}, outside the "
                         f'{len(words)} words of the text')
    marked = f'*{" ".join(words[start:start + length])}*'
    return Item({'text': ' '.join([*words[:start], marked, *words[start + length:]]),
                 'pronoun': f'*{pronoun}*', 'noun': noun}, NO_YES,
                row.label(('False', 'True'), 'label'), group_key(text))


def wic(row: Row) -> Item:
    """Whether a word has one sense in two sentences; by word."""
    word = row.text('word')
    return Item({'word': word, 'sentence1': row.text('sentence1'),
                 'sentence2': row.text('sentence2')}, NO_YES,
                row.label(('False', 'True'), 'label'), group_key(word))


def multirc(row: Row) -> Item:
    """Whether an answer to a question on a paragraph is right; by paragraph."""
    paragraph = re.sub(r'<b>Sent \d+: </b>|<br>', ' ', row.text('paragraph'))
    return Item({'paragraph': ' '.join(paragraph.split()), 'question': row.text('question'),
                 'answer': statement(row.text('answer'))}, NO_YES,
                row.label(('False', 'True'), 'label'), group_key(paragraph))


def record(row: Row) -> Item | None:
    """ReCoRD with one right entity: further right ones are no options, for accuracy needs one.

    None if every entity is right, because there is nothing to choose.
    """
    answers = list(row.column('answers'))
    if not answers:
        raise ValueError(f"{row.where}: column 'answers' is empty: an unlabeled (test) row; "
                         f'give labeled rows only')
    gold, entities = answers[0], dict.fromkeys(row.column('entities'))
    if gold not in entities:
        raise ValueError(f"{row.where}: column 'answers' has {gold!r}, which is not in 'entities'")
    left = [entity for entity in entities if entity == gold or entity not in answers]
    if len(left) < 2:
        return None
    passage = ' '.join(row.text('passage').replace('@highlight', ' ').split())
    return Item({'passage': passage, 'query': row.text('query').replace('@placeholder', '_')},
                tuple(f' {entity}' for entity in left), left.index(gold), group_key(passage))


def sst2(row: Row) -> Item:
    """Whether a film review praises; by sentence."""
    sentence = row.text('sentence')
    return Item({'sentence': sentence}, NO_YES,
                row.label(('negative', 'positive'), 'label'), group_key(sentence))


ROWS: dict[str, Callable[[Row], Item | None]] = {
    'boolq': boolq, 'rte': rte, 'cb': cb, 'copa': copa, 'winogrande': winogrande, 'wsc': wsc,
    'wic': wic, 'multirc': multirc, 'record': record, 'sst2': sst2}


def flatten(name: str, values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The flat rows of one line of the original SuperGLUE files; a flat row is itself."""
    passage = values.get('passage')
    if name == 'wsc' and isinstance(values.get('target'), Mapping):
        yield {**values, **values['target']}
    elif name == 'multirc' and isinstance(passage, Mapping):
        for question in passage['questions']:
            for answer in question['answers']:
                yield {'paragraph': passage['text'], 'question': question['question'],
                       'answer': answer['text'], 'label': answer.get('label', -1)}
    elif name == 'record' and isinstance(passage, Mapping):
        # The published spans include their last character.
        entities = [passage['text'][span['start']:span['end'] + 1] for span in passage['entities']]
        for query in values['qas']:
            yield {'passage': passage['text'], 'entities': entities, 'query': query['query'],
                   'answers': [answer['text'] for answer in query.get('answers', ())]}
    else:
        yield values


def generic(row: Row, id: str) -> Example:
    """A row {context, choices, label, group?}: the context verbatim, a space before each choice."""
    if 'context' not in row.values:
        raise ValueError(f'{row.where}: not the layout of a known task ({", ".join(ROWS)}), so it '
                         f'needs columns context, choices, label; columns are '
                         f'{sorted(row.values)}')
    context, choices = row.values['context'], row.column('choices')
    if not isinstance(context, str) or not context.strip():
        raise ValueError(f"{row.where}: column 'context' is {context!r}, not text")
    if not isinstance(choices, list | tuple) or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"{row.where}: column 'choices' is {choices!r}, not a list of texts")
    label = row.label([choice.strip() for choice in choices], 'label')
    group = row.values.get('group') or group_key(context)
    context = context.rstrip(' ')
    return Example(id, context, tuple(' ' + choice.strip() for choice in choices), label,
                   str(group), (prompts.Clip(0, len(context), 'tail'),))


def shaped(name: str, row: Row, id: str) -> Example | None:
    """A row of a known layout in the prompt of its task; None if there is nothing to choose."""
    item = ROWS[name](row)
    if item is None:
        return None
    context, clips = prompts.render(name, item.fields, item.choices)
    return Example(id, context, item.choices, item.label, item.group, clips)


def examples(name: str, rows: Iterable[Mapping[str, Any]], where: str, part: str = 'all',
             ) -> tuple[Example, ...]:
    """Rows of task `name`, read from the file `where`, as Examples with ids 'name/part/number'.

    A name without a layout of its own takes the generic one. Raises ValueError naming file, row
    (from 0) and column.
    """
    made, number = [], 0
    for index, values in enumerate(rows):
        try:
            flats = tuple(flatten(name, values))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}, row {index}: column 'passage' is nested, but not as in the "
                             f'original files ({error!r})') from error
        for flat in flats:
            row, id = Row(flat, f'{where}, row {index}'), f'{name}/{part}/{number}'
            number += 1
            try:
                example = shaped(name, row, id) if name in ROWS else generic(row, id)
            except ValueError as error:
                text = str(error)
                raise ValueError(text if text.startswith(where) else
                                 f'{row.where}: {text}') from error
            if example is not None:
                made.append(example)
    if not made:
        raise ValueError(f'{where}: no rows for task {name!r}; give a file with labeled rows')
    return tuple(made)
