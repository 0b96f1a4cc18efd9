"""The cells of a study: each a computation whose identity is the hash of all its inputs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import prune
from moe_jax.study.expert_count.spec import Method, Study
from moe_jax.study.material import Material
from moe_jax.study.recovery.spec import RecoveryStudy
from train.loop.options import TrainOptions
from train.loop.store import FREE

FORMAT = 1  # raise it when the same inputs would give other results
# Work of a token in units of one trained token, for the time estimate only.
SCORED, ROUTER_ONLY = 0.35, 0.8
# How often latency over devices is measured, and of which devices it is modelled.
PARALLEL_ROUNDS, MODELLED = 9, ('h100', 'v5e')


@dataclasses.dataclass(frozen=True)
class Cell:
    """`inputs` decide the result and hence the id; `about` is for people and records."""

    kind: str
    inputs: Mapping[str, Any]
    about: Mapping[str, Any]
    work: float

    @property
    def id(self) -> str:
        text = json.dumps([FORMAT, self.kind, self.inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def title(self) -> str:
        a = self.about
        shrunk = f'{a["experts"]}->{a["keep"]}' if 'keep' in a else a.get('experts', '')
        if self.kind == 'score':
            what = f'{a["method"]} {shrunk}' if a['method'] != 'none' else f'scratch {a["keep"]}'
        elif 'recipe' in a:
            what = f'{self.kind} {a["shrink"]}, {a["recipe"]}'
        else:
            what = f'{self.kind} {shrunk}'.strip()
        task = f' on {a["task"]}' if 'task' in a else ''
        return f'{what}{task} (seed {a["seed"]})'

    @property
    def parent(self) -> str | None:
        """The id of the pretrain cell whose model this one reads, if it does."""
        model = self.inputs['model']
        return model if isinstance(model, str) else None


def cells(study: Study, material: Material) -> list[Cell]:
    """Every cell of a study, in the order to run them: what others need comes first."""
    found = []
    for seed in study.seeds:
        models = {z: pretrain_cell(study, material, z, seed) for z in study.experts}
        found += models.values()
        found += [_usage(study, material, models[z], seed) for z in study.experts]
        if seed == study.seeds[0]:
            found += [_latency(study, seed), _parallel(study, seed)]
            found += [_embedding(study, material, models[z], z, g, seed) for z, g in study.pairs]
        for task in study.tasks:
            found += [_score(study, material, models[z], task, z, g, method, seed)
                      for z, g, method in compared(study)]
    return found


def compared(study: Study) -> list[tuple[int, int, Method | None]]:
    """(Z, G, method) of every model that is recovered and scored; method None is not shrunk."""
    return [
        *((z, z, None) for z in study.experts),
        *((z, g, study.main) for z, g in study.pairs),
        *((z, g, rival) for rival in study.rivals for z, g in study.rival_pairs),
    ]


def stage_options(study: Study, seed: int) -> dict[str, TrainOptions]:
    """The recovery's stages by name, seeded for one run."""
    stages = {name: getattr(study.recovery, name) for name in ('warm', 'prefinetune', 'finetune')}
    return {name: dataclasses.replace(s, seed=seed) for name, s in stages.items()}


def method_options(method: Method, seed: int) -> dict[str, Any]:
    """The options of a method in one run: its own seed, where it has one, is the run's."""
    seeded = {'seed': seed} if 'seed' in prune.options(method.name) else {}
    return seeded | dict(method.options)


def _method(method: Method | None, seed: int) -> dict[str, Any] | None:
    if method is None:
        return None
    return {'name': method.name, 'options': method_options(method, seed)}


def deciding(options: TrainOptions) -> dict[str, Any]:
    """What decides the result of a run: how often it logs or saves does not."""
    fields = dataclasses.asdict(options)
    if options.keep_zeros is None:  # runs from before there was such an option stay what they are
        del fields['keep_zeros']
    return {name: value for name, value in fields.items() if name not in FREE}


def pretrain_cell(study: Study | RecoveryStudy, material: Material, experts: int, seed: int
                  ) -> Cell:
    """The pretraining of one model; the same in every kind of study."""
    options = dataclasses.replace(study.pretrain, seed=seed)
    return Cell(
        'pretrain',
        {'model': json.loads(study.model_with(experts).to_json()), 'data': material.digest,
         'options': deciding(options), 'capacity': study.capacity,
         'rows': study.score_rows},
        {'experts': experts, 'seed': seed},
        tokens(options),
    )


def _usage(study: Study, material: Material, model: Cell, seed: int) -> Cell:
    inputs = {'model': model.id, 'data': material.digest, 'capacity': study.capacity,
              'rows': study.score_rows}
    return Cell('usage', inputs, {'experts': model.about['experts'], 'seed': seed},
                SCORED * study.heldout_tokens * len(material.heldout))


def _latency(study: Study, seed: int) -> Cell:
    counts = sorted({*study.experts, *(g for _, g in study.pairs)})
    inputs = {'model': json.loads(study.model.to_json()), 'experts': counts,
              'rows': study.score_rows, 'length': study.pretrain.length,
              'capacity': study.capacity}
    return Cell('latency', inputs, {'seed': seed},
                SCORED * len(counts) * 15 * study.score_rows * study.pretrain.length)


def _parallel(study: Study, seed: int) -> Cell:
    one = _latency(study, seed)
    inputs = one.inputs | {'degrees': list(study.parallel), 'rounds': PARALLEL_ROUNDS,
                           'devices': list(MODELLED)}
    return Cell('parallel', inputs, one.about, one.work)


def _embedding(study: Study, material: Material, model: Cell, z: int, g: int, seed: int) -> Cell:
    task = study.tasks[0]
    inputs = {'model': model.id, 'keep': g, 'method': _method(study.main, seed),
              'task': material.tasks[task].digest, 'tokens': study.observe_tokens,
              'capacity': study.capacity, 'rows': study.score_rows,
              'coordinates': (1, 3) if g > 2 else (0, 2)}
    return Cell('embedding', inputs, {'experts': z, 'keep': g, 'task': task, 'seed': seed},
                SCORED * study.observe_tokens)


def _score(study: Study, material: Material, model: Cell, task: str, z: int, g: int,
           method: Method | None, seed: int) -> Cell:
    stages = stage_options(study, seed)
    inputs = {
        'model': model.id, 'keep': g, 'method': _method(method, seed), 'data': material.digest,
        'task': material.tasks[task].digest, 'capacity': study.capacity,
        'others': {n: m.digest for n, m in sorted(material.tasks.items()) if n != task},
        'stages': {name: deciding(options) for name, options in stages.items()},
        'text_share': study.recovery.text_share, 'tokens': study.observe_tokens,
        'rows': study.score_rows,
    }
    work = tokens(stages['warm']) * ROUTER_ONLY
    work += tokens(stages['prefinetune']) + tokens(stages['finetune'])
    work += SCORED * study.heldout_tokens * (len(stages) + 1 + len(material.heldout))
    label = 'none' if method is None else method.label
    about = {'experts': z, 'keep': g, 'method': label, 'task': task, 'seed': seed}
    return Cell('score', inputs, about, work)


def tokens(options: TrainOptions) -> float:
    """How many tokens a run of training takes."""
    return float(options.steps * options.accumulate * options.batch * options.length)
