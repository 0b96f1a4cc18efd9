"""Python files that say what to do: a function config(), and perhaps smoke(), returns one value."""

import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.util
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from moe_jax.base.checks import nearest

T = TypeVar('T')
log = logging.getLogger('moe_jax')

# Modules that config files import and that lay elsewhere once. Only a config file that is being
# run finds them by the old name, so that no other code can come to rely on it.
MOVED = {
    'moe_jax.config_parts': 'moe_jax.config.parts',
    'moe_jax.presets': 'moe_jax.config.presets',
    'moe_jax.study.spec': 'moe_jax.study.expert_count.spec',
    'train.options': 'train.loop.options',
    'train.run': 'train.recipes.run',
}


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
        with _old_names():
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


class _Old(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finder of modules by the names of `MOVED`: stand-ins that hand on the new module's names."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None
                  ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        log.info('%s is now %s', module.__name__, new)
        target = importlib.import_module(new)
        module.__dict__['__getattr__'] = lambda name: getattr(target, name)


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """Inside, the old names of `MOVED` can be imported; afterwards nothing of them is left."""
    finder = _Old()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in MOVED:
            if getattr(getattr(sys.modules.get(name), '__spec__', None), 'loader', None) is finder:
                stand_in = sys.modules.pop(name)
                parent, _, child = name.rpartition('.')
                if getattr(sys.modules[parent], child, None) is stand_in:
                    delattr(sys.modules[parent], child)
