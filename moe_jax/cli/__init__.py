"""The `moe-jax` command: one file per sub-command."""
