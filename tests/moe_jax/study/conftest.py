"""Texts and caches that the tests of studies share; nothing here needs a network."""

import os
import sys
from pathlib import Path

import jax
import pytest
from filelock import FileLock
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from moe_jax.study import material, report, runner
from tests.moe_jax.study import study_tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> Path:
    """A folder of this session, the same one for every worker of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='package', autouse=True)
def caches(shared):
    """Our cache and XLA's in that folder, for this process and those it starts."""
    # Strict promotion traces to other programs: without it the others would compile anew.
    settings = {name: jax.config.values[name] for name in
                ('jax_numpy_rank_promotion', 'jax_numpy_dtype_promotion')} | {
        'jax_compilation_cache_dir': str(shared / 'compiled'),
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_disable_most_optimizations': True,  # compiling is most of what these tests do
    }
    before = {name: jax.config.values[name] for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MOE_JAX_CACHE', str(shared / 'cache'))
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        reset_cache()  # JAX looks at its settings once
        yield
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()


@pytest.fixture(scope='package')
def texts(shared) -> Path:
    with FileLock(shared / 'texts.lock'):
        folder = shared / 'texts'
        return folder if folder.exists() else study_tiny.write_texts(folder)


@pytest.fixture(scope='package')
def stuff(texts) -> material.Material:
    return material.prepare(study_tiny.config(), texts)


@pytest.fixture(scope='package')
def unbroken(texts, shared) -> Path:
    """The folder of the tiny study, run once without a break, whichever worker comes first."""
    folder = shared / 'unbroken/study'
    with FileLock(shared / 'unbroken.lock'):
        if not (folder / 'table.md').exists():
            report.write(runner.run(study_tiny.config(), folder, data_dir=texts), folder)
    return folder


@pytest.fixture
def command(monkeypatch):
    """Runs `moe-jax` with arguments in this process; returns the exit code."""
    from moe_jax.cli import main

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, 'argv', ['moe-jax', *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return 0 if end.code is None else end.code
        return 0
    return run
