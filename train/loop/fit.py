"""The loop that every kind of training runs on."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from moe_jax.base import processes, sharding
from moe_jax.base.tree import leaves_with_paths
from moe_jax.config import Config
from moe_jax.storage import native
from train.loop import feed, live, signals, store
from train.loop.feed import Batches
from train.loop.options import TrainOptions
from train.loop.state import TrainState, begin, params_of, restore_dtypes
from train.loop.step import Diverged, Metrics, Step, make_step, subtree_norms
from train.objectives.objective import LANGUAGE_MODEL, Objective

History = list[dict[str, Any]]
Evaluate = Callable[[Any], Mapping[str, float]]

log = logging.getLogger(__name__)


class Callback(NamedTuple):
    """What a run does besides, after every step.

    name: identifies it to a run's folder, settings included.
    init(cfg, params) -> carry: arrays that are saved and restored with the state.
    after(step, state, metrics, carry) -> (state, metrics, carry): step counts from 1; metrics are
      those of the step, still on the device (reading them waits for it), with 'experts' as in
      `make_step`; a scalar or vector added to them is logged. A function of its arguments alone,
      or a resumed run differs; the state keeps its shapes, dtypes and placement.
    """

    name: str
    init: Callable[[Config, Any], Any]
    after: Callable[[int, TrainState, Metrics, Any], tuple[TrainState, Metrics, Any]]


def fit(
    cfg: Config,
    params: Any,
    batches: Batches,
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: live.Report | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    objective: Objective | None = None,
    start: TrainState | None = None,
) -> tuple[Any, History]:
    """Train `params` (left untouched); returns the new params, in their dtypes, and the history.

    `batches(start)` iterates over the batches of a fixed sequence from number `start` on, each
    {'tokens', 'segments', 'weights'} of [batch, length]; a step takes `accumulate` of them. With a
    folder `out` the run is saved there and the same call resumes it, with the same losses and
    weights, bit for bit on the same machine. `progress(step, steps, metrics)` is called after each
    step; `evaluate(params) -> {name: value}` every `evaluate_every` steps and after the last, its
    values logged as 'eval_' + name; `callback` may change the state after each. `objective` is what
    to minimise (None: the language model's loss; `Objective`). With `start`, a state of this model
    such as `carry` gives, the run goes on from there, its steps counted and left alone. History and
    metrics.jsonl hold one dict per logged step.
    Raises Diverged when the loss or gradient is not finite, Interrupted after SIGTERM or Ctrl-C,
    DiskFull. Where params lie on a mesh (`moe_jax.base.sharding`) the run does, in as many
    processes as the mesh spans: batches may then hold all rows or those of `feed.own_rows`, and out
    is a folder that all processes see.
    """
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(sharding.on_mesh(params))
        _check_mesh(mesh, options)
        stop = stack.enter_context(signals.watch())
        names = {'callback': callback and callback.name, 'objective': objective and objective.name,
                 'from': start and f'step {int(start.step)}'}
        folder = out and stack.enter_context(store.opened(out, cfg, params, options, names))
        state, seen, history = begin(params, options, start), '', []
        carry = _first_carry(callback, cfg, state)
        if folder:
            state, carry, seen, history = store.restore(folder, state, carry)
        first, objective = int(state.step), objective or LANGUAGE_MODEL
        report = stack.enter_context(live.reporter(progress, first, options.steps))
        step = make_step(cfg, options, experts=callback is not None, objective=objective)
        run = _Run(options, step, objective, callback, folder, report, evaluate, history, stop)
        if first < options.steps:
            stream = feed.stream(batches, options, mesh, first, seen, objective.reads)
            state = run.train(state, carry, stack.enter_context(contextlib.closing(stream)))
        new = restore_dtypes(params_of(state, options), params)
        if folder:
            _save_model(folder.out / 'model', cfg, new, options, objective.name,
                        finished_before=first)
        # A signal during the last save: the caller still has to hear of it, in every process.
        if processes.vote(stop.name is not None)():
            raise run.interrupted(options.steps)
    return new, history


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from step to step of one call of `fit`; `history` grows."""

    options: TrainOptions
    step: Step
    objective: Objective
    callback: Callback | None
    folder: store.Store | None
    report: live.Report | None
    evaluate: Evaluate | None
    history: History
    stop: signals.Stop

    def train(self, state: TrainState, carry: Any, stream: Iterator[Any]) -> TrainState:
        """Run to the last step; reads a step's metrics while the next one computes."""
        steps, waiting, any_process = self.options.steps, None, processes.poll()
        for step in range(int(state.step) + 1, steps + 1):
            batch, digest = next(stream)
            prepare = self.objective.prepare
            state, metrics = self.step(state, prepare(batch) if prepare else batch)
            if self.callback:
                state, metrics, carry = self.callback.after(step, state, metrics, carry)
            if waiting:
                self.settle(state, *waiting)
            waiting = (step, metrics)
            stopping = any_process(self.stop.name is not None)
            if stopping or self.due(step):
                self.settle(state, *waiting)
                waiting = None
            if self.folder and (stopping or self.save_due(step)):
                store.save(self.folder, step, state, digest(), carry)
            if stopping:
                raise self.interrupted(step)
        return state

    def due(self, step: int) -> bool:
        """Whether a step's metrics must be known before the next one starts."""
        return step == self.options.steps or self.save_due(step) or self.evaluate_due(step)

    def save_due(self, step: int) -> bool:
        return step == self.options.steps or _every(self.options.checkpoint_every, step)

    def evaluate_due(self, step: int) -> bool:
        last = step == self.options.steps
        return bool(self.evaluate) and (last or _every(self.options.evaluate_every, step))

    def settle(self, state: TrainState, step: int, metrics: Metrics) -> None:
        """Wait for a step, stop if it diverged, report it, and log it if its turn has come."""
        if not metrics['finite']:
            raise self.diverged(state, step, metrics)
        logged = step == self.options.steps or _every(self.options.log_every, step)
        evaluated = self.evaluate_due(step)
        if not (logged or evaluated or self.report):
            return
        line = {'step': step} | _loggable(metrics)
        if self.report:
            self.report(step, self.options.steps, line)
        if evaluated:
            values = self.evaluate(params_of(state, self.options))
            line |= {f'eval_{name}': float(value) for name, value in values.items()}
        if logged or evaluated:
            self.history.append(line)
            if self.folder:
                store.append(self.folder, line)

    def diverged(self, state: TrainState, step: int, metrics: Metrics) -> Diverged:
        values = jax.device_get(metrics)
        norms = jax.device_get(subtree_norms(dict(leaves_with_paths(state.params))))
        grads = {name: float(value) for name, value in values['grad_norms'].items()}
        norms = {name: float(value) for name, value in norms.items()}
        where = f'; the last good checkpoint is step {self.folder.latest()} in {self.folder.out}' \
            if self.folder else ''
        return Diverged(
            f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]} at learning '
            f'rate {values["lr"]:.3g}. Norms of params: {_listed(norms)}. Norms of the gradient: '
            f'{_listed(grads)}. Lower peak_lr, lengthen warmup or look at that batch{where}',
            step, norms, grads,
        )

    def interrupted(self, step: int) -> signals.Interrupted:
        kept = f'saved in {self.folder.out}; the same call goes on from there' if self.folder \
            else 'nothing was saved: the run has no folder'
        signal = self.stop.name or 'a signal to another process'
        message = f'stopped by {signal} after step {step} of {self.options.steps}; {kept}'
        log.warning(message)
        return signals.Interrupted(message, step)


