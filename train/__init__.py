"""Train a sparse mixture-of-experts model: one loop for pretraining, fine-tuning, distillation.

A run is data in, data out: `fit` takes params and gives new params, leaving its inputs alone.
"""

from train.distill import Distill, distill, router_kd, towards
from train.finetune import finetune, warm_routers
from train.forecast import Forecast, forecast
from train.loop import Callback, fit
from train.moments import carry, last_state
from train.objective import Objective
from train.options import TrainOptions
from train.peaks import PEAKS, Peaks
from train.pretrain import pretrain
from train.run import Run
from train.signals import Interrupted
from train.state import TrainState, init_state, params_of
from train.step import Diverged, make_step
from train.teacher import teach
from train.trainable import TRAINABLE, Trainable
from train.tsep import Tsep, tsep

__all__ = [
    'PEAKS',
    'TRAINABLE',
    'Callback',
    'Distill',
    'Diverged',
    'Forecast',
    'Interrupted',
    'Objective',
    'Peaks',
    'Run',
    'TrainOptions',
    'TrainState',
    'Trainable',
    'Tsep',
    'carry',
    'distill',
    'finetune',
    'fit',
    'forecast',
    'init_state',
    'last_state',
    'make_step',
    'params_of',
    'pretrain',
    'router_kd',
    'teach',
    'towards',
    'tsep',
    'warm_routers',
]
