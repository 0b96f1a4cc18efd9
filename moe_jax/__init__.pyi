# What the package exports: read by type checkers, and by __init__.py, which imports a name when it
# is first used, so that the command answers --help before JAX is there.
from .base import sharding
from .calibration.observe import observe
from .calibration.observe_inputs import observe_inputs
from .calibration.skip_thresholds import calibrated_skip, uniform_skip
from .calibration.stats import Stats
from .config import Config
from .config.presets import preset
from .evals.quality import Quality, Reference, compare
from .evals.reconstruction import reconstruction
from .hf.export import export_hf
from .inference.continuations import score_continuations
from .inference.generate import Sampling, generate
from .inference.score import score
from .model.decoder import apply, forward, init
from .storage.folder import load, save

__all__ = [
    'Config', 'Quality', 'Reference', 'Sampling', 'Stats', 'apply', 'calibrated_skip', 'compare',
    'export_hf', 'forward', 'generate', 'init', 'load', 'observe', 'observe_inputs', 'preset',
    'reconstruction', 'save', 'score', 'score_continuations', 'sharding',
    'uniform_skip',
]
