# What the package exports: read by type checkers, and by __init__.py, which imports a name when it
# is first used, so that the command answers --help before JAX is there.
from .forecasting.forecast import Forecast, forecast
from .forecasting.peaks import PEAKS, Peaks
from .loop.carry import carry, last_state
from .loop.fit import Callback, Interrupted, fit
from .loop.options import TrainOptions
from .loop.state import TrainState, init_state, params_of
from .loop.step import Diverged, make_step
from .objectives.objective import Objective
from .objectives.teacher import teach
from .recipes.distill import Distill, distill, router_kd, towards
from .recipes.finetune import finetune, warm_routers
from .recipes.pretrain import pretrain
from .recipes.run import Run
from .recipes.tsep import Tsep, tsep
from .trainable.trainable import TRAINABLE, Trainable

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
