"""Budgets by evolution: closed experts compute what absent ones do; the best budget is found."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from moe_jax.calibration import block_pass
from moe_jax.layers.weights import Norm
from moe_jax.model import decoder
from moe_jax.model.decoder import shapes
from prune.experts import evolution, ranking
from tests.matrix import rows

BASE = Config(
    vocab=64, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=6, experts=(5, 0, 5, 5),
    topk=2, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
)
FORMS = {
    'renormalized': BASE,
    'raw': BASE.replace(gate='softmax_topk', topk=1),
    'top-k first, router bias': BASE.replace(gate='topk_softmax', router_bias=True),
    'sigmoid with correction': BASE.replace(gate='sigmoid_topk_renorm', correction=True),
    'groups': BASE.replace(gate='sigmoid_topk', correction=True, groups=2, groups_used=1,
                           experts=(8, 0, 8, 8)),
}
TOKENS = np.random.default_rng(0).integers(0, 64, (6, 16)).astype(np.int32)
BATCHES = [{'tokens': TOKENS, 'mask': TOKENS >= 0}]


TWO = {form: cfg.replace(experts=cfg.experts[2:]) for form, cfg in FORMS.items()}


def drawn(cfg, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape), leaf.dtype),
                        shapes(cfg))


@pytest.mark.parametrize('form', rows(TWO, quick=['groups']))
def test_closed_experts_compute_what_absent_ones_do(form):
    cfg = TWO[form]
    params = drawn(cfg)
    stats = moe_jax.observe(cfg, params, BATCHES)
    counts = (4, 6) if cfg.groups > 1 else (2, 3)
    scores = prune.scores('reap', stats, params, cfg)
    masks = ranking.kept(scores, dict(zip(cfg.moe_layers, counts, strict=True)), cfg.groups)
    closed, closed_cfg = ranking.shut(params, cfg, masks)
    plan = prune.plan('reap', stats, params, cfg, experts=counts)
    small, small_cfg = prune.apply(params, cfg, plan)
    np.testing.assert_allclose(moe_jax.apply(closed_cfg, closed, TOKENS),
                               moe_jax.apply(small_cfg, small, TOKENS), rtol=2e-5, atol=2e-5)


def test_scores_are_those_that_plans_note():
    params = drawn(BASE)
    stats = moe_jax.observe(BASE, params, BATCHES)
    found = prune.scores('ean', stats, params, BASE)
    plan = prune.plan('ean', stats, params, BASE, experts=3)
    for i, values in found.items():
        np.testing.assert_array_equal(values, plan.layers[i].notes['scores'])
    with pytest.raises(ValueError, match='does not rank experts'):
        prune.scores('uncurl', stats, params, BASE)


def logits(cfg, params):
    """Block by block: the ten models of the next test have blocks of four sizes."""
    segments = np.ones_like(TOKENS)
    x = block_pass.embed(BASE, params, TOKENS, segments)
    for i in range(cfg.layers):
        x = block_pass.step(block_pass.layer_config(cfg, i))(
            params[f'layer_{i}'], x, TOKENS, segments)
    norm = Norm(cfg.norm, cfg.norm_eps, cfg.width)
    return decoder.unembed(cfg, params, norm.apply({'params': params['norm_final']}, x))


@pytest.mark.full
def test_it_finds_the_best_of_all_budgets():
    """Nine experts over three layers of five with at least two each: all 10 budgets by hand."""
    params = drawn(BASE)
    stats = moe_jax.observe(BASE, params, BATCHES)
    seen = {}
    for counts in itertools.product(range(2, 6), repeat=3):
        if sum(counts) == 9:
            small, cfg = prune.apply(params, BASE, prune.plan('reap', stats, params, BASE,
                                                              experts=counts))
            p, q = (jax.nn.softmax(logits(c, w), -1)[:, :-1]
                    for c, w in ((BASE, params), (cfg, small)))
            seen[counts] = float(jnp.minimum(p, q).sum(-1).mean())
    calls = []
    found = prune.evolve('reap', stats, params, BASE, BATCHES, experts=3, population=8,
                         generations=6, progress=lambda *step: calls.append(step))
    assert found.experts == max(seen, key=seen.get)
    assert found.acceptance == pytest.approx(max(seen.values()), rel=1e-5)
    assert found.uniform == pytest.approx(seen[3, 3, 3], rel=1e-5)
    assert list(found.history) == sorted(found.history) and found.evaluated <= len(seen)
    assert [c[:2] for c in calls] == [(g, 6) for g in range(7)] and calls[-1][2] == found.acceptance
    again = prune.evolve('reap', stats, params, BASE, BATCHES, experts=3, population=8,
                         generations=6)
    assert again == found


def test_moves_keep_the_sum_the_floors_and_the_groups():
    cfg = BASE.replace(experts=(8, 0, 16, 4), groups=2, topk=2)
    space = evolution._Space.of(cfg, {0: 4, 2: 8, 3: 4}, 2)
    rng = np.random.default_rng(0)
    starts = space.starts(9, rng)
    assert starts[0] == (2, 4, 0) and len(starts) == 9
    assert space.rounded(np.ones(3)) == (3, 2, 1)  # the last layer has room for one
    for genome in starts:
        for _ in range(50):
            genome = space.mutated(genome, rng)
            assert sum(genome) == 6 and all(0 <= g <= m for g, m in zip(genome, (3, 7, 1),
                                                                       strict=True))
    assert space.kept((3, 2, 1)) == (2, 12, 2)
    full = evolution._Space.of(BASE, {0: 5, 2: 5, 3: 5}, 2)
    assert full.mutated((0, 0, 0), rng) == (0, 0, 0)


def test_what_makes_no_sense_is_refused_before_anything_runs():
    params = drawn(BASE)
    stats = moe_jax.observe(BASE, params, BATCHES)
    for options, message in (({'population': 1}, 'population=1'), ({'elites': 40}, 'at most the'),
                             ({'generations': -1}, 'generations=-1'),
                             ({'experts': 1}, 'cannot keep 1'), ({'experts': None}, 'exactly one')):
        with pytest.raises(ValueError, match=message):
            prune.evolve('reap', stats, params, BASE, None, **{'experts': 3} | options)
    with pytest.raises(ValueError, match='does not rank'):
        prune.evolve('naee', stats, params, BASE, None, experts=3)
