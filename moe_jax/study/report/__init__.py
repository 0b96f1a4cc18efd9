"""Reports of studies, made from records alone: words, tables, figures, page.

`write` makes files, `show` prints; half a study reports too, with '–' for what is missing. The
records say which kind of study they are of: expert counts or recovery.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from moe_jax.study.report import page, raw, recovery
from moe_jax.study.report.expert_count import report as expert_count
from moe_jax.study.report.page import Page

Report = expert_count.Report | recovery.Report
# By kind of study: from raw records and their problems to a report, and from this to its page.
Builder = Callable[[Iterable[dict[str, Any]], Iterable[str]], Any]
BUILD: dict[str, Builder] = {
    raw.EXPERT_COUNT: expert_count.from_records, recovery.ABOUT: recovery.from_records,
}
PAGES: dict[type, Callable[[Any], Page]] = {
    expert_count.Report: expert_count.page_of, recovery.Report: recovery.page_of,
}


def write(records_path: str | Path, out_dir: str | Path) -> Report:
    """Writes report.md, report.html, table.md and figures/*.png, each atomically."""
    records, problems = raw.read(records_path)
    kind = raw.about(records)
    if kind not in BUILD:
        raise ValueError(f'{records_path}: records of a study about {kind!r}; this version reports '
                         f'on {", ".join(BUILD)}')
    report = BUILD[kind](records, problems)
    page.write(PAGES[type(report)](report), Path(out_dir))
    return replace(report, folder=Path(out_dir))


def show(report: Report, console: Console) -> None:
    """Prints the answer, the main tables and the words."""
    page.show(PAGES[type(report)](report), console, report.folder)
