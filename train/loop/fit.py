"""The loop that every kind of training runs on."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from moe_jax.base import processes, sharding, signals
from moe_jax.base.signals import Interrupted
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.storage import native
from train.loop import feed, live, store
from train.loop.feed import Batches, Digest
from train.loop.logbook import Evaluate, History, Logbook
from train.loop.options import TrainOptions
from train.loop.state import TrainState, begin, merged, restore_dtypes
from train.loop.step import Metrics, Step, step_of
from train.objectives.objective import LANGUAGE_MODEL, Batch, Objective
from train.trainable import resolved

log = logging.getLogger(__name__)


class Callback(NamedTuple):
    """An action of the caller's after every step.

    name: identifies it to a run's folder, settings included.
    init(cfg, params) -> carry: arrays that are saved and restored with the state.
    after(step, state, metrics, carry) -> (state, metrics, carry): step counts from 1; metrics are
      those of the step, still on the device (reading them waits for it), with 'experts' as in
      `make_step`; a scalar or vector added to them is logged. A function of its arguments alone,
      or a resumed run differs; the state keeps its shapes, dtypes and placement.
    """

    name: str
    init: Callable[[Config, Params], Any]
    after: Callable[[int, TrainState, Metrics, Any], tuple[TrainState, Metrics, Any]]


def fit(
    cfg: Config,
    params: Params,
    batches: Batches,
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: live.Report | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    objective: Objective | None = None,
    start: TrainState | None = None,
) -> tuple[Params, History]:
    """Train `params` (left untouched); returns the new params, in their dtypes, and the history.

    `batches(start)` iterates over the batches of a fixed sequence from number `start` on (a list of
    batches will do), each {'tokens', 'segments', 'weights'} of [batch, length]; a step takes
    `accumulate` of them. Without segments there is one text a row, without weights each token with
    a past counts 1; 'input_ids', 'attention_mask' and 'labels' of transformers are taken too.

    With a folder `out` the run is saved there and the same call resumes it, with the same losses
    and weights, bit for bit on the same machine. `progress(step, steps, metrics)` is called after
    each step; `evaluate(params) -> {name: value}` every `evaluate_every` steps and after the last,
    its values logged as 'eval_' + name; `callback` may change the state after each. `objective` is
    what to minimize (None: the language model's loss; `Objective`). With `start`, a state of this
    model such as `carry` gives, the run goes on from there, its steps counted and left alone.
    History and metrics.jsonl hold one dict per logged step.
    Raises Diverged when the loss or gradient is not finite, Interrupted after SIGTERM or Ctrl-C,
    DiskFull. Where params lie on a mesh (`moe_jax.base.sharding`) the run does, in as many
    processes as the mesh spans: batches may then hold all rows or those of `feed.own_rows`, and out
    is a folder that all processes see.
    """
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(sharding.on_mesh(params))
        feed.check_batches(batches)
        feed.check_mesh(mesh, options)
        if getattr(cfg.router, 'correction', False):
            log.warning('the balancing bias of the routers (correction) stays as it is: its update '
                        'towards equal loads is not part of training here')
        trained = resolved.resolve(params, options.trainable, options.keep_zeros)
        stop = stack.enter_context(signals.watch())
        folder = stack.enter_context(_opened(out, cfg, params, options, callback, objective, start))
        state, seen, history = begin(params, options, trained, start), '', []
        carry = _first_carry(callback, cfg, state)
        if folder:
            state, carry, seen, history = store.restore(folder, state, carry)
        first, objective = int(state.step), objective or LANGUAGE_MODEL
        report = stack.enter_context(live.reporter(progress, first, options.steps))
        step = step_of(cfg, options, trained, experts=callback is not None, objective=objective)
        logbook = Logbook(options, trained, history, folder, report, evaluate)
        run = _Run(options, step, objective, callback, folder, logbook, stop)
        if first < options.steps:
            stream = feed.stream(cfg, batches, options, mesh, first, seen, objective.reads)
            state = run.train(state, carry, stack.enter_context(contextlib.closing(stream)))
        new = restore_dtypes(merged(state, trained), params)
        if folder:
            _save_model(folder.out / 'model', cfg, new, options, objective.name,
                        finished_before=first)
        # A signal during the last save: the caller still has to hear of it, in every process.
        if processes.vote(stop.name is not None)():
            raise run.interrupted(options.steps)
    return new, logbook.history


@dataclasses.dataclass(frozen=True)
class _Run:
    """One call of `fit`: its parts that stay the same from step to step."""

    options: TrainOptions
    step: Step
    objective: Objective
    callback: Callback | None
    folder: store.Store | None
    logbook: Logbook
    stop: signals.Stop

    def train(self, state: TrainState, carry: Any, stream: Iterator[tuple[Batch, Digest]]
              ) -> TrainState:
        """Run to the last step; reads a step's metrics while the next one computes."""
        waiting, any_process = None, processes.poll()
        for step in range(int(state.step) + 1, self.options.steps + 1):
            batch, digest = next(stream)
            state, metrics, carry = self.advance(step, state, batch, carry)
            if waiting:
                self.logbook.settle(state, *waiting)
            waiting = (step, metrics)
            stopping = any_process(self.stop.name is not None)
            if stopping or self.logbook.due(step):
                self.logbook.settle(state, *waiting)
                waiting = None
            if self.folder and (stopping or self.logbook.save_due(step)):
                store.save(self.folder, step, state, digest(), carry)
            if stopping:
                raise self.interrupted(step)
        return state

    def advance(self, step: int, state: TrainState, batch: Batch, carry: Any
                ) -> tuple[TrainState, Metrics, Any]:
        """One step: the objective's additions to the batch, the compiled update, the callback."""
        if self.objective.prepare is not None:
            batch = self.objective.prepare(batch)
        state, metrics = self.step(state, batch)
        if self.callback is not None:
            state, metrics, carry = self.callback.after(step, state, metrics, carry)
        return state, metrics, carry

    def interrupted(self, step: int) -> Interrupted:
        kept = f'saved in {self.folder.out}; the same call goes on from there' if self.folder \
            else 'nothing was saved: the run has no folder'
        signal = self.stop.name or 'a signal to another process'
        message = f'stopped by {signal} after step {step} of {self.options.steps}; {kept}'
        log.warning(message)
        return Interrupted(message, step)


def _opened(
    out: str | Path | None, cfg: Config, params: Params, options: TrainOptions,
    callback: Callback | None, objective: Objective | None, start: TrainState | None,
) -> contextlib.AbstractContextManager[store.Store | None]:
    """The run's folder; None where it has none."""
    if not out:
        return contextlib.nullcontext()
    names = {}
    if callback is not None:
        names['callback'] = callback.name
    if objective is not None:
        names['objective'] = objective.name
    if start is not None:
        names['from'] = f'step {int(start.step)}'
    return store.opened(out, cfg, params, options, names)


def _first_carry(callback: Callback | None, cfg: Config, state: TrainState) -> Any:
    """The callback's first carry, on every device of the run; None without one."""
    if callback is None:
        return None
    return jax.device_put(callback.init(cfg, state.params), state.step.sharding)


def _save_model(path: Path, cfg: Config, params: Params, options: TrainOptions, objective: str, *,
                finished_before: int) -> None:
    """Write the final weights, unless the run was already complete and they are there."""
    if finished_before == options.steps and path.exists():
        return
    trained = dataclasses.asdict(options)['trainable']
    lineage = {'steps': options.steps, 'seed': options.seed, 'trainable': trained,
               'objective': objective}
    native.save(path, cfg, params, {'train': lineage}, overwrite=True)
