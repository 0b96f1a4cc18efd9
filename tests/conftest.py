"""Strict numerics for every test, and no network unless a test is marked for it."""

import os

from tests import quick_compiling

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = quick_compiling.flags()
# The same products on every machine, whether compiled ones were built there or not; these have
# tests of their own, and `MOE_JAX_GROUPED= pytest` runs all tests with them.
os.environ.setdefault('MOE_JAX_GROUPED', 'loop')
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['HF_DATASETS_OFFLINE'] = '1'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

MAPS = 50_000  # of the 65,530 that Linux gives a process
# Files that take more than 20 seconds: one that came last would leave the other worker idle.
LONGEST = (
    'mesh/test_on_devices.py', 'mesh/test_processes.py', 'study/test_runner.py',
    'hf/test_parity.py', 'hf/test_big.py', 'experts/test_contract.py', 'loop/test_kill.py',
    'hf/test_harness.py', 'kernels/test_native.py', 'experts/test_layerwise.py',
    'experts/test_evolution.py', 'recipes/test_distill.py', 'forecasting/test_forecast_xla.py',
    'hf/test_export.py',
)


def pytest_collection_modifyitems(items):
    """The longest files first, all others as they come."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(f'{item.path.parent.name}/{item.path.name}', len(place)))


@pytest.fixture(scope='module', autouse=True)
def _programs_kept_in_bounds():
    """Compiled programs are memory maps; a worker that kept those of a thousand tests ran out."""
    yield
    try:
        with open('/proc/self/maps') as file:
            many = sum(1 for _ in file) > MAPS
    except OSError:  # not Linux: nothing is known to run out
        return
    if many:
        jax.clear_caches()
