"""What a run takes on a mesh, before any device is asked for: memory, traffic, time.

Everything is from shapes alone and published figures of devices; nothing is allocated or compiled.
"""

import dataclasses

from rich.table import Table

from moe_jax.config import Config
from moe_jax.model import cost
from train.forecasting import memory, traffic
from train.forecasting import mesh as spread
from train.forecasting.memory import Memory
from train.forecasting.mesh import Axes
from train.forecasting.peaks import Peaks, peaks_of
from train.forecasting.traffic import Traffic
from train.loop.options import TrainOptions

EFFICIENCY = 0.4  # of every published figure; what well-made training programs reach in arithmetic
SPARE = 0.9  # of the memory that a program gets, the rest being the runtime's


@dataclasses.dataclass(frozen=True)
class Forecast:
    """A training step on each device of a mesh, and the whole run.

    axes: (name, size) of the mesh; peaks and efficiency: of one device; memory, traffic: bytes of
    one device; flops: of the model in a step, on all devices, forward and backward; tokens: in a
    step, on all devices; arithmetic, moving, sending: seconds a step takes a device for products,
    its own memory and its links, one by one; steps: of the run.
    """

    axes: tuple[tuple[str, int], ...]
    peaks: Peaks
    efficiency: float
    memory: Memory
    traffic: Traffic
    flops: float
    tokens: int
    arithmetic: float
    moving: float
    sending: float
    steps: int

    @property
    def devices(self) -> int:
        return spread.devices(dict(self.axes))

    @property
    def fits(self) -> bool:
        """Whether the peak is within what a device's memory leaves to a program."""
        return self.memory.peak <= SPARE * self.peaks.memory

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: where computing and sending overlap in full, and where they do not at all."""
        computing = max(self.arithmetic, self.moving)
        return max(computing, self.sending), computing + self.sending

    @property
    def tokens_per_second(self) -> tuple[float, float]:
        """Of all devices together, the least and the most."""
        best, worst = self.seconds
        return self.tokens / worst, self.tokens / best

    def table(self) -> Table:
        """All of it for people."""
        best, worst = self.seconds
        slow, fast = self.tokens_per_second
        mesh = ', '.join(f'{name}={size}' for name, size in self.axes) or 'one device'
        out = Table(title=f'{mesh} ({self.peaks.name} x {self.devices}): '
                    + ('fits' if self.fits else 'does not fit'), title_justify='left')
        out.add_column('of a step, on each device')
        out.add_column('', justify='right')
        for name, size in self.memory._asdict().items():
            out.add_row(f'memory: {name}', amount(size, 'B'))
        out.add_row('memory at the peak', amount(self.memory.peak, 'B'), end_section=True)
        for name, size in self.traffic._asdict().items():
            out.add_row(f'sent in a step: {name.replace("_", "-")}', amount(size, 'B'))
        out.add_section()
        out.add_row('FLOPs of a step, all devices', amount(self.flops, ''))
        for name in ('arithmetic', 'moving', 'sending'):
            out.add_row(f'seconds of a step: {name}', f'{getattr(self, name):.3g}')
        out.add_row('seconds of a step', f'{best:.3g} to {worst:.3g}')
        out.add_row('tokens per second, all devices', f'{slow:,.0f} to {fast:,.0f}')
        out.add_row(f'{self.steps:,} steps', f'{duration(self.steps * best)} to '
                    f'{duration(self.steps * worst)}')
        out.caption, out.caption_justify = self.caption(), 'left'
        return out

    def caption(self) -> str:
        """What was assumed."""
        return (f'At {self.efficiency:.0%} of the published figures. Gradients take the place of '
                'activations as these are used, so the peak counts the larger. From all computing '
                'beside sending, to one after the other. A run fits if the peak is within '
                f'{SPARE:.0%} of {amount(self.peaks.memory, "B")}.')


def forecast(
    cfg: Config,
    options: TrainOptions,
    axes: Axes | None = None,
    peaks: Peaks | str = 'h100',
    *,
    efficiency: float = EFFICIENCY,
) -> Forecast:
    """What training takes on a mesh with these axis sizes, such as {'data': 2, 'expert': 4}.

    axes None or {}: one device. peaks: a name of `train.PEAKS`, numbers, or `Peaks`. Parameters are
    counted in float32, frozen ones too. Agrees with what XLA:CPU allocates within 20%
    (tests/train/forecasting/test_forecast_xla.py). Raises ValueError for axes, rows or peaks that
    cannot be.
    """
    axes = dict(axes or {})
    peaks = peaks_of(peaks) if isinstance(peaks, str) else peaks
    if not 0 < efficiency <= 1:
        raise ValueError(f'efficiency={efficiency}: a share of the published figures, in (0, 1]')
    spread.check(axes, options)
    needs = memory.of_step(cfg, options, axes, copies=peaks.copies, cpu=peaks.name == 'cpu')
    sent = traffic.of_step(cfg, options, axes)
    tokens = options.accumulate * options.batch * options.length
    flops = 3.0 * tokens * cost.count(cfg, options.length).flops
    rate = peaks.flops_float32 if cfg.dtype == 'float32' else peaks.flops
    return Forecast(
        axes=tuple(axes.items()), peaks=peaks, efficiency=efficiency, memory=needs, traffic=sent,
        flops=flops, tokens=tokens, steps=options.steps,
        arithmetic=flops / spread.devices(axes) / (efficiency * rate),
        moving=_moved(needs, options) / (efficiency * peaks.bandwidth),
        sending=sent.total / (efficiency * peaks.link),
    )


def amount(number: float, unit: str) -> str:
    """Three digits and a prefix: 1.06 GB."""
    for size, prefix in ((1e15, 'P'), (1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= size:
            return f'{number / size:.3g} {prefix}{unit}'
    return f'{number:.3g} {unit}'.strip()


def duration(seconds: float) -> str:
    """A rough time in its own unit: '0.1 seconds', '5.8 minutes', '402 hours'."""
    for unit, size in (('hours', 3600.0), ('minutes', 60.0)):
        if seconds >= 2 * size:
            return f'{seconds / size:,.3g} {unit}'
    return f'{seconds:.2g} seconds'


def _moved(needs: Memory, options: TrainOptions) -> float:
    """Bytes that have to go through a device's memory in a step, at the least.

    Parameters are read in both passes and by the update, gradients and moments read and written,
    activations written and read.
    """
    passes = options.accumulate * (2 * needs.params + 2 * needs.activations + 2 * needs.gathered)
    return passes + needs.params + 2 * needs.gradients + 2 * needs.moments
