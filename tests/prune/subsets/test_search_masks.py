"""Learned masks (DiEP) and evolved matrices (EEP), against layers evaluated in loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from prune.experts.methods import diep, eep, genetic
from prune.subsets import error as reconstruct
from prune.subsets.gates import rule_of
from prune.surgery.apply import apply_layer
from tests.prune.subsets import reconstruct_loops as loops
from tests.prune.subsets.test_search import FORMS, sample

ALL = FORMS | {gate: {'gate': gate} for gate in loops.GATES if gate != 'softmax_topk_renorm'}
FAST = {'population': 4, 'generations': 2, 'merge_population': 4, 'merge_generations': 3}


def case(seed=0, **fields):
    cfg = loops.config(**fields)
    params = loops.layer(cfg, seed)
    return cfg, params, loops.reservoir(cfg, params, seed=seed)


@pytest.mark.parametrize('form', [f for f in ALL if f != 'groups'])
def test_masks_of_zeros_and_ones_are_subsets(form):
    cfg, params, seen = case(**ALL[form])
    rule = rule_of(cfg, 6)
    masked = diep.masked(sample(cfg, params, seen), rule)
    for subset in loops.sets(6, 3)[::3]:
        mask = jnp.asarray(np.isin(np.arange(6), subset), jnp.float32)
        got = diep.masked_error(rule, masked, jnp.arange(24), mask)
        np.testing.assert_allclose(got, loops.error(cfg, params, seen, subset), rtol=2e-4)


def test_a_token_fills_its_places_in_its_own_order():
    """Masks .6, .8, .5, 1 and two places: the third expert gets .5, the fourth the last tenth."""
    cfg = loops.config(experts=4, gate='sigmoid_topk', gate_scale=2.0)
    params = loops.layer(cfg)
    logits = np.array([[2.0, 1.0, 0.5, -1.0], [-1.0, 3.0, 2.0, 1.0]])
    seen = loops.reservoir(cfg, params, tokens=2, logits=logits)
    mask = jnp.array([0.6, 0.8, 0.5, 1.0])
    rule = rule_of(cfg, 4)
    masked = diep.masked(sample(cfg, params, seen), rule)
    got = diep.masked_gates(rule, masked, jnp.arange(2), mask)
    s = 1 / (1 + np.exp(-logits))
    want = 2 * s * [[0.6, 0.8, 0.5, 0.1], [0.0, 0.8, 0.5, 0.7]]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('form', ['K=1', 'K=2', 'groups'])
def test_learned_scores_tell_useless_experts(form):
    """Two experts that tokens hardly choose and that give next to nothing come last."""
    cfg, params, _ = case(1, **ALL[form])
    moe = params['layer_0']['moe']
    logits = np.random.default_rng(2).normal(size=(24, 6))
    logits[:, [1, 4]] -= 9
    for leaf in moe['experts'].values():
        leaf[[1, 4]] *= 0.01
    seen = loops.reservoir(cfg, params, logits=logits)
    found = diep.scores({0: seen}, params, cfg)[0]
    assert found.shape == (6,) and found.dtype == np.float64
    assert set(np.argsort(found)[:2]) == {1, 4}
    again, moved = loops.renamed(params, seen, order := np.array([1, 0, 3, 2, 5, 4]))
    if cfg.groups == 1:
        after = diep.scores({0: moved}, again, cfg)[0]
        np.testing.assert_allclose(after, found[order], atol=1e-3)
    heavy = diep.scores({0: seen}, params, cfg, lam=0.1)[0]
    assert heavy.mean() < found.mean()


def test_a_sensitive_layer_scores_higher():
    """The same layer, and one whose experts are all alike: there any of them can go."""
    cfg, params, seen = case(0, gate='softmax_topk_renorm')
    same = {'layer_0': {'moe': {part: dict(leaves) for part, leaves in
                                params['layer_0']['moe'].items()}}}
    for name, leaf in same['layer_0']['moe']['experts'].items():
        same['layer_0']['moe']['experts'][name] = leaf[[0] * 6]
    one, other = (diep.scores({0: s}, p, cfg)[0] for s, p in (
        (seen, params), (loops.reservoir(cfg, same), same)))
    assert one.min() > other.max()


def test_learning_from_a_part_of_the_tokens_is_seeded(monkeypatch):
    monkeypatch.setattr(diep, 'BATCH', 8)
    cfg, params, seen = case(0, gate='softmax_topk_renorm')
    runs = [diep.scores({0: seen}, params, cfg, steps=40, seed=s)[0] for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    with pytest.raises(ValueError, match='lr must be above 0'):
        diep.scores({0: seen}, params, cfg, lr=0.0)


def error_of(plan, cfg, params, seen):
    """Error of the planned layer, its new experts and router evaluated in loops."""
    moe = params['layer_0']['moe']
    new = apply_layer(moe, plan, cfg, 0)
    weights = {name: np.asarray(leaf) for name, leaf in new['experts'].items()}
    router = {name: np.asarray(leaf, np.float64) for name, leaf in new['router'].items()}
    found = []
    for x, z in zip(seen['sample_input'].astype(float), seen['sample_logits'].astype(float),
                    strict=True):
        y = loops.output(moe['experts'], z, moe['router'].get('correction'), cfg, x)
        z = router['kernel'] @ x
        found.append(np.sum((y - loops.output(weights, z, router.get('correction'), cfg, x)) ** 2))
    return np.mean(found)


@pytest.mark.parametrize('form', list(FORMS))
def test_evolved_matrices_make_the_layer_they_were_rated_for(form):
    cfg, params, seen = case(1, **FORMS[form])
    plan = eep.plan({0: seen}, params, cfg, {0: 3}, **FAST)[0]
    again = eep.plan({0: seen}, params, cfg, {0: 3}, **FAST)[0]
    np.testing.assert_array_equal(plan.mix, again.mix)
    np.testing.assert_array_equal(plan.router, again.router)
    np.testing.assert_allclose(plan.mix.sum(axis=1), 1, atol=1e-6)
    kept = plan.notes['kept']
    np.testing.assert_array_equal(plan.mix.argmax(axis=1), kept)
    np.testing.assert_allclose(plan.notes['error'], error_of(plan, cfg, params, seen), rtol=1e-3)
    before = loops.error(cfg, params, seen, kept)
    np.testing.assert_allclose(plan.notes['set_error'], before, rtol=1e-4)
    assert plan.notes['error'] < before
    new, old = np.nonzero(plan.router)
    assert (new * cfg.groups // 3 == old * cfg.groups // 6).all()
    new, old = np.nonzero(plan.mix)
    assert (new * cfg.groups // 3 == old * cfg.groups // 6).all()


def test_without_merging_it_is_the_genetic_search():
    cfg, params, seen = case(2, gate='softmax_topk_renorm')
    options = {'population': 5, 'generations': 2, 'seed': 3}
    kept = genetic.choose({0: seen}, params, cfg, {0: 3}, **options)[0]
    plan = eep.plan({0: seen}, params, cfg, {0: 3}, merge_generations=0, **options)[0]
    np.testing.assert_array_equal(plan.mix, np.eye(6)[kept])
    np.testing.assert_array_equal(plan.router, np.eye(6)[kept])
    whole = eep.plan({0: seen}, params, cfg, {0: 6}, **FAST)[0]
    np.testing.assert_array_equal(whole.mix, np.eye(6))
    with pytest.raises(ValueError, match=r'sigma=0\.0'):
        eep.plan({0: seen}, params, cfg, {0: 3}, sigma=0.0)


def test_renaming_experts_renames_the_matrices():
    cfg, params, seen = case(0, gate='softmax_topk_renorm')
    order = np.random.default_rng(1).permutation(6)
    before = eep.plan({0: seen}, params, cfg, {0: 3}, **FAST)[0]
    again, moved = loops.renamed(params, seen, order)
    after = eep.plan({0: moved}, again, cfg, {0: 3}, **FAST)[0]
    rows = np.argsort(order[after.notes['kept']])
    np.testing.assert_allclose(after.mix[rows], before.mix[:, order], atol=1e-6)
    np.testing.assert_allclose(after.router[rows], before.router[:, order], atol=1e-6)


def test_evolution_of_matrices_goes_downhill():
    """A target that one matrix pair reaches: error is the distance to it."""
    goal = np.stack([[[0.9, 0.1, 0, 0], [0, 0, 0.8, 0.2]], [[1.2, 0, 0, 0], [0, 0.3, 1, 0]]])

    def error(matrices):
        np.testing.assert_allclose(matrices[0].sum(axis=1), 1)
        return float(((matrices - goal) ** 2).sum())

    start = error(np.tile(np.eye(4)[[0, 2]], (2, 1, 1)))
    found, least = eep.evolved(
        error, np.array([0, 2]), np.array([2, 0, 3, 1]), groups=1, sigma=0.1, population=20,
        generations=60, rng=np.random.default_rng(0))
    assert least == error(found) < start / 20


def test_another_output_that_the_gates_of_the_reservoir_give():
    """A token that a full expert turned away is held to what the layer gave it."""
    cfg, params, seen = case(0, gate='softmax_topk_renorm')
    seen['sample_gates'][3, seen['sample_gates'][3].argmax()] = 0
    got = np.asarray(eep.target_of(cfg, params['layer_0']['moe'], seen).output)
    for t in (0, 3):
        want = sum(g * loops.expert(params['layer_0']['moe']['experts'], e, x) for e, (g, x) in
                   enumerate((g, seen['sample_input'][t]) for g in seen['sample_gates'][t]))
        np.testing.assert_allclose(got[t], want, rtol=1e-3, atol=1e-4)
    assert reconstruct.NEEDS == genetic.METHOD.needs[:4] == eep.METHOD.needs[:4]
