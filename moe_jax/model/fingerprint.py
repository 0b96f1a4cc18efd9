"""What tells one model from another of the same shape: its routers."""

import hashlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from moe_jax.config import Config


def fingerprint(params: Mapping[str, Any], cfg: Config) -> str:
    """'model:' and 16 hex digits of a model's routers, the same for float32 and bfloat16 copies."""
    digest = hashlib.sha256()
    for i in cfg.moe_layers:
        router = params[f'layer_{i}']['moe'].get('router', {})  # a design may have no parameters
        kernel = np.asarray(router.get('kernel', np.zeros((0, 0), np.float32)))
        digest.update(kernel.astype(ml_dtypes.bfloat16).tobytes())
    return f'model:{digest.hexdigest()[:16]}'


def differs(recorded: str, params: Mapping[str, Any], cfg: Config) -> bool:
    """Whether a recorded fingerprint is of another model; one of the caller's own says nothing."""
    return recorded.startswith('model:') and recorded != fingerprint(params, cfg)