def _check_mesh(mesh: Any, options: TrainOptions) -> None:
    feed.check_span(mesh)
    feed.check_rows(mesh, options)


def _first_carry(callback: Callback | None, cfg: Config, state: TrainState) -> Any:
    """What the callback starts with, on every device of the run; None without one."""
    if callback is None:
        return None
    return jax.device_put(callback.init(cfg, state.params), state.step.sharding)


def _loggable(metrics: Metrics) -> dict[str, Any]:
    """Scalars as floats, vectors as lists."""
    kept = {k: v for k, v in metrics.items() if k not in ('finite', 'grad_norms', 'experts')}
    return {name: np.asarray(value).tolist() if np.ndim(value) else float(value)
            for name, value in jax.device_get(kept).items()}


def _every(period: int, step: int) -> bool:
    return period > 0 and step % period == 0


def _listed(norms: dict[str, float]) -> str:
    return ', '.join(f'{name} {value:.4g}' for name, value in norms.items())


def _save_model(path: Path, cfg: Config, params: Any, options: TrainOptions, objective: str, *,
                finished_before: int) -> None:
    """Write the final weights, unless the run was already complete and they are there."""
    if finished_before == options.steps and path.exists():
        return
    trained = dataclasses.asdict(options)['trainable']
    lineage = {'steps': options.steps, 'seed': options.seed, 'trainable': trained,
               'objective': objective}
    native.save(path, cfg, params, {'train': lineage}, overwrite=True)
