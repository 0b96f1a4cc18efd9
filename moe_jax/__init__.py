"""Sparse mixture-of-experts language models: load, observe, score, and (with `prune`) shrink."""

from moe_jax.calibrate import calibrated_skip, uniform_skip
from moe_jax.config import Config
from moe_jax.continuations import score_continuations
from moe_jax.generate import Sampling, generate
from moe_jax.hf.export import export_hf
from moe_jax.model import apply, forward, init
from moe_jax.observe import observe
from moe_jax.observe_inputs import observe_inputs
from moe_jax.presets import preset
from moe_jax.quality import Quality, Reference, compare
from moe_jax.reconstruction import reconstruction
from moe_jax.score import score
from moe_jax.stats import Stats
from moe_jax.storage import load, save

__all__ = [
    'Config', 'Quality', 'Reference', 'Sampling', 'Stats', 'apply', 'calibrated_skip', 'compare',
    'export_hf', 'forward', 'generate', 'init', 'load', 'observe', 'observe_inputs', 'preset',
    'reconstruction', 'save', 'score', 'score_continuations', 'uniform_skip',
]
