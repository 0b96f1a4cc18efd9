"""What every other package rests on: trees, files, checks, text, processes, sharding."""

import lazy_loader as lazy

# `moe_jax.sharding` is this module, imported when it is first used.
__getattr__, __dir__, __all__ = lazy.attach(__name__, submodules=['sharding'])
