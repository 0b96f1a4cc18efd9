"""Docstrings and tables as markdown, for the page of methods."""

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from prune.inputs.method import Method
from prune.inputs.statistics import option, options_for


def prose(
    doc: str | None, names: Collection[str] = (), label: Callable[[str], str] | None = None
) -> str:
    """A docstring as markdown: lines 'name: meaning' of the `names` become a list.

    label(name): what stands for a name in the list; by default the name as code. An item ends with
    its paragraph, or where a line that is not indented follows a full stop.
    """
    assert doc is not None  # python -OO alone leaves docstrings out
    out, item = [], False
    for line in _items_by_line(doc, names):
        heading = _item(line, names)
        if heading is not None:
            heads = ', '.join(label(n) if label else f'`{n}`' for n in heading)
            out += [''] if not item and out and out[-1] else []
            out.append(f'- {heads}: {line.partition(": ")[2]}')
        elif item and line and not (line[0] != ' ' and out[-1].endswith('.')):
            out.append('  ' + line.strip())
            continue
        else:
            out += ['', line] if item and line else [line]
        item = heading is not None
    return '\n'.join(out)


def fields_text(kind: type) -> str:
    """A dataclass's docstring as markdown, its section of attributes as a list."""
    text, _, attributes = inspect.cleandoc(kind.__doc__ or '').partition('\n\nAttributes:\n')
    return prose(f'{text}\n\n{textwrap.dedent(attributes)}', list(kind.__dataclass_fields__))


def documented(doc: str, names: Collection[str]) -> set[str]:
    """Which of the names a docstring has a line for."""
    return {n for line in _items_by_line(doc, names) for n in _item(line, names) or ()}


def options_text(function: Callable[..., Any], chosen: Mapping[str, Any]) -> str:
    """A function's docstring as markdown, its options with their defaults and other values."""
    hints = typing.get_type_hints(function)

    def label(option: str) -> str:
        valid = typing.get_args(hints[option]) if (
            typing.get_origin(hints[option]) is Literal) else ()
        others = ', '.join(f'`{v!r}`' for v in valid if v != chosen[option])
        return f'`{option}` = `{chosen[option]!r}`' + (f' (or {others})' if others else '')

    assert function.__doc__ is not None  # as in `prose`
    mentioned = documented(function.__doc__, chosen)
    rest = '\n'.join(f'- {label(option)}' for option in chosen if option not in mentioned)
    return '\n\n'.join(filter(None, [prose(function.__doc__, chosen, label), rest]))


def _items_by_line(doc: str, names: Collection[str]) -> list[str]:
    """The lines of a docstring, with a line break before 'a, b: ' where it follows a sentence."""
    text = inspect.cleandoc(doc)
    if names:
        name = '|'.join(names)
        text = re.sub(rf'[.;]\s+((?:{name})(?:,\s+(?:{name}))*): ',
                      lambda found: '.\n' + ' '.join(found[1].split()) + ': ', text)
    return text.splitlines()


def _item(line: str, names: Collection[str]) -> list[str] | None:
    """The names that a line 'a, b: meaning' is about, if all of them are among `names`."""
    match = re.match(r'([a-z_0-9]+(?:, [a-z_0-9]+)*): ', line)
    labels = match[1].split(', ') if match else []
    return labels if labels and set(labels) <= set(names) else None


def reads(needs: Collection[str]) -> str:
    """' (reads ...)', with the option of `moe_jax.observe`; nothing for no needs."""
    how = '; '.join(dict.fromkeys(filter(None, map(option, needs))))
    return (f' (reads {code_list(needs)}' + (f'; observe with `{how}`' if how else '') + ')'
            if needs else '')


def observing(method: Method) -> list[str]:
    """What to observe for a method under its default options; no line where it reads nothing."""
    needs = method.reads(method.options)
    call = ', '.join(f'{key}={value!r}' for key, value in options_for(needs).items())
    if not needs:
        return []
    return [f'Observe with `{call}`.' if call else 'Observe with the default options.']


def one_line(function: Callable[..., Any], most: int | None = None) -> str:
    """The first paragraphs of a docstring (default: all) in one line."""
    assert function.__doc__ is not None  # as in `prose`
    paragraphs = inspect.cleandoc(function.__doc__ or '').split('\n\n')[:most]
    return ' '.join(' '.join(paragraphs).split())


def code_list(names: Collection[str]) -> str:
    """Names as code, with commas between."""
    return ', '.join(f'`{name}`' for name in names)


def markdown_table(columns: Collection[str], lines: Collection[Collection[str]]) -> str:
    """A table of lines of cells."""
    out = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    return '\n'.join(out + ['| ' + ' | '.join(line) + ' |' for line in lines]) + '\n'
