"""Train a sparse mixture-of-experts model: one loop for pretraining, fine-tuning and warming.

A run is data in, data out: `fit` takes params and gives new params, leaving its inputs alone.
"""

from train.finetune import finetune, warm_routers
from train.loop import Callback, fit
from train.options import TrainOptions
from train.pretrain import pretrain
from train.signals import Interrupted
from train.state import TrainState, init_state
from train.step import Diverged, make_step
from train.tsep import Tsep, tsep

__all__ = [
    'Callback',
    'Diverged',
    'Interrupted',
    'TrainOptions',
    'TrainState',
    'Tsep',
    'finetune',
    'fit',
    'init_state',
    'make_step',
    'pretrain',
    'tsep',
    'warm_routers',
]
