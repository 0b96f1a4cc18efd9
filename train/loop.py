"""The loop that every kind of training runs on."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import checkpoint
from moe_jax.config import Config
from moe_jax.tree import leaves_with_paths
from train import live, signals, store
from train.options import TrainOptions
from train.state import TrainState, init_state, restore_dtypes
from train.step import Batch, Diverged, Metrics, Step, make_step, subtree_norms

History = list[dict[str, Any]]
Batches = Callable[[int], Iterator[Batch]]
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
) -> tuple[Any, History]:
    """Train `params` (left untouched); returns the new params, in their dtypes, and the history.

    `batches(start)` iterates over the batches of a fixed sequence from number `start` on, each
    {'tokens', 'segments', 'weights'} of [batch, length]; a step takes `accumulate` of them. With a
    folder `out` the run is saved there and the same call resumes it, with the same losses and
    weights, bit for bit on the same machine. `progress(step, steps, metrics)` is called after each
    step; `evaluate(params) -> {name: value}` every `evaluate_every` steps and after the last, its
    values logged as 'eval_' + name; `callback` may change the state after each. History and
    metrics.jsonl hold one dict per logged step.
    Raises Diverged when the loss or gradient is not finite, Interrupted after SIGTERM or Ctrl-C,
    DiskFull. One process, any number of its devices: params and batches may be sharded arrays.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.watch())
        name = callback and callback.name
        folder = stack.enter_context(store.opened(out, cfg, params, options, name)) if out else None
        state, seen, history = init_state(params, options), '', []
        carry = _first_carry(callback, cfg, state)
        if folder:
            state, carry, seen, history = store.restore(folder, state, carry)
        start = int(state.step)
        report = stack.enter_context(live.reporter(progress, start, options.steps))
        step = make_step(cfg, options, experts=callback is not None)
        run = _Run(options, step, callback, folder, report, evaluate, history, stop)
        if start < options.steps:
            stream = _stream(batches, options, start, seen)
            state = run.train(state, carry, stack.enter_context(contextlib.closing(stream)))
        new = restore_dtypes(state.params, params)
        if folder:
            _save_model(folder.out / 'model', cfg, new, options, finished_before=start)
        if stop.name:  # a signal during the last save: the caller still has to hear of it
            raise run.interrupted(options.steps)
    return new, history


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from step to step of one call of `fit`; `history` grows."""

    options: TrainOptions
    step: Step
    callback: Callback | None
    folder: store.Store | None
    report: live.Report | None
    evaluate: Evaluate | None
    history: History
    stop: signals.Stop

    def train(self, state: TrainState, carry: Any, stream: Iterator[Batch]) -> TrainState:
        """Run to the last step; reads a step's metrics while the next one computes."""
        steps, waiting = self.options.steps, None
        for step in range(int(state.step) + 1, steps + 1):
            batch = next(stream)
            state, metrics = self.step(state, batch)
            if self.callback:
                state, metrics, carry = self.callback.after(step, state, metrics, carry)
            if waiting:
                self.settle(state, *waiting)
            waiting = (step, metrics)
            if self.stop.name or self.due(step):
                self.settle(state, *waiting)
                waiting = None
            if self.folder and (self.stop.name or self.save_due(step)):
                store.save(self.folder, step, state, store.batch_digest(batch), carry)
            if self.stop.name:
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
            values = self.evaluate(state.params)
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
        message = f'stopped by {self.stop.name} after step {step} of {self.options.steps}; {kept}'
        log.warning(message)
        return signals.Interrupted(message, step)


def _stream(batches: Batches, options: TrainOptions, start: int, seen: str) -> Iterator[Batch]:
    """One batch [A, batch, length] per step from step `start` on.

    On a resume the last batch the state has seen is read again and compared: a stream that does not
    continue where it stopped would train on other data without a sign.
    """
    first = start - 1 if seen else start
    with contextlib.ExitStack() as stack:
        source = iter(batches(first * options.accumulate))
        if hasattr(source, 'close'):  # a generator may hold a prefetching thread
            stack.callback(source.close)
        for step in range(first, options.steps):
            rows = [_checked(source, options, step) for _ in range(options.accumulate)]
            batch = jax.tree.map(_stack, *rows)
            if step >= start:
                yield batch
            elif store.batch_digest(batch) != seen:
                raise ValueError(
                    f'batches({step * options.accumulate}): not the batch that step {start} '
                    'trained on before the interruption; resume with the same data'
                )


def _checked(source: Iterator[Batch], options: TrainOptions, step: int) -> Batch:
    batch = next(source, None)
    if batch is None:
        raise ValueError(
            f'batches ended at step {step} of {options.steps}; a step takes '
            f'accumulate={options.accumulate} of them: repeat the data or lower steps'
        )
    wanted = (options.batch, options.length)
    shapes = {name: np.shape(batch.get(name)) for name in ('tokens', 'segments', 'weights')}
    if set(shapes.values()) != {wanted}:
        raise ValueError(f'step {step}: batch has shapes {shapes}; options say [batch, length] = '
                         f'{list(wanted)}')
    return {name: batch[name] for name in shapes}


def _stack(*rows: Any) -> Any:
    return jnp.stack(rows) if isinstance(rows[0], jax.Array) else np.stack(rows)


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


def _save_model(path: Path, cfg: Config, params: Any, options: TrainOptions, *,
                finished_before: int) -> None:
    """Write the final weights, unless the run was already complete and they are there."""
    if finished_before == options.steps and path.exists():
        return
    lineage = {'steps': options.steps, 'seed': options.seed, 'trainable': options.trainable}
    checkpoint.save(path, cfg, params, {'train': lineage}, overwrite=True)
