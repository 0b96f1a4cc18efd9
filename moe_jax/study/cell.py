"""Cells of studies: each a computation whose identity is the hash of all its inputs."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from moe_jax.study.material import Material
from train.loop.identity import FREE
from train.loop.options import TrainOptions

FORMAT = 1  # raise it when the same inputs would give other results
SCORED = 0.35  # work of a scored token in units of a trained one, for the time estimate only


@dataclasses.dataclass(frozen=True)
class Cell:
    """One computation: `inputs` determine its result and id; `about` is for people and records."""

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
        """The id of the pretrain cell whose model this cell reads; None if it reads none."""
        model = self.inputs['model']
        return model if isinstance(model, str) else None


def deciding(options: TrainOptions) -> dict[str, Any]:
    """The options that determine the result of a run, without how often it logs or saves."""
    fields = dataclasses.asdict(options)
    if options.keep_zeros is None:  # ids of runs from before this option stay the same
        del fields['keep_zeros']
    return {name: value for name, value in fields.items() if name not in FREE}


def pretrain_cell(study: Any, material: Material, experts: int, seed: int) -> Cell:
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


def tokens(options: TrainOptions) -> float:
    """The number of tokens of a training run."""
    return float(options.steps * options.accumulate * options.batch * options.length)
