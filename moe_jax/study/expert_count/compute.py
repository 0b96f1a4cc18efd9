"""What each kind of cell computes: from a cell and what it depends on to JSON outputs.

Letters: Z experts pretrained with, G experts left, E experts of a layer.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import prune
import train
from moe_jax.base.files import point, replacing
from moe_jax.calibration.observe import observe
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.evals.scores import Scores
from moe_jax.evals.tasks import evaluate
from moe_jax.model import cost
from moe_jax.model.decoder import Params
from moe_jax.storage import native
from moe_jax.study import parallel as devices
from moe_jax.study.clock import forward_milliseconds
from moe_jax.study.expert_count.cells import Cell, method_options, stage_options
from moe_jax.study.expert_count.spec import Method, Study
from moe_jax.study.material import Material
from moe_jax.study.recovery.spec import RecoveryStudy
from train.forecasting.latency import forward_latency
from train.loop.options import TrainOptions

# What runs, work done, work found done by an earlier process, metrics.
Progress = Callable[[str, float, float, dict[str, Any]], None]
Outputs = dict[str, Any]
LATENCY_ROUNDS = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Workshop:
    """A study at work: its material, its folder, the pretrain cells by (Z, seed), the progress.

    It holds one pretrained model, the one asked for last, and the statistics of all it observed.
    """

    study: Study | RecoveryStudy
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
            found = batches.heldout(packed, rows)[:limit]
            wish = {}
            for method in self.study.methods():
                wish |= prune.observe_options(method.name, reservoir=self.study.observe_tokens,
                                              **dict(method.options))
            named = [{**batch, 'group': task} for batch in found]
            self.observed[key] = observe(cfg, params, named, **wish)
        return self.observed[key]

    def plan(self, cell: Cell, method: Method) -> prune.Plan:
        about = cell.about
        cfg, params = self.model(about['experts'], about['seed'])
        stats = self.stats(about['experts'], about['seed'], about['task'])
        options = method_options(method, about['seed'])
        return prune.plan(method.name, stats, params, cfg, experts=about['keep'], **options)


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


def score(shop: Workshop, cell: Cell) -> Outputs:
    """Shrink (or not), recover and score one model on one task; scored after every stage."""
    about, study = cell.about, shop.study
    cfg, params = shop.model(about['experts'], about['seed'])
    method = next((m for m in study.methods() if m.label == about['method']), None)
    if method is not None:
        params, cfg = prune.apply(params, cfg, shop.plan(cell, method))
    task, step = shop.material.tasks[about['task']], 0
    results = evaluate(cfg, params, task.validation, study.score_rows)
    stages = [_stage('shrunk', step, results)]
    for name, options in stage_options(study, about['seed']).items():
        params = _train_stage(shop, cell, name, options, cfg, params)
        step += options.steps
        results = evaluate(cfg, params, task.validation, study.score_rows)
        stages.append(_stage({'warm': 'warmed'}.get(name, f'{name}d'), step, results))
    return {
        'stages': stages,
        'examples': examples(results),
        'domains': domain_losses(shop, cfg, params),
        'router_rows': [cfg.router_rows(i) for i in cfg.moe_layers],
    }


def usage(shop: Workshop, cell: Cell) -> Outputs:
    """Share of each domain's held-out tokens that every expert gets, layer by layer."""
    cfg, params = shop.model(cell.about['experts'], cell.about['seed'])
    rows = shop.study.score_rows
    stats = observe(cfg, params, (
        {**batch, 'group': domain}
        for domain, texts in shop.material.heldout.items()
        for batch in batches.heldout(texts.packed, rows)
    ))
    domains = sorted(stats.groups)
    return {'domains': domains, 'layers': {
        str(i): [_shares(stats.layer(i, domain)['count']) for domain in domains]
        for i in stats.layers
    }}


def latency(shop: Workshop, cell: Cell) -> Outputs:
    """Milliseconds of a forward pass by expert count, in interleaved rounds of one run."""
    study, counts = shop.study, cell.inputs['experts']
    shape = (study.score_rows, study.pretrain.length)
    found = forward_milliseconds(
        [shop.after_pretraining(study.model_with(n)) for n in counts], shape, LATENCY_ROUNDS
    )
    sizes = {str(n): 4 * cost.count(study.model_with(n)).total for n in counts}
    return {
        'experts': counts, 'tokens': shape[0] * shape[1], 'parameters': sizes,
        'milliseconds': {str(n): times for n, times in zip(counts, found, strict=True)},
    }


