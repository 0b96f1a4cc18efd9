"""The source of this Python's own standard library, without tests: code.

Nothing is downloaded. The text belongs to one Python release, so a corpus records its version.
"""

import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from moe_jax.data.documents import Document

# Tests, data tables written as Python, additions of an installation, optional modules.
LEFT_OUT = frozenset({'site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test',
                      'encodings', 'pydoc_data', 'lib2to3', 'idlelib', 'tkinter', 'turtledemo',
                      'ensurepip', 'distutils', '__phello__'})


def version() -> str:
    """The Python version whose library is read, as in 'CPython 3.11.7'."""
    return f'{platform.python_implementation()} {platform.python_version()}'


def folder() -> Path:
    """The folder of the standard library's source."""
    return Path(sysconfig.get_path('stdlib'))


def documents(stdlib: Path | None = None) -> Iterator[Document]:
    """One document per module of the standard library, named by its path below the library."""
    stdlib = stdlib or folder()
    for path in sorted(stdlib.rglob('*.py')):
        inner = path.relative_to(stdlib)
        generated = inner.name.startswith('_sysconfigdata') or inner.parts[0].startswith('config-')
        if LEFT_OUT.isdisjoint(inner.parts) and not generated:
            with tokenize.open(path) as file:
                text = file.read().strip()
            if text:
                yield Document(f'code/{inner.with_suffix("").as_posix()}', 'code', text)
