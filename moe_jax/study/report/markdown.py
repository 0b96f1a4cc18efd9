"""Print a document as GitHub Markdown; text of records can neither break it nor bring in HTML."""

import re
from collections.abc import Iterable

from moe_jax.study.report.document import Block, Bullets, Cell, Figure, Heading, Paragraph, Table

# An interval such as [+0.1, +0.2] stays as it is: a link needs its ']' before '(', '[' or ':'.
SPECIAL = re.compile(r'([\\`*|~]|\[(?![+-]\d)|\](?=[(\[:])|(?<!\w)_|_(?!\w))')


def escape(text: str) -> str:
    """One line in which no character is markup; '<' becomes an entity, as some tags pass GitHub."""
    flat = ' '.join(text.split())
    flat = flat.replace('&', '&amp;').replace('<', '&lt;')
    # "->" reads better raw and cannot open a tag once every '<' is gone.
    flat = SPECIAL.sub(r'\\\1', flat)
    return re.sub(r'^([#>+-]|\d+[.)])(?=\s|$)', r'\\\1', flat)


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    return f'{text}<br>{escape(cell.detail)}' if cell.detail else text


def table(value: Table) -> str:
    """A pipe table under its title; numbers right-aligned."""
    lines = [f'| {" | ".join(escape(c) for c in value.columns)} |']
    lines.append(f'| :-- |{" --: |" * (len(value.columns) - 1)}')
    lines += [f'| {" | ".join(_cell(c) for c in row)} |' for row in value.rows]
    note = f'\n\n{escape(value.note)}' if value.note else ''
    return f'**{escape(value.title)}**\n\n' + '\n'.join(lines) + note


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f'{"#" * level} {escape(text)}'
        case Paragraph(text):
            return escape(text)
        case Bullets(items):
            return '\n'.join(f'- {escape(item)}' for item in items)
        case Figure(name, caption, _):
            return f'![{name}](figures/{name}.png)\n\n*{escape(caption)}*'
        case Table():
            return table(block)


def render(blocks: Iterable[Block]) -> str:
    """The whole document, ending with one newline."""
    return '\n\n'.join(_block(block) for block in blocks) + '\n'
