"""Texts and caches that the tests of studies share; nothing here needs a network."""

import os
import sys
from pathlib import Path

import jax
import pytest
import study_tiny

from moe_jax.study import material, report, runner

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='session')
def shared(tmp_path_factory) -> Path:
    """A folder of this session, the same one for every worker of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session', autouse=True)
def caches(shared):
    """Our cache and XLA's in that folder, for this process and those it starts."""
    compiled = str(shared / 'compiled')
    patch = pytest.MonkeyPatch()
    patch.setenv('MOE_JAX_CACHE', str(shared / 'cache'))
    patch.setenv('JAX_COMPILATION_CACHE_DIR', compiled)
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    before = {name: getattr(jax.config, name) for name in
              ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')}
    jax.config.update('jax_compilation_cache_dir', compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    patch.undo()


@pytest.fixture(scope='session')
def texts(tmp_path_factory) -> Path:
    return study_tiny.write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture(scope='session')
def stuff(texts) -> material.Material:
    return material.prepare(study_tiny.config(), texts)


@pytest.fixture(scope='session')
def unbroken(texts, tmp_path_factory) -> Path:
    """The folder of the tiny study, run without a break."""
    folder = tmp_path_factory.mktemp('unbroken') / 'study'
    report.write(runner.run(study_tiny.config(), folder, data_dir=texts), folder)
    return folder


@pytest.fixture
def command(monkeypatch):
    """Runs `moe-jax` with arguments in this process; returns the exit code."""
    from moe_jax import cli

    def run(*arguments) -> int:
        monkeypatch.setattr(sys, 'argv', ['moe-jax', *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return 0 if end.code is None else end.code
        return 0
    return run
