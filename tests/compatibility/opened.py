"""What files say when they are opened, through the public faces of the library alone.

make.py writes down what version 0.1 says of the files it writes, and test_written_by_0_1.py holds
later versions against that. A function takes a file or folder and returns {name: value}, of text,
numbers, lists, dicts and arrays.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import moe_jax
import prune
import train

TOKENS = (np.arange(5, dtype=np.int32) * 11 % 64)[None]  # [1, 5]

MODELS = ('plain', 'base', 'aliases', 'constants', 'skip', 'latent_groups')
STATISTICS = ('plain', 'groups')

# Training: eight steps, of which a stopped run has done some.
OPTIONS = train.TrainOptions(steps=8, batch=4, length=12, peak_lr=1e-2, warmup=2, log_every=1,
                             checkpoint_every=3)
FRESH = moe_jax.Config(
    vocab=64, positions=12, width=8, heads=2, mlp_hidden=8, expert_hidden=8, experts=(4,), topk=2,
    norm='rms', ffn_bias=False, qkv_bias=False, out_bias=False, balance=0.02, zloss=0.001,
    jitter=0.01)
PARTS = train.Trainable(experts={0: [1, 3]}, rank=2, alpha=4.0, on='attn/q')
TSEP = train.Tsep(window=4, least=3, final=2, beta=0.5, until=6)  # drops after the stop, too
DISTILL = train.Distill(logits=1.0, temperature=2.0, hidden=0.5, layers=(1,))
TEACH = {'batch': 4, 'top': 5, 'temperature': 2.0, 'layers': (1,), 'dtype': 'float16'}

FOREIGN = prune.Foreign(
    layers=['block/moe'], topk=1, gate='softmax_topk_renorm', ffn='gelu',
    router=prune.Leaf('router', axis=1),
    experts={'up': prune.Leaf('up', axis=2), 'down': prune.Leaf('down/{e}', transposed=True)})


class Recipe(NamedTuple):
    """How a plan is made: the names of its model and statistics, and plan(stats, params, cfg)."""

    model: str
    statistics: str
    make: Callable[..., prune.Plan]


def _by(method: str, experts: int = 3, **options: Any) -> Callable[..., prune.Plan]:
    return lambda stats, params, cfg: prune.plan(method, stats, params, cfg, experts=experts,
                                                 **options)


def _sparse(method: str, **options: Any) -> Callable[..., prune.Plan]:
    return lambda stats, params, cfg: prune.sparsify(method, stats, params, cfg, **options)


def _composed(stats: moe_jax.Stats, params: Any, cfg: moe_jax.Config) -> prune.Plan:
    first = _by('frequency')(stats, params, cfg)
    small, small_cfg = prune.apply(params, cfg, first)
    return first.then(prune.sparsify('magnitude', None, small, small_cfg, sparsity=0.5))


PLANS = {
    'drop': Recipe('base', 'plain', _by('frequency')),
    'closed': Recipe('base', 'plain', _by('reap', gates='preserve_mass')),
    'merge': Recipe('base', 'plain', _by('m_smoe')),
    'fresh': Recipe('base', 'plain', _by('uncurl')),
    'shift': Recipe('base', 'plain', _by('uncurl', router_init='logsumexp')),
    'rank': Recipe('base', 'plain', _by('sub_moe', by='routed', rank=3)),
    'constants': Recipe('skip', 'groups', _by('mone', group='a')),
    'masks': Recipe('base', 'plain', _sparse('wanda', pattern=(2, 4))),
    'values': Recipe('skip', 'groups', _sparse('sparsegpt', sparsity=0.5)),
    'composed': Recipe('base', 'plain', _composed),
}


# What is noted of arrays.


def leaves(tree: Any, at: str = '') -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of nested dicts with their paths."""
    if hasattr(tree, 'items'):
        for name in sorted(tree):
            yield from leaves(tree[name], f'{at}/{name}'.lstrip('/'))
    else:
        yield at, np.asarray(tree)


