"""The records of a study read into values; unusable records are left out and reported."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.study.report.expert_count.values import (
    SCRATCH,
    Clusters,
    Embedding,
    Examples,
    Latency,
    Model,
    Parallel,
    Pretrain,
    Records,
    Score,
    Stage,
    Study,
    TaskNote,
    Usage,
)
from moe_jax.study.report.raw import Kinds, read, sort_out

SETUP = ('model', 'data', 'steps', 'tokens', 'machine', 'versions')


def _finite(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    bad = int(np.sum(~np.isfinite(array)))
    if bad:
        raise ValueError(f'{name}: {bad} of {array.size} values are not finite')
    return array


def number(name: str, value: Any) -> float:
    return float(_finite(name, value))


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


def losses_of(domains: dict[str, Any]) -> dict[str, float]:
    return {str(k): number(f'domains/{k}', v) for k, v in domains.items()}


def notes_of(out: dict[str, Any]) -> dict[str, TaskNote]:
    """The notes of a study on each of its tasks."""
    return {
        str(task): TaskNote(
            split_note=str(note.get('split_note') or ''),
            metric=note.get('metric'),
            majority=None if note.get('majority') is None else float(note['majority']),
            examples=_count(note.get('examples')),
        )
        for task, note in (out.get('task_notes') or {}).items()
    }


def setup_of(out: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The facts of a study: its model, data, stages and machine."""
    return {key: dict(out[key]) for key in SETUP if out.get(key)}


def _study(record: dict[str, Any]) -> Study:
    out = record['outputs']
    return Study(
        name=str(out.get('name', 'study')),
        description=str(out.get('description', '')),
        experts=tuple(sorted(int(n) for n in out.get('experts', ()))),
        keep={int(z): tuple(int(d) for d in ds) for z, ds in (out.get('keep') or {}).items()},
        tasks=tuple(str(task) for task in out.get('tasks', ())),
        notes=notes_of(out),
        methods=tuple(str(m) for m in out.get('methods', ()) if m != SCRATCH),
        seeds=tuple(int(s) for s in out.get('seeds', ())),
        setup=setup_of(out),
        cells=frozenset(str(i) for i in out.get('cells') or ()),
    )


def pretrain_of(record: dict[str, Any]) -> Pretrain:
    out = record['outputs']
    return Pretrain(
        seed=int(record['seed']),
        experts=int(record['experts']),
        seconds=float(record.get('seconds') or 0.0),
        domains=losses_of(out['domains']),
        parameters=_count(out.get('parameters')),
        active=_count(out.get('active')),
        tokens=_count(out.get('tokens')),
    )


def examples_of(out: dict[str, Any]) -> Examples:
    values = _finite('examples/log_likelihood', out['log_likelihood'])
    weight = _finite('examples/weight', out['weight'])
    correct = out.get('correct')
    correct = None if correct is None else _finite('examples/correct', correct)
    lengths = {'id': len(out['id']), 'group': len(out['group']), 'log_likelihood': values.size}
    lengths['weight'] = weight.size
    if correct is not None:
        lengths['correct'] = correct.size
    if len(set(lengths.values())) != 1 or values.ndim != 1:
        raise ValueError(f'examples: lists of different lengths {lengths}')
    if not values.size or np.any(weight < 0) or not np.any(weight > 0):
        raise ValueError(f'examples: {values.size} examples, weights sum to {weight.sum():g}')
    ids = tuple(str(i) for i in out['id'])
    return Examples(ids, tuple(str(g) for g in out['group']), values, weight, correct)


def _score(record: dict[str, Any]) -> Score:
    out = record['outputs']
    stages = tuple(
        Stage(
            name=str(stage['stage']),
            step=int(stage.get('step') or 0),
            log_likelihood=number('stages/log_likelihood', stage['log_likelihood']),
            accuracy=None if stage.get('accuracy') is None else float(stage['accuracy']),
        )
        for stage in out.get('stages', ())
    )
    model = Model(int(record['experts']), int(record['keep']), str(record['method']))
    if not 0 < model.keep <= model.experts:
        raise ValueError(f'{model}: keep must lie in 1..experts')
    if (model.method == SCRATCH) != (model.keep == model.experts):
        raise ValueError(f'{model}: method {SCRATCH!r} goes with keep == experts, and only with it')
    return Score(
        seed=int(record['seed']),
        task=str(record['task']),
        model=model,
        seconds=float(record.get('seconds') or 0.0),
        stages=stages,
        examples=examples_of(out['examples']),
        domains=losses_of(out.get('domains') or {}),
    )


def _latency(record: dict[str, Any]) -> Latency:
    out = record['outputs']
    rounds = {
        int(n): tuple(_finite(f'milliseconds/{n}', values).tolist())
        for n, values in out['milliseconds'].items()
    }
    if not rounds or not all(rounds.values()):
        raise ValueError('milliseconds: no rounds')
    sizes = {int(n): int(size) for n, size in (out.get('parameters') or {}).items()}
    return Latency(int(record['seed']), rounds, _count(out.get('tokens')), sizes)


