"""Sparse mixture-of-experts language models: load, observe, score, and (with `prune`) shrink."""

from moe_jax.base import sharding
from moe_jax.calibration.observe import observe
from moe_jax.calibration.observe_inputs import observe_inputs
from moe_jax.calibration.skip_thresholds import calibrated_skip, uniform_skip
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.config.presets import preset
from moe_jax.evals.quality import Quality, Reference, compare
from moe_jax.evals.reconstruction import reconstruction
from moe_jax.hf.export import export_hf
from moe_jax.inference.continuations import score_continuations
from moe_jax.inference.generate import Sampling, generate
from moe_jax.inference.score import score
from moe_jax.model.decoder import apply, forward, init
from moe_jax.storage.folder import load, save

__all__ = [
    'Config', 'Quality', 'Reference', 'Sampling', 'Stats', 'apply', 'calibrated_skip', 'compare',
    'export_hf', 'forward', 'generate', 'init', 'load', 'observe', 'observe_inputs', 'preset',
    'reconstruction', 'save', 'score', 'score_continuations', 'sharding',
    'uniform_skip',
]