def parallel(shop: Workshop, cell: Cell) -> Outputs:
    """Milliseconds of a forward pass by expert count and over how many devices experts lie."""
    study, asked = shop.study, cell.inputs
    shape = (study.score_rows, study.pretrain.length)
    configs = {n: study.model_with(n).replace(capacity_train=None, capacity_eval=None)
               for n in asked['experts']}
    found = devices.measured([c.to_json() for c in configs.values()], asked['degrees'], shape,
                             asked['rounds'])
    return {
        'tokens': shape[0] * shape[1],
        'milliseconds': dict(zip(map(str, configs), found, strict=True)),
        'modelled': {name: {str(count): {
            str(n): 1000 * forward_latency(cfg, shape, {'expert': n}, name).seconds
            for n in asked['degrees']} for count, cfg in configs.items()}
            for name in asked['devices']},
    }


def embedding(shop: Workshop, cell: Cell) -> Outputs:
    """The main method's spectral embedding and clusters of every layer's router.

    The picture takes the second and third coordinate: the first, of the eigenvalue 0, is nearly the
    same for all experts.
    """
    first, last = cell.inputs['coordinates']
    plan = shop.plan(cell, shop.study.main)
    stats = shop.stats(cell.about['experts'], cell.about['seed'], cell.about['task'])
    layers = {}
    for i, layer in plan.layers.items():
        if 'embedding' not in layer.notes:
            continue
        points = np.asarray(layer.notes['embedding'], np.float64)
        points = np.pad(points, ((0, 0), (0, max(0, last - points.shape[1]))))[:, first:last]
        layers[str(i)] = {
            'points': points.round(5).tolist(),
            'labels': np.asarray(layer.notes['labels']).tolist(),
            'count': stats.layer(i)['count_top1'].tolist(),
        }
    return {'layers': layers}


COMPUTE: dict[str, Callable[[Workshop, Cell], Outputs]] = {
    'pretrain': pretrain, 'score': score, 'usage': usage, 'latency': latency,
    'parallel': parallel,
    'embedding': embedding,
}


def _publish(shop: Workshop, cell: Cell, name: str) -> None:
    """Put the tokenizer beside a model, and link models/<name> to it for people and notebooks."""
    model = shop.model_folder(cell)
    with replacing(model / 'tokenizer.json') as temporary:
        shop.material.tokenizer.save(str(temporary))
    point(shop.folder / 'models' / name, model)


def _train_stage(shop: Workshop, cell: Cell, name: str, options: TrainOptions, cfg: Config,
                 params: Params) -> Params:
    """One stage of recovery; every model sees the same rows in the same order."""
    task = shop.material.tasks[cell.about['task']]
    report = reporting(shop, cell.title, options)
    if name == 'warm':
        return train.warm_routers(cfg, params, task.train, options, progress=report)[0]
    if name == 'finetune':
        return train.finetune(cfg, params, task.train, options, progress=report)[0]
    share = shop.study.recovery.text_share
    others = [m.train for n, m in sorted(shop.material.tasks.items()) if n != task.name]
    text = list(shop.material.mixed.values())
    sets = [(rows, share / len(text)) for rows in text]
    sets += [(rows, (1 - share) / len(others)) for rows in others if share < 1]
    return train.fit(
        cfg, params, lambda start: batches.mixture(sets, options.batch, options.seed, start),
        options, progress=report,
    )[0]


def reporting(shop: Workshop, title: str, options: TrainOptions):
    """What a training loop calls after each step: it moves the study's progress."""
    per_step = options.accumulate * options.batch * options.length
    seen: int | None = None

    def report(step: int, steps: int, metrics: dict[str, Any]) -> None:
        nonlocal seen
        found = step - 1 if seen is None else 0  # a resumed run begins at a later step
        work = 1 if seen is None else step - seen
        seen = step
        shop.progress(title, per_step * work, per_step * found, metrics | {'steps': steps})

    return report


def domain_losses(shop: Workshop, cfg: Config, params: Params) -> dict[str, float]:
    """Held-out loss of each domain, nats per token."""
    rows = shop.study.score_rows
    return {
        domain: round(-evaluate(cfg, params, texts, rows).mean, 6)
        for domain, texts in shop.material.heldout.items()
    }


def _stage(name: str, step: int, scores: Scores) -> dict[str, Any]:
    accuracy = None if scores.accuracy is None else round(scores.accuracy, 6)
    return {'stage': name, 'step': step, 'log_likelihood': round(scores.mean, 6),
            'accuracy': accuracy}


def examples(scores: Scores) -> dict[str, Any]:
    """Results of single examples, for records."""
    return {
        'id': list(scores.ids), 'group': list(scores.groups),
        'log_likelihood': scores.log_likelihood.round(5).tolist(),
        'weight': scores.weight.tolist(),
        'correct': None if scores.correct is None else scores.correct.astype(int).tolist(),
    }


def _shares(count: np.ndarray) -> list[float]:
    return (count / max(1, count.sum())).round(5).tolist()