def _parallel(record: dict[str, Any]) -> Parallel:
    out = record['outputs']
    measured = {
        int(experts): {int(n): tuple(_finite(f'milliseconds/{experts}/{n}', values).tolist())
                       for n, values in degrees.items()}
        for experts, degrees in out['milliseconds'].items()
    }
    modelled = {
        str(device): {
            int(experts): {int(n): float(_finite(f'modelled/{device}/{experts}', value))
                           for n, value in degrees.items()}
            for experts, degrees in counts.items()
        }
        for device, counts in out['modelled'].items()
    }
    if not measured or not all(r for degrees in measured.values() for r in degrees.values()):
        raise ValueError('milliseconds: no rounds')
    return Parallel(int(record['seed']), _count(out.get('tokens')), measured, modelled)


def _usage(record: dict[str, Any]) -> Usage:
    out = record['outputs']
    domains = tuple(str(d) for d in out['domains'])
    layers = {int(i): _finite(f'layers/{i}', shares) for i, shares in out['layers'].items()}
    wanted = (len(domains), int(record['experts']))
    for i, shares in layers.items():
        if shares.shape != wanted:
            raise ValueError(f'layers/{i}: shape {shares.shape}, not [domains, experts] {wanted}')
    return Usage(int(record['seed']), wanted[1], domains, dict(sorted(layers.items())))


def _embedding(record: dict[str, Any]) -> Embedding:
    experts = int(record['experts'])
    layers = {}
    for i, layer in record['outputs']['layers'].items():
        clusters = Clusters(
            _finite(f'layers/{i}/points', layer['points']),
            np.asarray(layer['labels'], dtype=np.int64),
            _finite(f'layers/{i}/count', layer['count']),
        )
        shapes = (clusters.points.shape, clusters.labels.shape, clusters.count.shape)
        if shapes != ((experts, 2), (experts,), (experts,)):
            raise ValueError(f'layers/{i}: points, labels, count have shapes {shapes}')
        layers[int(i)] = clusters
    return Embedding(
        seed=int(record['seed']),
        experts=experts,
        keep=int(record['keep']),
        task=str(record['task']),
        layers=dict(sorted(layers.items())),
    )


KINDS: Kinds = {
    'study': (_study, lambda _: ()),
    'pretrain': (pretrain_of, lambda x: (x.experts, x.seed)),
    'score': (_score, lambda x: (x.task, x.model, x.seed)),
    'latency': (_latency, lambda x: (x.seed,)),
    'parallel': (_parallel, lambda x: (x.seed,)),
    'usage': (_usage, lambda x: (x.experts, x.seed)),
    'embedding': (_embedding, lambda x: (x.experts, x.keep, x.task, x.seed)),
}


def gather(records: Iterable[dict[str, Any]], problems: Iterable[str] = ()) -> Records:
    """The records of an expert-count study as values (`sort_out`)."""
    study, values, problems = sort_out(records, KINDS, problems)
    return Records(
        study=_complete(study or Study(), values['pretrain'], values['score']),
        pretrains=values['pretrain'],
        scores=values['score'],
        latencies=values['latency'],
        usages=values['usage'],
        embeddings=values['embedding'],
        problems=problems,
        parallels=values['parallel'],
    )


def _complete(study: Study, pretrains: tuple[Pretrain, ...], scores: tuple[Score, ...]) -> Study:
    """The plan plus all cells measured outside it, so that no record is invisible."""
    shrunk = [s.model for s in scores if s.model.method != SCRATCH]
    experts = {p.experts for p in pretrains} | {s.model.experts for s in scores}
    keep = {z: set(ds) for z, ds in study.keep.items()}
    for model in shrunk:
        keep.setdefault(model.experts, set()).add(model.keep)
    unplanned = sorted({s.task for s in scores} - set(study.tasks))
    # Without a plan the question of this library decides which method a verdict is about.
    methods = {m.method for m in shrunk} - set(study.methods)
    methods = sorted(methods, key=lambda m: (m != 'uncurl', m))
    return Study(
        name=study.name,
        description=study.description,
        experts=tuple(sorted(experts | set(study.experts) | set(keep))),
        keep={z: tuple(sorted(keep[z], reverse=True)) for z in sorted(keep)},
        tasks=study.tasks + tuple(unplanned),
        notes=study.notes,
        methods=study.methods + tuple(methods),
        seeds=tuple(
            sorted({*study.seeds, *(p.seed for p in pretrains), *(s.seed for s in scores)})
        ),
        setup=study.setup,
        cells=study.cells,
    )


def load(path: str | Path) -> Records:
    """The records of an expert-count study, from its file."""
    return gather(*read(path))
