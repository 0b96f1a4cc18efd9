"""A made-up study with planted differences: what the report must find again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

EXPERTS = (4, 8, 16, 32)
KEEP = {8: (4,), 16: (8, 4), 32: (16, 8, 4)}
STAGES = ('shrunk', 'warmed', 'prefinetuned', 'finetuned')
METHODS = ('uncurl', 'frequency', 'frequency_merge', 'm_smoe', 'random')
PENALTY = {
    'uncurl': 0.0,
    'frequency': 0.02,
    'frequency_merge': 0.015,
    'm_smoe': 0.004,
    'random': 0.05,
}
CHOICE = ('entails', 'causes', 'refers', 'headword')
TEXT = ('lm-code', 'lm-speeches')


def gain(experts: int, keep: int) -> float:
    """The planted truth, nats over from scratch: larger models help, larger factors hurt."""
    return 0.03 + 0.012 * np.log2(experts / 8) - 0.022 * np.log2(experts / keep) ** 1.3


def identity(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def study(
    seeds: tuple[int, ...] = (0,),
    methods: tuple[str, ...] = METHODS,
    examples: int = 120,
    tasks: tuple[str, ...] = CHOICE + TEXT,
    planted: Callable[[int, int], float] = gain,
    keep: dict[int, tuple[int, ...]] = KEEP,
    noise: float = 0.05,
) -> list[dict]:
    """Records of a whole study; `planted(Z, G)` is UNCURL minus from scratch in nats."""
    experts = tuple(sorted({*keep, *(g for kept in keep.values() for g in kept)}))
    records = [_plan(seeds, methods, examples, tasks, experts, keep)]
    for seed in seeds:
        records += [_pretrain(seed, z) for z in experts]
        pairs = [(z, g) for z, kept in keep.items() for g in kept]
        for number, task in enumerate(tasks):
            rng = np.random.default_rng([7, number])
            base = _task(rng, task, examples)
            for g in experts:
                records.append(_score(seed, task, g, g, 'none', base, 0.0, noise))
            for z, g in pairs:
                for method in methods:
                    shift = planted(z, g) - PENALTY.get(method, 0.03)
                    records.append(_score(seed, task, z, g, method, base, shift, noise))
        records += [_latency(seed, experts), *(_usage(seed, z) for z in experts)]
        records += [_embedding(seed, z, g, tasks[0]) for z, g in pairs]
    return records


def write(path: Path, records: list[dict]) -> Path:
    path.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
    return path


def _plan(seeds, methods, examples, tasks, experts, keep) -> dict:
    notes = {
        t: {
            'split_note': 'Split by document: no speech is in both parts.'
            if t in CHOICE
            else 'Windows of held-out documents.',
            'metric': 'choice' if t in CHOICE else 'text',
            'majority': 0.55 if t in CHOICE else None,
            'examples': examples,
        }
        for t in tasks
    }
    outputs = {
        'name': 'Expert count',
        'description': 'Is it better to pretrain more experts and shrink, or to pretrain few?',
        'experts': list(experts),
        'keep': {str(z): list(kept) for z, kept in keep.items()},
        'tasks': list(tasks),
        'task_notes': notes,
        'methods': list(methods),
        'seeds': list(seeds),
        'steps': {'pretrain': 3000, 'warm': 100, 'prefinetune': 500, 'finetune': 300},
        'tokens': {'pretrain': 12_000_000},
        'model': {'width': 128, 'layers': 4},
        'machine': {'device': 'cpu', 'cores': 2},
        'versions': {'jax': '0.10.2'},
    }
    return {'id': identity('study'), 'kind': 'study', 'outputs': outputs}


def _pretrain(seed: int, z: int) -> dict:
    outputs = {
        'domains': {
            d: base - 0.05 * float(np.log2(z))
            for d, base in (('speeches', 4.1), ('drama', 4.6), ('dictionary', 3.9), ('code', 2.8))
        },
        'parameters': 1_200_000 + 260_000 * z,
        'active': 1_460_000 + 128 * z,
        'tokens': 12_000_000,
        'curve': [[0, 9.0], [3000, 4.0]],
    }
    return {
        'id': identity('pretrain', seed, z),
        'kind': 'pretrain',
        'seed': seed,
        'experts': z,
        'seconds': 40.0 + z,
        'outputs': outputs,
    }


def _task(rng: np.random.Generator, task: str, examples: int) -> dict:
    groups = rng.integers(examples // 3, size=examples)
    shared = rng.normal(0, 0.4, examples // 3)[groups]
    text = task in TEXT
    return {
        'id': [f'{task}-{i}' for i in range(examples)],
        'group': [f'document {g}' for g in groups],
        'log_likelihood': (-3.4 if text else -0.75) + shared + rng.normal(0, 0.3, examples),
        'weight': rng.integers(60, 128, examples) if text else np.ones(examples),
        'text': text,
    }


def _score(seed, task, z, g, method, base, shift, noise) -> dict:
    salt = int(identity(seed, task, z, g, method), 16)
    rng = np.random.default_rng(salt)
    count = len(base['id'])
    size = 0.05 * float(np.log2(g))
    values = base['log_likelihood'] + size + shift + rng.normal(0, noise, count)
    if not base['text']:
        values = np.minimum(values, -0.01)
    correct = None if base['text'] else (values > -0.75).astype(int).tolist()
    final = float(np.average(values, weights=base['weight']))
    lag = {'shrunk': 1.4, 'warmed': 0.5, 'prefinetuned': 0.12, 'finetuned': 0.0}
    if method in ('frequency', 'random'):
        lag |= {'shrunk': 0.9, 'warmed': 0.6}
    stages = [s for s in STAGES if s != 'warmed'] if method == 'none' else STAGES
    found = [
        {
            'stage': s,
            'step': 100 * n,
            'log_likelihood': final - lag[s] * np.log2(2 * z / g),
            'accuracy': None if correct is None else float(np.mean(correct)),
        }
        for n, s in enumerate(stages)
    ]
    outputs = {
        'stages': found,
        'examples': {
            'id': base['id'],
            'group': base['group'],
            'log_likelihood': values.tolist(),
            'weight': base['weight'].tolist(),
            'correct': correct,
        },
        'domains': {'speeches': 4.0},
    }
    return {
        'id': identity('score', seed, task, z, g, method),
        'kind': 'score',
        'seed': seed,
        'task': task,
        'experts': z,
        'keep': g,
        'method': method,
        'seconds': 12.5,
        'outputs': outputs,
    }


def _latency(seed: int, experts: tuple[int, ...]) -> dict:
    rng = np.random.default_rng(seed)
    outputs = {
        'experts': list(experts),
        'milliseconds': {str(z): (9 + 1.4 * z + rng.gamma(2, 0.6, 9)).tolist() for z in experts},
        'tokens': 4096,
        'parameters': {str(z): 4 * (1_200_000 + 260_000 * z) for z in experts},
    }
    return {'id': identity('latency', seed), 'kind': 'latency', 'seed': seed, 'outputs': outputs}


def _usage(seed: int, z: int) -> dict:
    rng = np.random.default_rng([seed, z])
    shares = {str(i): rng.dirichlet(np.full(z, 0.6), 4).tolist() for i in (0, 2)}
    domains = ['speeches', 'drama', 'dictionary', 'code']
    return {
        'id': identity('usage', seed, z),
        'kind': 'usage',
        'seed': seed,
        'experts': z,
        'outputs': {'domains': domains, 'layers': shares},
    }


def _embedding(seed: int, z: int, g: int, task: str) -> dict:
    rng = np.random.default_rng([seed, z, g])
    layers = {}
    for i in (0, 2):
        labels = np.concatenate([np.arange(g), rng.integers(g, size=z - g)])
        angle = 2 * np.pi * labels / g
        points = np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.12, (z, 2))
        layers[str(i)] = {
            'points': points.tolist(),
            'labels': labels.tolist(),
            'count': rng.gamma(1, 400, z).round().tolist(),
        }
    return {
        'id': identity('embedding', seed, z, g, task),
        'kind': 'embedding',
        'seed': seed,
        'experts': z,
        'keep': g,
        'task': task,
        'outputs': {'layers': layers},
    }
