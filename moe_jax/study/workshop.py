"""A study at work: the models and statistics that its cells share, and their pretraining."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prune
import train
from moe_jax.base.files import point, replacing
from moe_jax.base.tree import Params
from moe_jax.calibration.observe import observe
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.evals.scores import Scores
from moe_jax.evals.tasks import evaluate
from moe_jax.model import cost
from moe_jax.storage import native
from moe_jax.study.cell import Cell
from moe_jax.study.material import Material
from train.loop.options import TrainOptions

# Name of the running cell, work done, work done by an earlier process, metrics.
Progress = Callable[[str, float, float, dict[str, Any]], None]
Outputs = dict[str, Any]


@dataclasses.dataclass(eq=False)
class Workshop:
    """A study at work: its material, its folder, the pretrain cells by (Z, seed), the progress.

    It holds one pretrained model, the one asked for last, and the statistics of all it observed.
    """

    study: Any
    material: Material
    folder: Path
    pretrained: dict[tuple[int, int], Cell]
    progress: Progress
    held: dict[tuple[int, int], tuple[Config, Params]] = dataclasses.field(default_factory=dict)
    observed: dict[tuple[int, int, str], Stats] = dataclasses.field(default_factory=dict)

    def cell_folder(self, cell: Cell) -> Path:
        return self.folder / 'cells' / cell.id

    def model_folder(self, cell: Cell) -> Path:
        return self.cell_folder(cell) / 'model'

    def model(self, experts: int, seed: int) -> tuple[Config, Params]:
        """A pretrained model, with the study's capacity after pretraining."""
        key = experts, seed
        if key not in self.held:
            self.held.clear()
            cfg, params = native.load(self.model_folder(self.pretrained[key]))
            self.held[key] = self.after_pretraining(cfg), params
        return self.held[key]

    def after_pretraining(self, cfg: Config) -> Config:
        return cfg.replace(capacity_train=self.study.capacity, capacity_eval=self.study.capacity)

    def stats(self, experts: int, seed: int, task: str) -> Stats:
        """Statistics of a pretrained model on a task's training rows; serve every method and G."""
        key = experts, seed, task
        if key not in self.observed:
            cfg, params = self.model(experts, seed)
            rows, packed = self.study.score_rows, self.material.tasks[task].train
            limit = max(1, self.study.observe_tokens // (rows * packed['tokens'].shape[1]))
            held = batches.heldout(packed, rows)[:limit]
            options = {}
            for method in self.study.methods():
                options |= prune.observe_options(method.name, reservoir=self.study.observe_tokens,
                                              **dict(method.options))
            named = [{**batch, 'group': task} for batch in held]
            self.observed[key] = observe(cfg, params, named, **options)
        return self.observed[key]


def pretrain(shop: Workshop, cell: Cell) -> Outputs:
    """Pretrain one model on all domains in equal shares; resumes inside its folder."""
    study, seed, experts = shop.study, cell.about['seed'], cell.about['experts']
    options = dataclasses.replace(study.pretrain, seed=seed)
    sets = [(rows, 1.0) for rows in shop.material.train.values()]
    cfg = study.model_with(experts)
    params, history = train.pretrain(
        cfg, sets, options, out=shop.cell_folder(cell),
        progress=reporting(shop, cell.title, options),
    )
    _publish(shop, cell, f'{experts}-experts-seed-{seed}')
    every = max(1, len(history) // 60)
    return {
        'domains': domain_losses(shop, shop.after_pretraining(cfg), params),
        'parameters': cost.count(cfg).total,
        'active': cost.count(cfg).active,
        'tokens': options.steps * options.accumulate * options.batch * options.length,
        'curve': [[line['step'], round(line['ce'], 5)] for line in history[::every]],
    }


def domain_losses(shop: Workshop, cfg: Config, params: Params) -> dict[str, float]:
    """Held-out loss of each domain, nats per token."""
    rows = shop.study.score_rows
    return {
        domain: round(-evaluate(cfg, params, texts, rows).mean, 6)
        for domain, texts in shop.material.heldout.items()
    }


def reporting(shop: Workshop, title: str, options: TrainOptions):
    """A callback of the training loop that advances the study's progress after each step."""
    per_step = options.accumulate * options.batch * options.length
    seen: int | None = None

    def report(step: int, steps: int, metrics: dict[str, Any]) -> None:
        nonlocal seen
        skipped = step - 1 if seen is None else 0  # a resumed run begins at a later step
        work = 1 if seen is None else step - seen
        seen = step
        shop.progress(title, per_step * work, per_step * skipped, metrics | {'steps': steps})

    return report


def examples(scores: Scores) -> dict[str, Any]:
    """Results of single examples, for records."""
    return {
        'id': list(scores.ids), 'group': list(scores.groups),
        'log_likelihood': scores.log_likelihood.round(5).tolist(),
        'weight': scores.weight.tolist(),
        'correct': None if scores.correct is None else scores.correct.astype(int).tolist(),
    }


def _publish(shop: Workshop, cell: Cell, name: str) -> None:
    """Put the tokenizer beside a model, and link models/<name> to it for people and notebooks."""
    model = shop.model_folder(cell)
    with replacing(model / 'tokenizer.json') as temporary:
        shop.material.tokenizer.save(str(temporary))
    point(shop.folder / 'models' / name, model)
