"""Forms and slots of experts over a mesh, from sizes by hand."""

import pytest

from moe_jax.experts import forms
from moe_jax.experts.forms import Split


@pytest.mark.parametrize(('axes', 'experts', 'topk', 'split', 'form'), [
    ({'data': 8}, 4, 1, Split(False), 'local'),
    ({'expert': 4}, 8, 1, Split(True), 'exchange'),
    ({'expert': 4}, 8, 4, Split(True), 'gather'),  # all devices see the tokens anyhow
    ({'expert': 2, 'model': 2}, 8, 1, Split(True, ('model',)), 'exchange'),
    ({'expert': 3}, 4, 1, Split(False, ('expert',)), 'gather'),  # 4 do not divide over 3
    ({'expert': 5}, 4, 1, Split(False), 'local'),  # nor do 12 hidden units over 5
])
def test_split_and_form(axes, experts, topk, split, form):
    assert forms.split_of(axes, (experts, 12, 8)) == split
    assert forms.form_of(axes, split, topk) == form


@pytest.mark.parametrize(('choices', 'devices', 'slots'), [
    (64, 2, 40), (64, 4, 24), (100, 4, 32), (6, 4, 6), (8, 8, 8), (1000, 8, 160),
])
def test_slots_are_a_quarter_above_the_mean_and_at_most_all_rows(choices, devices, slots):
    assert forms.slots_of({'expert': devices}, choices) == slots
