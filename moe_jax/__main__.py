"""`python -m moe_jax`: the `moe-jax` command."""

from moe_jax.cli import main

main()
