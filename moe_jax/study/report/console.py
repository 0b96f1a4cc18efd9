"""Print tables and words to a terminal, without intervals where it is too narrow for them."""

from dataclasses import replace

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from moe_jax.study.report.document import Cell, Section, Table

TONES = {'better': 'green', 'worse': 'red', 'noise': 'default', '': 'default'}


def _width(table: Table, detailed: bool) -> int:
    columns = zip(*table.rows, strict=True) if table.rows else ((),) * len(table.columns)
    total = 0
    for head, cells in zip(table.columns, columns, strict=True):
        texts = [head, *(c.text for c in cells), *(c.detail for c in cells if detailed)]
        total += max(map(len, texts)) + 2
    return total


def fits(table: Table, width: int) -> bool:
    """Whether every number can be printed whole, without intervals and with wrapped headings."""
    words = [max(head.split(), key=len, default='') for head in table.columns]
    return _width(replace(table, columns=tuple(words)), False) <= width


def _text(cell: Cell, detailed: bool) -> Text:
    text = Text(cell.text, style=TONES[cell.tone])
    return text.append(f'\n{cell.detail}', style='dim') if detailed and cell.detail else text


def grid(table: Table, width: int) -> Grid:
    """A rich table that fits `width` columns, with intervals where there is room."""
    detailed = _width(table, True) <= width
    made = Grid(
        title=Text(table.title),
        title_justify='left',
        title_style='bold',
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style='bold',
    )
    for n, column in enumerate(table.columns):
        made.add_column(
            Text(column), justify='right' if n else 'left', no_wrap=not detailed and n == 0
        )
    for n, row in enumerate(table.rows):
        if n in table.rules:
            made.add_row()
        made.add_row(*(_text(cell, detailed) for cell in row))
    return made


def show_table(table: Table, console: Console) -> None:
    console.print(grid(table, console.width))
    if table.note:
        console.print(Text(table.note, style='dim'))
    console.print()


def show_section(section: Section, console: Console) -> None:
    console.print(Text(section.title, style='bold'))
    for paragraph in section.paragraphs:
        console.print(Text(paragraph))
    bullets = Grid.grid(padding=(0, 1))
    for bullet in section.bullets:
        bullets.add_row(Text('-', style='dim'), Text(bullet))
    if section.bullets:
        console.print(bullets)
    console.print()