def exact(tree: Any) -> dict[str, str]:
    """Dtype, shape and a digest of the bytes of every array: for what is read as it was written."""
    return {path: f'{a.dtype} {list(a.shape)} {hashlib.sha256(a.tobytes()).hexdigest()[:12]}'
            for path, a in leaves(tree)}


def close(tree: Any) -> dict[str, list[float]]:
    """Norm and a projection of every array: for what is computed anew, up to rounding."""
    found = {}
    for path, array in leaves(tree):
        flat = array.astype(np.float64).ravel()
        found[path] = [float(np.linalg.norm(flat)), float(flat @ np.cos(np.arange(flat.size)))]
    return found


# One function for each kind of file.


def model(folder: Path) -> dict[str, Any]:
    """A model folder, native or of transformers."""
    cfg, params = moe_jax.load(folder)
    return {'config': json.loads(cfg.to_json()), 'weights': exact(params),
            'logits': np.asarray(moe_jax.apply(cfg, params, TOKENS))}


def statistics(path: Path) -> dict[str, Any]:
    """A file of statistics."""
    stats = moe_jax.Stats.load(path)
    groups = {group: {str(i): exact(sums) for i, sums in layers.items()}
              for group, layers in stats.groups.items()}
    return {'groups': groups, 'layers': list(stats.layers), 'fingerprint': stats.fingerprint,
            'tokenizer': stats.tokenizer, 'data': stats.data, 'reservoir': stats.reservoir}


def plan_of(plan: prune.Plan) -> dict[str, Any]:
    """What a plan says, in words and numbers."""
    layers = {}
    for i, layer in plan.layers.items():
        arrays = {name: getattr(layer, name) for name in
                  ('mix', 'perms', 'router', 'router_shift', 'alias', 'constants')}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        arrays |= {'masks': layer.masks, 'weights': layer.weights}
        notes = {name: note for name, note in layer.notes.items() if isinstance(note, np.ndarray)}
        words = {name: note for name, note in layer.notes.items() if name not in notes}
        layers[str(i)] = {'arrays': exact(arrays), 'fresh': layer.fresh, 'rank': layer.rank,
                          'notes': exact(notes), 'words': words}
    return {'layers': layers, 'method': plan.method, 'experts': list(plan.experts),
            'width': plan.width, 'expert_hidden': plan.expert_hidden, 'model': plan.model,
            'data': plan.data, 'options': dict(plan.options), 'clamp': plan.clamp}


def plan(root: Path, name: str, file: str | None = None) -> dict[str, Any]:
    """A plan's file (`name` if it has no other), and the model that it makes."""
    found = prune.Plan.load(root / 'plans' / f'{file or name}.npz')
    cfg, params = moe_jax.load(root / 'models' / PLANS[name].model)
    small, cfg = prune.apply(params, cfg, found)
    changed = {'experts': list(cfg.experts), 'topk': cfg.topk, 'constants': list(cfg.constants),
               'aliases': [alias and list(alias) for alias in cfg.aliases], 'clamp': cfg.clamp}
    moe = {str(i): small[f'layer_{i}']['moe'] for i in cfg.moe_layers}
    return plan_of(found) | {'small': changed, 'weights': close(moe),
                             'logits': np.asarray(moe_jax.apply(cfg, small, TOKENS))[:, -2:]}


def planned(root: Path, name: str) -> dict[str, Any]:
    """The numbers of a plan made once more, from statistics on file."""
    recipe = PLANS[name]
    cfg, params = moe_jax.load(root / 'models' / recipe.model)
    stats = moe_jax.Stats.load(root / 'statistics' / f'{recipe.statistics}.npz')
    made = recipe.make(stats, params, cfg)
    return {str(i): close({'mix': layer.mix, 'masks': layer.masks, 'weights': layer.weights}
                          | ({} if layer.router is None else {'router': layer.router}))
            for i, layer in made.layers.items()}


def foreign(root: Path) -> dict[str, Any]:
    """A foreign tree made smaller by a plan on file."""
    found = prune.Plan.load(root / 'plans/foreign.npz')
    return plan_of(found) | {'small': close(FOREIGN.apply(foreign_params(root), found))}


