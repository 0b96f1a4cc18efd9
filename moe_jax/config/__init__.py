"""What a model is: one frozen value of sizes and choices, and ready-made ones."""

from moe_jax.config.config import Config
from moe_jax.config.parts import CLOSED, Latent, Rope
from moe_jax.routing.skipping import Skip

__all__ = ['CLOSED', 'Config', 'Latent', 'Rope', 'Skip']
