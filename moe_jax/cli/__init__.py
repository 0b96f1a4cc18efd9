"""The `moe-jax` command: one file per sub-command."""

from moe_jax.cli.command import main

__all__ = ['main']
