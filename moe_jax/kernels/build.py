"""The library of native kernels (`csrc/`), compiled for the processor at hand when asked to.

They are optional: `moe-jax build-kernels` needs a C++ compiler, everything else does without. What
was compiled lies in the cache folder under a name that says what it was made from and for which
processor, so that neither a new version nor a cache that machines share ever loads another's.
Beside it lies a note of the trial that it passed (`trial.try_native`), without which no program
uses it.
"""

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax

from moe_jax.base import cache
from moe_jax.base.files import replacing

SOURCES = Path(__file__).parent / 'csrc'
COMPILERS = 'c++', 'g++', 'clang++'  # after $CXX; GCC 12 or Clang 12 and later
# Every instruction of this processor; no license to change what a sum is.
TUNED = '-mcpu=native' if platform.machine() in ('arm64', 'aarch64') else '-march=native'
# Halves are read as what pairs of them are multiplied as, hence no assumption about aliasing.
FLAGS = ('-std=c++17', '-O3', TUNED, '-fno-strict-aliasing', '-fPIC', '-shared', '-pthread',
         '-Wno-psabi')
SYMBOLS = ('-undefined', 'dynamic_lookup') if sys.platform == 'darwin' else ()


def built() -> Path:
    """The library for this processor, this jax and these sources.

    FileNotFoundError: it was not built.
    """
    path = place()
    if not path.exists():
        raise FileNotFoundError(f'{path} is not there: `moe-jax build-kernels` makes it')
    return path


def tried() -> Path:
    """The library that `built` gives, after it passed its trial.

    FileNotFoundError: it was not built, or what passed a trial is not this very library.
    """
    path = built()
    note = _note(path)
    if not note.exists() or note.read_text().partition('\n')[0] != _digest(path):
        raise FileNotFoundError(f'{path} has passed no trial: `moe-jax build-kernels` tries it')
    return path


def note_trial(path: Path, errors: Mapping[str, float]) -> None:
    """Write beside a library that it passed its trial; errors: the relative one of each dtype."""
    with replacing(_note(path)) as file:
        lines = (_digest(path), *(f'{dtype} {error:.1e}' for dtype, error in errors.items()))
        file.write_text('\n'.join(lines) + '\n')


def build() -> Path:
    """Compile the library, unless that was done, and say where it is.

    FileNotFoundError: no C++ compiler; RuntimeError: it refused.
    """
    path = place()
    if path.exists():
        return path
    cache.root()
    with replacing(path) as file:
        command = [*compiler(), *FLAGS, *SYMBOLS, '-isystem', jax.ffi.include_dir(),
                   str(SOURCES / 'grouped.cc'), '-o', str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f'the compiler refused:\n{shlex.join(command)}\n{done.stderr}\n'
                               'GCC 12 or Clang 12 is needed, or later; CXX names another one')
    return path


def compiler() -> list[str]:
    """$CXX, which may carry options of its own, or the first C++ compiler that is installed.

    FileNotFoundError: there is none.
    """
    if chosen := os.environ.get('CXX'):
        return shlex.split(chosen)
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise FileNotFoundError(f'no C++ compiler: none of {", ".join(COMPILERS)} is installed, and '
                            'CXX names none')


def place() -> Path:
    """The path of the library for this processor, this jax and these sources, there or not."""
    # Public, and not re-exported by name.
    version = jax.lib.__version__  # pyright: ignore[reportPrivateImportUsage]
    made_from = [version, *FLAGS, platform.system(), platform.machine(),
                 *platform.libc_ver(), _processor()]
    digest = hashlib.sha256('\n'.join(made_from).encode())
    for source in sorted(SOURCES.glob('*.*')):
        digest.update(source.read_bytes())
    return cache.place() / 'native' / f'grouped-{digest.hexdigest()[:16]}.so'


def _note(library: Path) -> Path:
    return library.with_suffix('.tried')


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """The abilities of the processor: a library that needs others would end the process."""
    if sys.platform == 'darwin':
        named = ['sysctl', '-n', 'machdep.cpu.brand_string']
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = 'flags', 'Features', 'model name'
    return '\n'.join(sorted({line for line in lines if line.startswith(names)}))
