"""Raw records: read from a file, told apart by the kind of study, sorted by kind of cell."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

EXPERT_COUNT = 'expert count'
# By kind of record: its reader, and the key that distinguishes its cells.
Kinds = dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[Any], tuple]]]


def read(path: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The raw records of a file of JSON lines, possibly still being written, and its problems."""
    return _lines(Path(path).read_text(encoding='utf-8', errors='replace'))


def about(records: Iterable[dict[str, Any]]) -> str:
    """The kind of study of raw records, by the last record that names one."""
    kinds = [r['outputs'].get('about') for r in records
             if r['kind'] == 'study' and isinstance(r.get('outputs'), dict)]
    return str(kinds[-1] or EXPERT_COUNT) if kinds else EXPERT_COUNT


def _lines(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    lines = text.split('\n')
    found, torn = [], 0
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            # A torn last line is a run still writing, or killed while writing: its cell is redone.
            torn += number < len(lines) - 1
            continue
        if isinstance(record, dict) and 'id' in record and 'kind' in record:
            found.append(record)
        else:
            torn += 1
    problems = [f'{torn} unreadable line(s) in the records file were left out.'] if torn else []
    return found, problems


def sort_out(
    records: Iterable[dict[str, Any]], kinds: Kinds, problems: Iterable[str] = ()
) -> tuple[Any, dict[str, tuple], tuple[str, ...]]:
    """Sorts raw records by kind; a later record of the same id, or of the same cell, wins.

    Returns the study's record of itself (None: it has none), the values of each other kind in the
    order of their cells, and sentences on what was left out: a record that cannot be used is named,
    records that do not belong to the study's plan are counted; kinds not in `kinds` are passed
    over.
    """
    by_id = {str(record['id']): record for record in records}
    problems = list(problems)
    studies, _ = _sorted_out(by_id, kinds, ('study',), problems)
    study = studies['study'][-1] if studies['study'] else None
    if study is not None and study.cells:
        strangers = [i for i, r in by_id.items() if r['kind'] != 'study' and i not in study.cells]
        if strangers:
            problems.append(
                f'{len(strangers)} record(s) belong to an earlier form of the study, not to its '
                'present plan, and were left out.'
            )
        by_id = {i: record for i, record in by_id.items() if i not in set(strangers)}
    others = tuple(kind for kind in kinds if kind != 'study')
    values, clashes = _sorted_out(by_id, kinds, others, problems)
    if clashes:
        problems.append(
            f'{clashes} record(s) describe a cell that a later record describes again; the later '
            'one counts.'
        )
    return study, values, tuple(sorted(problems))


def _sorted_out(
    by_id: dict[str, dict[str, Any]], kinds: Kinds, wanted: tuple[str, ...], problems: list[str]
) -> tuple[dict[str, tuple], int]:
    """Values of some kinds, each in the order of its cell; adds to `problems`, counts clashes."""
    values: dict[str, dict[tuple, Any]] = {kind: {} for kind in wanted}
    clashes = 0
    for identity, record in by_id.items():
        if record['kind'] not in wanted:
            continue
        parse, key = kinds[record['kind']]
        try:
            value = parse(record)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            why = f'no {error}' if isinstance(error, KeyError) else str(error)
            problems.append(f'{record["kind"]} record {identity} was left out: {why}.')
            continue
        cell = key(value)
        clashes += cell in values[record['kind']]
        values[record['kind']][cell] = value
    return {kind: tuple(cells[k] for k in sorted(cells)) for kind, cells in values.items()}, clashes
