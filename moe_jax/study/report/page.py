"""A finished report of any kind of study: written as files, printed to a terminal."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from moe_jax.base import files
from moe_jax.study.report import console as terminal
from moe_jax.study.report import html, markdown
from moe_jax.study.report.document import Block, Bullets, Figure, Heading, Paragraph, Section, Table

NO_PLOT = "Figures were not drawn: matplotlib is not installed (pip install 'moe-jax[plot]')."


@dataclass(frozen=True, eq=False)
class Page:
    """The written document, and the main tables and words of it that are printed.

    wide: titles of main tables that are printed only where all their numbers fit.
    """

    title: str
    document: tuple[Block, ...]
    main: tuple[Table, ...]
    sections: tuple[Section, ...]
    figures: tuple[Figure, ...]
    notice: str
    wide: frozenset[str] = frozenset()


def drawn(draw: Callable[[], tuple[Figure, ...]]) -> tuple[tuple[Figure, ...], str]:
    """The figures of `draw`, or the reason for none: matplotlib is an extra."""
    try:
        return draw(), ''
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != 'matplotlib':
            raise
        return (), NO_PLOT


def setup(parts: dict[str, dict[str, Any]]) -> list[Block]:
    """The facts of a study: its model, data, stages and machine."""
    items = []
    for part, values in sorted(parts.items()):
        listed = ', '.join(f'{key} {values[key]}' for key in sorted(values))
        items.append(f'{part}: {listed}')
    return [Heading(2, 'Setup'), Bullets(tuple(items))] if items else []


def said(section: Section) -> list[Block]:
    """A section as blocks."""
    blocks: list[Block] = [Heading(2, section.title)]
    blocks += [Paragraph(text) for text in section.paragraphs]
    return [*blocks, Bullets(section.bullets)] if section.bullets else blocks


def write(page: Page, folder: Path) -> None:
    """Writes report.md, report.html, table.md and figures/*.png, each atomically."""
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    for figure in page.figures:
        files.write(folder / 'figures' / f'{figure.name}.png', figure.png)
    texts = {
        'table.md': markdown.render(page.main),
        'report.md': markdown.render(page.document),
        'report.html': html.render(page.title, page.document),
    }
    for name, text in texts.items():
        files.write(folder / name, text)


def show(page: Page, console: Console, folder: Path | None = None) -> None:
    """Prints the main tables, the words, and the path of the report."""
    for table in page.main:
        # Half-printed numbers of many columns say less than the words below.
        if table.title not in page.wide or terminal.fits(table, console.width):
            terminal.show_table(table, console)
    for section in page.sections:
        terminal.show_section(section, console)
    if page.notice:
        console.print(Text(page.notice))
    if folder is not None:
        console.print(Text(f'Report: {folder / "report.html"}'))
