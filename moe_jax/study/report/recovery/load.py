"""Read the records of a recovery study into values."""

from collections.abc import Iterable
from typing import Any

from moe_jax.study.report.expert_count.load import (
    examples_of,
    losses_of,
    notes_of,
    number,
    pretrain_of,
    setup_of,
)
from moe_jax.study.report.raw import Kinds, sort_out
from moe_jax.study.report.recovery.values import Outcome, Plan, Records, Recovered, Way


def _plan(record: dict[str, Any]) -> Plan:
    out = record['outputs']
    ways = tuple(Way(str(s['label']), str(s.get('title', s['name'])), s.get('experts'),
                     s.get('sparsity')) for s in out.get('shrinks', ()))
    return Plan(
        name=str(out.get('name', 'study')),
        description=str(out.get('description', '')),
        experts=out.get('experts'),
        ways=ways,
        recipes=tuple(str(recipe['label']) for recipe in out.get('recipes', ())),
        ceiling=str(out.get('ceiling', '')),
        tasks=tuple(str(task) for task in out.get('tasks', ())),
        notes=notes_of(out),
        seeds=tuple(int(seed) for seed in out.get('seeds', ())),
        rates=tuple(float(rate) for rate in out.get('rates', ())),
        tuning_rows=out.get('tuning_rows'),
        setup=setup_of(out),
        cells=frozenset(str(i) for i in out.get('cells') or ()),
    )


def _model(record: dict[str, Any]) -> Outcome:
    return Outcome(str(record['shrink']), str(record['recipe']))


def _search(out: dict[str, Any]) -> dict[float, float | None]:
    search = out.get('search') or {'rates': [], 'losses': []}
    losses = [None if x is None else number('search', x) for x in search['losses']]
    return dict(zip(map(float, search['rates']), losses, strict=True))


def _recovered(record: dict[str, Any]) -> Recovered:
    out = record['outputs']
    return Recovered(
        seed=int(record['seed']),
        task=str(record['task']),
        model=_model(record),
        rate=None if out.get('rate') is None else float(out['rate']),
        search=_search(out),
        train_seconds=number('train_seconds', out.get('train_seconds') or 0.0),
        trained=int(out.get('trained') or 0),
        zeros=number('zeros', out.get('zeros') or 0.0),
        examples=examples_of(out['examples']),
        domains=losses_of(out.get('domains') or {}),
    )


KINDS: Kinds = {
    'study': (_plan, lambda _: ()),
    'pretrain': (pretrain_of, lambda x: (x.experts, x.seed)),
    'recover': (_recovered, lambda x: (x.model, x.task, x.seed)),
}


def gather(records: Iterable[dict[str, Any]], problems: Iterable[str] = ()) -> Records:
    """Sorts raw records by kind, as `report.load.gather` does for expert-count studies."""
    study, values, problems = sort_out(records, KINDS, problems)
    return Records(
        study=study or Plan(),
        pretrains=values['pretrain'],
        recovered=values['recover'],
        problems=problems,
    )
