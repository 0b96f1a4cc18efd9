"""The report of an expert-count study, from its records alone: words, tables, figures, page."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_jax.study.report import page
from moe_jax.study.report.document import Block, Figure, Heading, Paragraph, Section, Table
from moe_jax.study.report.expert_count import background, parallel, tables
from moe_jax.study.report.expert_count.load import gather
from moe_jax.study.report.expert_count.methods import SIDE_BY_SIDE
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict, verdict
from moe_jax.study.report.expert_count.words import words
from moe_jax.study.report.page import Page


@dataclass(frozen=True, eq=False)
class Report:
    """A finished report and its folder (None: not written)."""

    records: Records
    verdict: Verdict
    sections: tuple[Section, ...]
    tables: dict[str, Table]
    figures: tuple[Figure, ...]
    notice: str
    folder: Path | None = None


def _figures(records: Records, found: Verdict) -> tuple[tuple[Figure, ...], str]:
    def draw() -> tuple[Figure, ...]:
        # Imported here because matplotlib is an extra: tables and words must work without it.
        from moe_jax.study.report import figures

        return figures.draw(records, found)

    return page.drawn(draw)


def build(records: Records, *, figures: bool = True) -> Report:
    """Makes a report from records, in memory."""
    outcome = verdict(records)
    made = {
        'answer': tables.answer(outcome, records),
        'accuracy': tables.accuracy(outcome, records),
        'quality': tables.quality(outcome, records),
        'recovery': background.recovery(records),
        'pretrained': background.pretrained(records),
        'heldout': background.heldout(records),
        'timings': background.timings(records),
        'parallel': parallel.table(records),
    }
    made |= {f'methods from {z}': table for z, table in tables.methods(outcome).items()}
    drawn, notice = _figures(records, outcome) if figures else ((), '')
    kept = {name: table for name, table in made.items() if table is not None}
    return Report(records, outcome, words(outcome, records), kept, drawn, notice)


def blocks(report: Report) -> tuple[Block, ...]:
    """The whole document in reading order: answer, threshold, methods, tables, background."""
    study = report.records.study
    drawn = {figure.name: figure for figure in report.figures}
    said = {section.title: page.said(section) for section in report.sections}

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
    out += page.setup(report.records.study.setup)
    if 'timings' in report.tables:
        out += [Heading(2, 'Timings'), *pictures('latency'), *grids('timings', 'parallel')]
    return tuple(out)


def _side_by_side(report: Report) -> list[str]:
    return [name for name in report.tables if name.startswith('methods from ')]


def _main(report: Report) -> list[str]:
    wanted = ('answer', *_side_by_side(report), 'accuracy', 'quality')
    return [name for name in wanted if name in report.tables]


def page_of(report: Report) -> Page:
    """The written and printed parts of the report of an expert-count study."""
    return Page(
        title=report.records.study.name,
        document=blocks(report),
        main=tuple(report.tables[name] for name in _main(report)),
        sections=report.sections,
        figures=report.figures,
        notice=report.notice,
        wide=frozenset(report.tables[name].title for name in _side_by_side(report)),
    )


def from_records(records: Iterable[dict[str, Any]], problems: Iterable[str]) -> Report:
    """The report of raw records and of the problems with some of them."""
    return build(gather(records, problems))
