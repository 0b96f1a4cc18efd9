"""Train a sparse mixture-of-experts model: one loop for pretraining, fine-tuning, distillation.

A run is data in, data out: `fit` takes params and gives new params, leaving its inputs alone.
"""

from moe_jax.base.signals import Interrupted
from train.forecasting.forecast import Forecast, forecast
from train.forecasting.peaks import PEAKS, Peaks
from train.loop.carry import carry, last_state
from train.loop.fit import Callback, fit
from train.loop.options import TrainOptions
from train.loop.state import TrainState, init_state, params_of
from train.loop.step import Diverged, make_step
from train.objectives.objective import Objective
from train.objectives.teacher import teach
from train.recipes.distill import Distill, distill, router_kd, towards
from train.recipes.finetune import finetune, warm_routers
from train.recipes.pretrain import pretrain
from train.recipes.run import Run
from train.recipes.tsep import Tsep, tsep
from train.trainable.trainable import TRAINABLE, Trainable

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
