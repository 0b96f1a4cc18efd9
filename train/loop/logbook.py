"""Metrics of steps: waited for, checked, reported, logged; and the evaluations of a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from moe_jax.base.tree import Params, leaves_with_paths
from train.loop import live, store
from train.loop.options import TrainOptions
from train.loop.state import TrainState, merged
from train.loop.step import Diverged, Metrics, subtree_norms
from train.trainable.resolved import TrainedLeaves

History = list[dict[str, Any]]
Evaluate = Callable[[Params], Mapping[str, float]]


@dataclasses.dataclass
class Logbook:
    """The history of a run, which grows by one line for each step that is logged or evaluated.

    folder: keeps the lines, too; report: is called with the metrics of every step; evaluate: gets
    the weights as they stand; each None where the run has none.
    """

    options: TrainOptions
    trained: TrainedLeaves
    history: History
    folder: store.Store | None
    report: live.Report | None
    evaluate: Evaluate | None

    def due(self, step: int) -> bool:
        """Whether a step's metrics must be known before the next one starts."""
        return self.save_due(step) or self.evaluate_due(step)

    def save_due(self, step: int) -> bool:
        return self._due(self.options.checkpoint_every, step)

    def evaluate_due(self, step: int) -> bool:
        return self.evaluate is not None and self._due(self.options.evaluate_every, step)

    def settle(self, state: TrainState, step: int, metrics: Metrics) -> None:
        """Wait for a step, stop if it diverged, report it, and log it if its turn has come."""
        if not metrics['finite']:
            raise diverged(self.folder, state, step, metrics)
        evaluated = self.evaluate_due(step)
        logged = evaluated or self._due(self.options.log_every, step)
        if not (logged or self.report):
            return
        line = {'step': step} | _loggable(metrics)
        if self.report:
            self.report(step, self.options.steps, line)
        if evaluated:
            assert self.evaluate is not None  # or nothing would be due
            values = self.evaluate(merged(state, self.trained))
            line |= {f'eval_{name}': float(value) for name, value in values.items()}
        if logged:
            self.history.append(line)
            if self.folder:
                store.append(self.folder, line)

    def _due(self, period: int, step: int) -> bool:
        """Whether it is the turn of what is done every `period` steps (0: never), and at the end.
        """
        return step == self.options.steps or (period > 0 and step % period == 0)


def diverged(folder: store.Store | None, state: TrainState, step: int, metrics: Metrics
             ) -> Diverged:
    """The error that names a step's loss, and the norms of weights and gradient."""
    values = jax.device_get(metrics)
    norms = _numbers(jax.device_get(subtree_norms(dict(leaves_with_paths(state.params)))))
    grads = _numbers(values['grad_norms'])
    where = f'; the last good checkpoint is step {folder.latest()} in {folder.out}' \
        if folder else ''
    return Diverged(
        f'step {step}: loss {values["loss"]}, gradient norm {values["grad_norm"]} at learning '
        f'rate {values["lr"]:.3g}. Norms of params: {_listed(norms)}. Norms of the gradient: '
        f'{_listed(grads)}. Lower peak_lr, lengthen warmup or look at that batch{where}',
        step, norms, grads,
    )


def _loggable(metrics: Metrics) -> dict[str, Any]:
    """Scalars as floats, vectors as lists."""
    kept = {k: v for k, v in metrics.items() if k not in ('finite', 'grad_norms', 'experts')}
    return {name: np.asarray(value).tolist() if np.ndim(value) else float(value)
            for name, value in jax.device_get(kept).items()}


def _numbers(norms: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in norms.items()}


def _listed(norms: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:.4g}' for name, value in norms.items())
