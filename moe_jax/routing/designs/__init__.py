"""The router designs there are: each file of this folder ends in one, and needs no other row."""

import pkgutil
from functools import lru_cache
from importlib import import_module

from moe_jax.base.checks import nearest
from moe_jax.routing.design import Router


@lru_cache(maxsize=1)
def designs() -> dict[str, type[Router]]:
    """Name of each design -> the dataclass of its settings, in alphabetical order."""
    names = (found.name for found in pkgutil.iter_modules(__path__))
    modules = (import_module(f'{__name__}.{name}') for name in names)
    return {module.ROUTER.design: module.ROUTER for module in modules}


def design(name: str) -> type[Router]:
    """The dataclass of settings of a design; ValueError names the nearest for an unknown one."""
    if name not in designs():
        raise ValueError(f'Config.router: no design {name!r}; {nearest(name, list(designs()))}')
    return designs()[name]
