"""Train a sparse mixture-of-experts model: one loop for pretraining, fine-tuning and warming.

A run is data in, data out: `fit` takes params and gives new params, leaving its inputs alone.
"""

from train.finetune import finetune, warm_routers
from train.loop import fit
from train.options import TrainOptions
from train.pretrain import pretrain
from train.signals import Interrupted
from train.state import TrainState, init_state
from train.step import Diverged, make_step

__all__ = [
    'Diverged',
    'Interrupted',
    'TrainOptions',
    'TrainState',
    'finetune',
    'fit',
    'init_state',
    'make_step',
    'pretrain',
    'warm_routers',
]
