"""The options of a run of training, one frozen value; defaults are the UNCURL paper's."""

import dataclasses

from moe_jax.base.checks import choice, integer, number
from train.optim.schedules import SCHEDULES
from train.trainable.trainable import Chosen, Trainable, check_expression


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """How to train; the optimizer's defaults are those of UNCURL (table of training settings).

    One step averages the gradient over `accumulate` batches of `batch` rows of `length` tokens. So
    is the balance loss a mean over them, of the loads of each, and not the loss of all rows' loads:
    fewer rows at a time ask each of the fewer to be balanced.
    The learning rate rises linearly to `peak_lr` over `warmup` steps, then follows `schedule` down
    to 0 at `steps`. `trainable` is a regular expression searched in leaf paths such as
    'layer_0/moe/router/kernel' (`train.TRAINABLE` has common ones), or a `Trainable` for some
    experts and low-rank adapters; what it does not name is frozen (None: all train). Of a matrix in
    whose path `keep_zeros` is found, weights that are exactly 0 stay so, as pruned ones should.
    `clip` bounds the global gradient norm of the leaves that train (None: no bound).
    Every `log_every` steps (and after the last) a line of metrics is kept; every `evaluate_every`
    the caller's evaluation runs; every `checkpoint_every` the state is saved if there is a folder
    (0: only at the end), of which the last `keep` stay.
    """

    steps: int
    batch: int
    length: int
    peak_lr: float = 5e-5
    warmup: int = 1000
    schedule: str = 'linear'
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    clip: float | None = 1.0
    accumulate: int = 1
    seed: int = 0
    trainable: Chosen = None
    keep_zeros: str | None = None
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 1

    def __post_init__(self) -> None:
        for name, value in _counts(self).items():
            object.__setattr__(self, name, value)
        _check_optimizer(self)


def _counts(options: TrainOptions) -> dict[str, int]:
    """The whole numbers as plain ints; ValueError for what is none or too small."""
    least = {
        'steps': 1, 'batch': 1, 'length': 2, 'accumulate': 1, 'log_every': 1, 'keep': 1,
        'warmup': 0, 'evaluate_every': 0, 'checkpoint_every': 0, 'seed': 0,
    }
    counts = {name: integer(f'TrainOptions.{name}', getattr(options, name), minimum, 2**31)
              for name, minimum in least.items()}
    if options.warmup > options.steps:
        raise ValueError(
            f'TrainOptions.warmup={options.warmup} exceeds steps={options.steps}: the learning '
            'rate would never reach peak_lr; give a shorter warmup'
        )
    return counts


def _check_optimizer(options: TrainOptions) -> None:
    for name in ('peak_lr', 'schedule'):
        if callable(getattr(options, name)):
            raise ValueError(f'TrainOptions.{name} is a function, which a saved run could not be '
                             'held against: give peak_lr as a number, and one of the schedules '
                             f'{", ".join(SCHEDULES)} by its name')
    for name in ('peak_lr', 'weight_decay', 'eps'):
        number(f'TrainOptions.{name}', getattr(options, name))
    for name in ('b1', 'b2'):
        number(f'TrainOptions.{name}', getattr(options, name), 0, 1)
    if options.clip is not None and not options.clip > 0:
        raise ValueError(f'TrainOptions.clip={options.clip!r}: must be positive, or None')
    choice('TrainOptions.schedule', options.schedule, SCHEDULES)
    if not isinstance(options.trainable, Trainable):
        check_expression('TrainOptions.trainable', options.trainable)
    check_expression('TrainOptions.keep_zeros', options.keep_zeros)
