"""Skip thresholds from statistics: quantiles of gate ratios, and what the model then skips."""

import numpy as np
import pytest

import moe_jax
from moe_jax import Config
from moe_jax.calibration.skip_thresholds import calibrated_skip, uniform_skip
from moe_jax.config import Skip

CFG = Config(
    vocab=61, positions=64, width=8, heads=2, mlp_hidden=8, expert_hidden=6, experts=(6, 0, 4),
    topk=3, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
    capacity_train=None,
)
TOKENS = np.random.default_rng(3).integers(0, 61, (24, 64)).astype(np.int32)
BATCHES = [{'tokens': part, 'mask': part >= 0} for part in np.split(TOKENS, 3)]


@pytest.fixture(scope='module')
def params(draw):
    return draw(CFG)


@pytest.fixture(scope='module')
def stats(params):
    return moe_jax.observe(CFG, params, BATCHES)


@pytest.mark.parametrize('share', [0.25, 0.5, 0.9])
def test_thresholds_are_quantiles_of_the_gate_ratios(params, stats, run, share):
    skip = calibrated_skip(CFG, stats, share=share)
    routing = run(CFG, params, TOKENS, watch=('routing',))[1]['routing']
    assert skip.thresholds[1] == ()
    for i in (0, 2):
        gates = np.asarray(routing[i].gates, np.float64)
        wanted = np.quantile(gates[:, 1:] / gates.max(axis=1, keepdims=True), share, axis=0)
        np.testing.assert_allclose(skip.thresholds[i], wanted, atol=2e-3)


def test_the_model_then_uses_as_many_experts_as_asked(params, stats):
    first = Skip(kind='ratio', thresholds=(calibrated_skip(CFG, stats).thresholds[0], (), (0, 0)))
    quality = moe_jax.compare(CFG, params, CFG.replace(skip=first), params, BATCHES)
    assert quality.active[0] == pytest.approx(1 + 0.5 * 2, abs=0.05)
    assert quality.active[1] == pytest.approx(3)
    assert quality.mean('kl') > 0
    none = CFG.replace(skip=calibrated_skip(CFG, stats, share=0))
    assert moe_jax.compare(CFG, params, none, params, BATCHES).active == pytest.approx((3, 3))


@pytest.mark.full
def test_layers_with_fewer_experts_than_slots(draw):
    cfg = CFG.replace(experts=(6, 0, 2), clamp=True)
    params = draw(cfg)
    skip = calibrated_skip(cfg, moe_jax.observe(cfg, params, BATCHES), share=0.4)
    assert len(skip.thresholds[2]) == 2 and skip.thresholds[2][1] == 0 < skip.thresholds[2][0]
    found = moe_jax.compare(cfg, params, cfg.replace(skip=skip), params, BATCHES)
    assert 1 < found.active[1] < 2


def test_top_p_takes_one_threshold_a_layer(params):
    skip = uniform_skip(CFG, 'top_p', 0.4)
    assert skip.thresholds == ((0.4,), (), (0.4,))
    used = moe_jax.compare(CFG, params, CFG.replace(skip=skip), params, BATCHES).active
    assert all(1 <= n < 3 for n in used)
    assert uniform_skip(CFG, 'ratio', 0.2).thresholds == ((0.2, 0.2), (), (0.2, 0.2))


def test_what_cannot_be_calibrated_is_refused(stats):
    with pytest.raises(ValueError, match='share=1'):
        calibrated_skip(CFG, stats, share=1.0)
    with pytest.raises(ValueError, match='one expert per token'):
        calibrated_skip(CFG.replace(topk=1), stats)
    with pytest.raises(ValueError, match='observe this model'):
        calibrated_skip(CFG.replace(experts=(6, 6, 4)), stats)
    with pytest.raises(ValueError, match='has 2 slots'):
        calibrated_skip(CFG.replace(topk=2), stats)
    with pytest.raises(KeyError, match='no group'):
        calibrated_skip(CFG, stats, group='other')
