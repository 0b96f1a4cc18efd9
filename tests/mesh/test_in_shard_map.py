"""The library inside a caller's own shard_map, under its default checks."""

import pytest

from tests.matrix import rows
from tests.mesh.programs import fault

CASES = ('loop', 'gated, bfloat16', 'blocks', 'ragged', 'capacity', 'sinks, windows',
         'expert choice', 'hash', 'blocked attention')


@pytest.mark.parametrize('case', rows(CASES, quick=('loop',)))
def test_two_devices_give_what_each_half_gives(case):
    assert fault('in_shard_map.py', case) == ''