def foreign_params(root: Path) -> dict[str, Any]:
    """The foreign tree: one MoE layer of four experts, in an order of axes that is not ours."""
    with np.load(root / 'foreign.npz') as file:
        moe = {name: file[name] for name in ('router', 'up')}
        moe['down'] = {name.partition('/')[2]: file[name] for name in file.files
                       if name.startswith('down/')}
    return {'block': {'moe': moe}}


def taught(root: Path) -> dict[str, Any]:
    """A student that learns from what a teacher said, on file."""
    with np.load(root / 'teacher.npz') as file:
        packed = {name: file[name] for name in file.files}
    cfg, params = moe_jax.load(root / 'models/aliases')
    options = dataclasses.replace(OPTIONS, steps=3)
    new, history = train.distill(cfg, params, None, packed, options, DISTILL)
    return {'signals': exact(packed), 'history': history, 'weights': close(new)}


# Runs of training: given an empty folder they start, given a stopped run they go on.


def rows(number: int = 0) -> dict[str, np.ndarray]:
    """Packed rows [16, 12] made by counting: two documents and some padding in each."""
    i, j = np.arange(16)[:, None], np.arange(12)[None]
    segments = np.broadcast_to(np.where(j < 6, 1, np.where(j < 11, 2, 0)), (16, 12))
    weights = (1 + (i + j) % 3 / 4) * ((segments > 0) & (j != 0) & (j != 6))
    tokens = 2 + (i * 37 + j * 11 + i * j * 5 + number * 17) % 62
    return {'tokens': tokens.astype(np.int32), 'segments': segments.astype(np.int32),
            'weights': weights.astype(np.float32)}


def _pretrain(root: Path, **where: Any) -> tuple[Any, list[dict]]:
    return train.pretrain(FRESH, [(rows(0), 2.0), (rows(1), 1.0)], OPTIONS, **where)


def _parts(root: Path, **where: Any) -> tuple[Any, list[dict]]:
    cfg, params = moe_jax.load(root / 'models/skip')
    options = dataclasses.replace(OPTIONS, trainable=PARTS)
    return train.finetune(cfg, params, rows(), options, **where)


def _tsep(root: Path, **where: Any) -> tuple[Any, list[dict]]:
    cfg, params = moe_jax.load(root / 'models/skip')
    options = dataclasses.replace(OPTIONS, trainable=train.TRAINABLE['routers'])
    new, small, history = train.tsep(cfg, params, rows(), options, TSEP, **where)
    return {'experts': np.array(small.experts), **new}, history


RUNS = {'pretrain': _pretrain, 'parts': _parts, 'tsep': _tsep}


def run(root: Path, name: str, out: Path | None) -> tuple[int, dict[str, Any]]:
    """A run begun or gone on with: the first step that was computed, and how it ends."""
    steps = []
    new, history = RUNS[name](root, out=out,
                              progress=lambda step, total, metrics: steps.append(step))
    return steps[0], {'history': history, 'weights': close(new)}


def last_state(root: Path, name: str) -> dict[str, Any]:
    """Where a stopped run stands, by its newest checkpoint."""
    options = dataclasses.replace(OPTIONS, trainable=PARTS if name == 'parts' else None)
    if name == 'pretrain':
        params = moe_jax.init(FRESH, jax.random.key(options.seed))
    else:
        params = moe_jax.load(root / 'models/skip')[1]
    state = train.last_state(root / 'runs' / name, params, options)
    return {'step': int(state.step), 'weights': exact(train.params_of(state, options))}


def trained_by_command(out: Path) -> dict[str, Any]:
    """How a run of `moe-jax train` ends, by its folder."""
    history = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    cfg, params = moe_jax.load(out / 'model')
    stands_for = prune.stands_for(prune.Plan.load(out / 'model/plan.npz'))
    return {'history': history, 'weights': close(params), 'config': json.loads(cfg.to_json()),
            'stands_for': {str(i): matrix.tolist() for i, matrix in stands_for.items()}}
