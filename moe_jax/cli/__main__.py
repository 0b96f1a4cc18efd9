"""`python -m moe_jax.cli`: the `moe-jax` command."""

from moe_jax.cli import main

main()
