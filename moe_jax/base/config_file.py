"""Python files that say what to do: a function config(), and perhaps smoke(), returns one value."""

import dataclasses
import importlib.util
import re
import traceback
from pathlib import Path
from typing import Any, TypeVar

from moe_jax.base.checks import nearest

T = TypeVar('T')


def load(path: str | Path, variant: str, kinds: tuple[type[T], ...],
         parts: tuple[type, ...] = ()) -> T:
    """Run a config file's function `variant` ('config', 'smoke') and return its value.

    kinds: what it must return, one of them; parts: other dataclasses that such a file makes, of
    which misspelt fields are answered with the nearest one. Whatever the file raises becomes a
    ValueError that names the file, the line and the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such config file; those that come with the library '
                                'are in configs/')
    spec = importlib.util.spec_from_file_location(f'moe_jax_config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path}: a config is a Python file (.py)')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if callable(getattr(module, variant, None)):
            value = getattr(module, variant)()
    except Exception as error:
        raise ValueError(_fault(path, error, (*kinds, *parts))) from error
    if not callable(getattr(module, variant, None)):
        have = [name for name, found in vars(module).items()
                if callable(found) and getattr(found, '__module__', '') == module.__name__]
        wanted = ' or a '.join(kind.__name__ for kind in kinds)
        known = nearest(variant, have) if have else f'it must have config(), which returns a ' \
            f'{wanted}'
        raise ValueError(f'{path} has no function {variant}(); {known}')
    if not isinstance(value, kinds):
        wanted = ' or a '.join(f'{kind.__module__}.{kind.__qualname__}' for kind in kinds)
        raise ValueError(f'{path}: {variant}() returned {type(value).__name__}; it must return a '
                         f'{wanted}')
    return value


def _fault(path: Path, error: Exception, kinds: tuple[Any, ...]) -> str:
    """Where in the config something was raised, and what; a misspelt field with the nearest one."""
    if isinstance(error, SyntaxError):
        return f'{path}:{error.lineno}: {error.msg}'
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename).resolve() == path.resolve()]
    where = f'{path}:{lines[-1]}' if lines else str(path)
    misspelt = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
                         str(error))
    named = {kind.__name__: kind for kind in kinds}
    if misspelt and misspelt[1] in named:
        known = [field.name for field in dataclasses.fields(named[misspelt[1]])]
        return f'{where}: {misspelt[1]} has no field {misspelt[2]!r}; {nearest(misspelt[2], known)}'
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    return f'{where}: {kind}{error}'
