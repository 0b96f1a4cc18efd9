"""What many devices give is what one gives."""

import pytest

from tests.matrix import rows
from tests.mesh.programs import fault

CHECKS = 'layer', 'forward', 'pruning', 'fingerprints', 'notebook', 'training', 'distilling'


@pytest.mark.parametrize('check', rows(CHECKS, quick=('layer', 'fingerprints')))
def test_many_devices_give_what_one_gives(check):
    assert fault('on_devices.py', check) == ''
