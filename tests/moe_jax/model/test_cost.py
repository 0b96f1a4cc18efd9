import pytest

from moe_jax import preset
from moe_jax.base.text import human
from moe_jax.base.tree import count_params
from moe_jax.cli import model_table
from moe_jax.model import cost, decoder
from moe_jax.study.clock import forward_milliseconds


def test_counts_by_hand(cfg):
    """cfg: V 23, P 10, D 8, mlp 12, experts 6, layers (4, dense, 4), two experts a token."""
    expert = 8 * 6 + 6 + 6 * 8 + 8
    attention = 8 * 24 + 24 + 8 * 8 + 8
    norms = 7 * 16
    mlp = 8 * 12 + 12 + 12 * 8 + 8
    shared = 23 * 8 + 10 * 8 + norms + 3 * attention + mlp + 2 * (4 * 8)
    found = cost.count(cfg)
    assert found.total == shared + 2 * 4 * expert == count_params(decoder.shapes(cfg))
    assert found.active == shared + 2 * 2 * expert
    assert found.bytes == 4 * found.total
    matrices = 23 * 8 + 3 * (8 * 24 + 8 * 8) + 2 * 8 * 12 + 2 * (4 * 8) + 2 * 2 * (2 * 8 * 6)
    assert found.flops == 2 * matrices + 3 * 4 * 8 * 10
    assert cost.count(cfg, 4).flops == 2 * matrices + 3 * 4 * 8 * 4


def test_active_parameters_do_not_grow_with_experts_but_by_router_rows():
    small, large = (cost.count(preset('gpt2_354m', experts=n)) for n in (8, 128))
    assert large.active - small.active == 12 * 120 * 1024
    assert large.total / small.total > 12


def test_a_dense_model_is_all_active():
    found = cost.count(preset('gpt2_354m', experts=0))
    assert found.total == found.active == 354_823_168


def test_shared_experts_count_once(cfg):
    shared = cfg.replace(experts=(1, 0, 4), aliases=((0, 0, 0, 0), None, None))
    found, whole = cost.count(shared), cost.count(cfg)
    expert = 8 * 6 + 6 + 6 * 8 + 8
    assert whole.total - found.total == 3 * expert
    assert whole.active - found.active == expert  # at most the one expert there is


@pytest.mark.parametrize(('experts', 'alias', 'constants', 'used'), [
    (2, (0, 2, 1, 3), 2, (2, 0)),   # both places can be experts
    (1, (1, 0, 2, 3), 3, (1, 1)),   # one cannot
    (1, (0, 1, -1, -1), 1, (1, 1)),
    (1, (0, -1, -1, -1), 0, (1, 0)),
])
def test_constants_are_active_only_in_places_that_no_expert_can_fill(
        cfg, experts, alias, constants, used):
    """K = 2, D = 8: of 4 experts some became constants of 8 numbers or closed rows."""
    small = cfg.replace(experts=(experts, 0, 4), aliases=(alias, None, None), clamp=True,
                        constants=(constants, 0, 0))
    found, whole = cost.count(small), cost.count(cfg)
    expert, matrices = 8 * 6 + 6 + 6 * 8 + 8, 2 * 8 * 6
    assert whole.total - found.total == (4 - experts) * expert - constants * 8
    assert whole.active - found.active == (2 - used[0]) * expert - used[1] * 8
    assert whole.flops - found.flops == 2 * (2 - used[0]) * matrices


def test_forward_milliseconds(cfg):
    found = forward_milliseconds([cfg.replace(experts=(0,))], (1, 4), 3)
    assert [len(times) for times in found] == [3]
    assert all(time > 0 for times in found for time in times)


@pytest.mark.parametrize(('count', 'text'), [
    (1_059_994_624, '1.06B'), (354_823_168, '355M'), (1_500, '1.5k'), (7, '7'),
])
def test_human(count, text):
    assert human(count) == text


def test_the_table_adds_up(cfg):
    table = model_table.table(cfg, 'cfg')
    total, active = (
        [int(cell.replace(',', '')) for cell in table.columns[i].cells] for i in (3, 4))
    found = cost.count(cfg)
    assert (sum(total), sum(active)) == (found.total, found.active)
    assert list(table.columns[1].cells) == ['', '4', 'dense', '4', '']


def test_config_of_a_preset_and_of_a_folder(cfg, tmp_path):
    assert model_table.config_of('tiny', 3) == preset('tiny', experts=3)
    (tmp_path / 'config.json').write_text(cfg.to_json())
    assert model_table.config_of(str(tmp_path)) == cfg
    with pytest.raises(ValueError, match='is a saved model'):
        model_table.config_of(str(tmp_path), 3)
    with pytest.raises(ValueError, match='no preset'):
        model_table.config_of('tinny')
