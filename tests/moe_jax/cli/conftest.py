"""A tiny model's folder, statistics and texts for the commands, and the command itself."""

import pytest

import moe_jax
from tests.moe_jax.cli import prune_case


@pytest.fixture(scope='session')
def source(tmp_path_factory):
    return prune_case.write_source(tmp_path_factory.mktemp('source'))


@pytest.fixture(scope='session')
def model(source):
    return moe_jax.load(source)


@pytest.fixture(scope='session')
def stats(model, tmp_path_factory):
    return prune_case.write_stats(tmp_path_factory.mktemp('stats') / 'stats.npz', *model)


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
    return prune_case.write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture
def command(monkeypatch, tmp_path_factory):
    """`moe-jax` in this process; the exit code."""
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
    return lambda *arguments: prune_case.run(monkeypatch, *arguments)
