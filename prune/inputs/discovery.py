"""The methods of a package, by name: one file is one method."""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from moe_jax.base.checks import nearest
from prune.inputs.method import Method

Methods = Mapping[str, Method]


def discovered(package: str, path: Iterable[str]) -> Methods:
    """{name: method} of every file of a package, by `Method.place`, then by name.

    Called in the package's __init__ as discovered(__name__, __path__). Raises TypeError for a file
    without METHOD, and ValueError for two methods of one name.
    """
    files = [importlib.import_module(f'{package}.{file.name}')
             for file in pkgutil.iter_modules(path)]
    for file in files:
        if not isinstance(vars(file).get('METHOD'), Method):
            raise TypeError(f'{file.__name__} must end in METHOD = Method(...)')
    methods = sorted((file.METHOD for file in files), key=lambda m: (m.place, m.name))
    return joined(*({method.name: method} for method in methods))


def joined(*tables: Methods) -> Methods:
    """Several tables as one; ValueError for a name that two of them have."""
    methods: dict[str, Method] = {}
    for table in tables:
        if twice := sorted(methods.keys() & table.keys()):
            raise ValueError(f'two methods are called {twice[0]!r}; choose another name')
        methods |= table
    return MappingProxyType(methods)


def find(methods: Methods, name: str, what: str = 'method') -> Method:
    """The method of a name; ValueError for an unknown one, with the nearest name."""
    if name not in methods:
        raise ValueError(f'no {what} {name!r}; {nearest(str(name), list(methods))}')
    return methods[name]
