"""Everything a reader sees of a study, made from its records alone: words, tables, figures, page.

`write` makes files, `show` prints; half a study reports too, with '–' for what is missing.
"""

import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from moe_jax.study.report import background, html, markdown, tables
from moe_jax.study.report import console as terminal
from moe_jax.study.report.document import (
    Block,
    Bullets,
    Figure,
    Heading,
    Paragraph,
    Table,
)
from moe_jax.study.report.load import load
from moe_jax.study.report.methods import SIDE_BY_SIDE
from moe_jax.study.report.values import Records
from moe_jax.study.report.verdict import Verdict, verdict
from moe_jax.study.report.words import Section, words

__all__ = ['Report', 'build', 'load', 'show', 'verdict', 'words', 'write']

NO_PLOT = "Figures were not drawn: matplotlib is not installed (pip install 'moe-jax[plot]')."


@dataclass(frozen=True, eq=False)
class Report:
    """A finished report and where it lies (None: not written)."""

    records: Records
    verdict: Verdict
    sections: tuple[Section, ...]
    tables: dict[str, Table]
    figures: tuple[Figure, ...]
    notice: str
    folder: Path | None = None


def _figures(records: Records, found: Verdict) -> tuple[tuple[Figure, ...], str]:
    # Imported here because matplotlib is an extra: without it tables and words must still work.
    try:
        from moe_jax.study.report.figures import draw
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != 'matplotlib':
            raise
        return (), NO_PLOT
    return draw(records, found), ''


def build(records: Records, *, figures: bool = True) -> Report:
    """Makes a report from records, in memory."""
    found = verdict(records)
    made = {
        'answer': tables.answer(found, records),
        'accuracy': tables.accuracy(found, records),
        'quality': tables.quality(found, records),
        'recovery': background.recovery(records),
        'pretrained': background.pretrained(records),
        'heldout': background.heldout(records),
        'timings': background.timings(records),
    }
    made |= {f'methods from {z}': table for z, table in tables.methods(found).items()}
    drawn, notice = _figures(records, found) if figures else ((), '')
    kept = {name: table for name, table in made.items() if table is not None}
    return Report(records, found, words(found, records), kept, drawn, notice)


def _setup(records: Records) -> list[Block]:
    items = []
    for part, values in sorted(records.study.setup.items()):
        listed = ', '.join(f'{key} {values[key]}' for key in sorted(values))
        items.append(f'{part}: {listed}')
    return [Heading(2, 'Setup'), Bullets(tuple(items))] if items else []


def _said(section: Section) -> list[Block]:
    blocks: list[Block] = [Heading(2, section.title)]
    blocks += [Paragraph(text) for text in section.paragraphs]
    return [*blocks, Bullets(section.bullets)] if section.bullets else blocks


def blocks(report: Report) -> tuple[Block, ...]:
    """The whole document in reading order: answer, threshold, methods, tables, background."""
    study = report.records.study
    drawn = {figure.name: figure for figure in report.figures}
    said = {section.title: _said(section) for section in report.sections}

    def pictures(*wanted: str) -> list[Block]:
        return [drawn[name] for name in wanted if name in drawn]

    def grids(*wanted: str) -> list[Block]:
        return [report.tables[name] for name in wanted if name in report.tables]

    out: list[Block] = [Heading(1, study.name)]
    out += [Paragraph(text) for text in (study.description, report.notice) if text]
    out += [*said.pop('Answer'), *pictures('answer'), *grids('answer')]
    out += [*said.pop('Threshold factor', []), *pictures('threshold')]
    out += said.pop('Methods', [])
    out += [*said.pop(SIDE_BY_SIDE, []), *pictures('methods'), *grids(*_side_by_side(report))]
    for title in list(said):
        out += said.pop(title)
    out += [Heading(2, 'Results by task'), *grids('accuracy', 'quality'), *pictures('quality')]
    if 'recovery' in report.tables:
        out += [Heading(2, 'Recovery'), *pictures('recovery'), *grids('recovery')]
    inside = pictures('usage', 'embedding')
    if inside or 'pretrained' in report.tables:
        out += [Heading(2, 'Pretrained models'), *grids('pretrained', 'heldout'), *inside]
    out += _setup(report.records)
    if 'timings' in report.tables:
        out += [Heading(2, 'Timings'), *pictures('latency'), *grids('timings')]
    return tuple(out)


def _side_by_side(report: Report) -> list[str]:
    return [name for name in report.tables if name.startswith('methods from ')]


def _main(report: Report) -> list[str]:
    wanted = ('answer', *_side_by_side(report), 'accuracy', 'quality')
    return [name for name in wanted if name in report.tables]


def _replace(path: Path, data: bytes) -> None:
    # A reader sees the old file or the new one, never a part: a new sibling is renamed over it.
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}')
    try:
        with temporary.open('xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # What a full disk raises does not name the file.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write(records_path: str | Path, out_dir: str | Path) -> Report:
    """Writes report.md, report.html, table.md and figures/*.png, each atomically."""
    report = build(load(records_path))
    folder = Path(out_dir)
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    for figure in report.figures:
        _replace(folder / 'figures' / f'{figure.name}.png', figure.png)
    main = [report.tables[name] for name in _main(report)]
    document = blocks(report)
    files = {
        'table.md': markdown.render(main),
        'report.md': markdown.render(document),
        'report.html': html.render(report.records.study.name, document),
    }
    for name, text in files.items():
        _replace(folder / name, text.encode())
    return replace(report, folder=folder)


def show(report: Report, console: Console) -> None:
    """Prints the answer, the main tables and the words."""
    wide = set(_side_by_side(report))
    for name in _main(report):
        # Half-printed numbers of many columns say less than the words below.
        if name not in wide or terminal.fits(report.tables[name], console.width):
            terminal.show_table(report.tables[name], console)
    for section in report.sections:
        terminal.show_section(section, console)
    if report.notice:
        console.print(Text(report.notice))
    if report.folder is not None:
        console.print(Text(f'Report: {report.folder / "report.html"}'))
