"""The safe-sparsity curve as a value: how quality falls as experts go, and how far it is safe.

Quality is the distance to the original's own answers (`moe_jax.evals.quality`), so no label is
needed.
"""

import dataclasses
import math
from typing import Any, Literal

from rich.table import Table

from moe_jax.evals.quality import METRICS, Quality

Metric = Literal['lost', 'kl', 'rejected']
UNITS = {'lost': 'nats lost per token', 'kl': 'nats of KL per token',
         'rejected': 'of tokens rejected'}
SHORT = {'lost': 'nats lost', 'kl': 'KL', 'rejected': 'rejected'}
Point = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Safety:
    """A point for each method and budget, and what they say is safe.

    points: dicts of 'method', 'experts' (kept by each MoE layer), 'kept' (their mean), 'parameters'
      (share of the model's that is left), the metrics with 'low' and 'high' of 95% intervals, and
      'groups' (the same of each group of the text). metric and tolerance: what the stop is by.
    """

    points: tuple[Point, ...]
    metric: Metric
    tolerance: float

    def stops(self) -> dict[str, Point | None]:
        """Of each method the smallest budget that is safe, as all larger ones tried are.

        Safe: the upper end of the metric's interval is within the tolerance. None: not even the
        largest tried is.
        """
        safe: dict[str, Point | None] = {p['method']: None for p in self.points}
        for name in safe:
            mine = [p for p in self.points if p['method'] == name]
            for size in sorted({p['kept'] for p in mine}, reverse=True):
                equal = [p for p in mine if p['kept'] == size]
                if any(p[self.metric]['high'] > self.tolerance for p in equal):
                    break
                safe[name] = min(equal, key=lambda p: p[self.metric]['mean'])
        return safe

    def stop(self) -> Point | None:
        """The recommended one: the fewest experts of all methods' stops, then the least lost."""
        safe = [point for point in self.stops().values() if point is not None]
        return min(safe, default=None,
                   key=lambda p: (p['kept'], p[self.metric]['mean'], p['method']))

    def verdict(self) -> str:
        """The recommendation in a sentence."""
        what = UNITS[self.metric]
        best = self.stop()
        if best is None:
            return (f'No budget tried stays within {self.tolerance:g} {what} with 95% confidence; '
                    'try larger budgets, or recover by training')
        shown = best[self.metric]
        return (f'Safe down to {best["kept"]:g} experts per layer with {best["method"]}: '
                f'{shown["mean"]:+.3f} [{shown["low"]:+.3f}, {shown["high"]:+.3f}] {what}, '
                f'{best["parameters"]:.0%} of the parameters')

    def figure(self) -> Any:
        """The curve as a matplotlib Figure (needs the extra `plot`)."""
        from moe_jax.pictures import safe_sparsity

        return safe_sparsity(self.points, metric=self.metric, tolerance=self.tolerance,
                             stop=self.stop(), title=self.verdict())

    def table(self) -> Table:
        """Every point, the safe ones marked, and the verdict below; intervals are of the metric."""
        others = [m for m in SHORT if m != self.metric]
        out = Table('method', 'kept', 'size', f'{SHORT[self.metric]} [95%]',
                    *(SHORT[m] for m in others), 'safe', caption=self.verdict(),
                    caption_justify='left')
        stops = self.stops()
        for point in self.points:
            stop, shown = stops[point['method']], point[self.metric]
            safe = stop is not None and point['kept'] >= stop['kept']
            out.add_row(point['method'], f'{point["kept"]:g}', f'{point["parameters"]:.0%}',
                        f'{shown["mean"]:.3f} [{shown["low"]:.3f}, {shown["high"]:.3f}]',
                        *(f'{point[m]["mean"]:.3f}' for m in others), 'yes' if safe else '')
        return out


def measured(quality: Quality) -> dict[str, Any]:
    """The metrics of a comparison as plain numbers with intervals, of all text and by group.

    None where a group has one row, which has no interval.
    """
    whole = _numbers(quality, None)
    return whole | {'groups': {g: _numbers(quality, g) for g in sorted(quality.groups)}}


def _numbers(quality: Quality, group: str | None) -> dict[str, Any]:
    numbers = {}
    for metric in METRICS:
        low, high = quality.interval(metric, group)
        known = math.isfinite(low)
        numbers[metric] = {'mean': quality.mean(metric, group), 'low': low if known else None,
                         'high': high if known else None}
    other = numbers['acceptance']
    numbers['rejected'] = {name: None if other[mirror] is None else 1 - other[mirror]
                         for name, mirror in (('mean', 'mean'), ('low', 'high'), ('high', 'low'))}
    return numbers
