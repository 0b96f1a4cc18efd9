"""The report of a recovery study, made from its records alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_jax.study.report.document import Block, Figure, Heading, Paragraph, Section, Table
from moe_jax.study.report.page import Page, drawn, said, setup
from moe_jax.study.report.recovery import tables
from moe_jax.study.report.recovery.load import gather
from moe_jax.study.report.recovery.standings import Finding, finding
from moe_jax.study.report.recovery.values import Records
from moe_jax.study.report.recovery.words import words

ABOUT = 'recovery'  # the kind of study in the study's record


@dataclass(frozen=True, eq=False)
class Report:
    """A finished report and its folder (None: not written)."""

    records: Records
    finding: Finding
    sections: tuple[Section, ...]
    main: tuple[Table, ...]
    background: tuple[Table, ...]
    figures: tuple[Figure, ...]
    notice: str
    folder: Path | None = None


def build(records: Records, *, figures: bool = True) -> Report:
    """Makes a report from records, in memory."""
    outcome = finding(records)
    main = tuple(tables.answer(r, outcome, records) for r in outcome.rankings)
    by_task = [tables.by_task(r, records) for r in outcome.rankings]
    behind = [*by_task, tables.pretrained(records), tables.rates(records)]
    pictures, notice = drawn(lambda: _figures(records, outcome)) if figures else ((), '')
    return Report(records, outcome, words(outcome, records), main,
                  tuple(t for t in behind if t is not None), pictures, notice)


def from_records(records: Iterable[dict[str, Any]], problems: Iterable[str] = ()) -> Report:
    """A report from raw records and sentences on what is wrong with their file."""
    return build(gather(records, problems))


def page_of(report: Report) -> Page:
    """The written and printed parts: answer, picture, tables, caveats, background."""
    study = report.records.study
    answer, *rest = report.sections
    document: list[Block] = [Heading(1, study.name)]
    document += [Paragraph(text) for text in (study.description, report.notice) if text]
    document += [*said(answer), *report.figures, *report.main]
    for section in rest:
        document += said(section)
    if report.background:
        document += [Heading(2, 'Behind it'), *report.background]
    document += setup(study.setup)
    return Page(study.name, tuple(document), report.main, report.sections, report.figures,
                report.notice)


def _figures(records: Records, found: Finding) -> tuple[Figure, ...]:
    # Imported here because matplotlib is an extra: without it tables and words must still work.
    from moe_jax.pictures import style
    from moe_jax.study.report.recovery import figure

    with style.look():
        made = figure.draw(records, found)
        return () if made is None else (Figure('recovery', made[1], style.png(made[0])),)
