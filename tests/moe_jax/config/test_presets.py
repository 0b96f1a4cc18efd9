import jax
import pytest

from moe_jax import preset
from moe_jax.base.tree import count_params
from moe_jax.config.presets import PRESETS
from moe_jax.model import decoder


def total(*, layers, width, experts, vocab=50257, positions=1024):
    """Parameters of the GPT-2 form, summed by hand; experts=0 is dense."""
    d, f = width, 4 * width
    norm = 2 * d
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    feed_forward = (d * f + f) + (f * d + d)
    sparse_layers = (layers + 1) // 2 if experts else 0
    sparse = experts * feed_forward + experts * d
    return (
        vocab * d + positions * d + norm
        + layers * (2 * norm + attention)
        + (layers - sparse_layers) * feed_forward + sparse_layers * sparse
    )


def size(name, experts):
    return count_params(decoder.shapes(preset(name, experts=experts)))


@pytest.mark.parametrize(('experts', 'known', 'paper'), [
    (0, 354_823_168, 354e6), (8, 1_059_994_624, 1.05e9), (32, 3_477_683_200, 3.5e9),
    (64, 6_701_267_968, 6.7e9), (128, 13_148_437_504, 13.1e9),
])
def test_the_papers_backbone_has_the_papers_size(experts, known, paper):
    found = size('gpt2_354m', experts)
    assert found == known == total(layers=24, width=1024, experts=experts)
    assert found == pytest.approx(paper, rel=0.01)


@pytest.mark.parametrize(('experts', 'known'), [(0, 124_439_808), (8, None), (32, None)])
def test_gpt2_small(experts, known):
    found = size('gpt2_124m', experts)
    assert found == total(layers=12, width=768, experts=experts)
    assert known in (None, found)


def test_width_1024_would_not_be_124m():
    assert total(layers=12, width=1024, experts=0) > 200e6


def test_with_experts_has_the_tree_of_that_preset():
    small, large = preset('gpt2_354m', experts=8), preset('gpt2_354m', experts=32)
    assert large.with_experts(8) == small
    jax.tree.map(lambda a, b: None if a.shape == b.shape else pytest.fail(f'{a} {b}'),
                 decoder.shapes(large.with_experts(8)), decoder.shapes(small))


def test_the_papers_routing():
    cfg = preset('gpt2_354m')
    assert cfg.experts == (8, 0) * 12 and cfg.topk == 1 and cfg.gate == 'softmax_topk'
    assert (cfg.capacity_train, cfg.capacity_eval, cfg.min_capacity) == (1.2, 1.0, 4)
    assert cfg.balance == 0.01 and cfg.heads == 16 and cfg.mlp_hidden == 4096


@pytest.mark.parametrize('name', sorted(PRESETS))
def test_every_preset_takes_any_count(name):
    assert preset(name).moe_layers[0] == 0
    assert preset(name, experts=0).moe_layers == ()
    assert set(preset(name, experts=3).experts) == {3, 0}


@pytest.mark.parametrize('experts', [-1, 65537])
def test_absurd_counts_are_refused(experts):
    with pytest.raises(ValueError, match=f'experts={experts}'):
        preset('tiny', experts=experts)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gpt2_354m'"):
        preset('gpt2_345m')
