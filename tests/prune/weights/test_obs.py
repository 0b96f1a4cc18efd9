"""SparseGPT's arithmetic: hand-sized cases, least squares step by step, and what it is for."""

import numpy as np
import pytest

import prune
from prune.weights import obs
from prune.weights.methods import sparsegpt
from prune.weights.stack import Stack
from tests.prune.weights.weights_case import CFG, LEAVES, drawn, kept, matrices, observed


def correlated(rng, tokens, inputs):
    """Mostly a few common directions, as hidden states are."""
    common = rng.normal(size=(tokens, inputs // 4)) @ rng.normal(size=(inputs // 4, inputs))
    return common + 0.5 * rng.normal(size=(tokens, inputs))


def test_two_inputs_by_hand():
    """Zeroing w_0 of (1, 1) with H = [[2, 1], [1, 1]]: w_1 becomes 1 + H_10 / H_11 w_0 = 2."""
    upper = obs.factor(np.array([[2.0, 1.0], [1.0, 1.0]]), 0.0, 1)
    # H^-1 = [[1, -1], [-1, 2]]: losses 1 / 1 and 1 / (2 - 1) are equal, the first goes.
    np.testing.assert_allclose(upper.T @ upper, [[1, -1], [-1, 2]], atol=1e-12)
    mask, new = obs.solve(np.ones((2, 1)), upper, lambda start, stop: 1, 2, 2)
    np.testing.assert_array_equal(mask, [[False], [True]])
    np.testing.assert_allclose(new, [[0], [2]], atol=1e-12)


@pytest.mark.parametrize(('unit', 'block'), [(16, 16), (4, 4), (4, 8), (8, 8)])
def test_each_step_is_least_squares_over_the_inputs_that_follow(unit, block):
    rng = np.random.default_rng(0)
    x, w = correlated(rng, 60, 16), rng.normal(size=(16, 3))
    upper = obs.factor(x.T @ x, 0.0, 1)
    mask, new = obs.solve(w, upper, lambda start, stop: (stop - start) // 2, unit, block)
    for o in range(3):
        got = w[:, o].copy()
        for j in range(16):
            if not mask[j, o]:
                got[j] = 0.0
                goal = x @ (w[:, o]) - x[:, :j + 1] @ got[:j + 1]
                got[j + 1:] = np.linalg.lstsq(x[:, j + 1:], goal, rcond=None)[0]
        np.testing.assert_allclose(new[:, o], got, atol=1e-8)


def test_the_first_choice_is_the_least_increase_of_the_error():
    rng = np.random.default_rng(1)
    x, w = correlated(rng, 40, 4), rng.normal(size=(4, 20))
    upper = obs.factor(x.T @ x, 0.0, 1)
    mask, _ = obs.solve(w, upper, lambda start, stop: 1, 4, 4)
    for o in range(20):
        errors = []
        for j in range(4):  # zero input j, let those after it make up for it
            fit = np.linalg.lstsq(x[:, j + 1:], x[:, j] * w[j, o], rcond=None)[0]
            errors.append(np.linalg.norm(x[:, j] * w[j, o] - x[:, j + 1:] @ fit))
        assert np.flatnonzero(~mask[:, o]).tolist() == [int(np.argmin(errors))]


@pytest.mark.parametrize('pattern', [None, (2, 4)])
def test_less_error_than_the_mask_of_wanda(pattern):
    rng = np.random.default_rng(2)
    x = np.stack([correlated(rng, 300, 24) for _ in range(2)])
    w = rng.normal(size=(2, 24, 10)).astype(np.float32)
    seen = {'input_gram': np.einsum('eni,enj->eij', x, x), 'evaluated': np.array([300, 300])}
    mask, new, fallback = sparsegpt.solve(Stack(0, 'up', w, seen), 0.5, pattern, block=8)
    plain = sparsegpt._wanda(Stack(0, 'up', w, seen), [0, 1], 0.5, pattern, 0)
    assert not len(fallback) and mask.sum() == plain.sum() == w.size // 2

    def error(e, made):
        return np.linalg.norm(x[e] @ w[e] - x[e] @ made)

    for e in range(2):
        assert error(e, new[e]) < 0.8 * error(e, np.where(plain[e], w[e], 0))
        assert error(e, new[e]) < error(e, np.where(mask[e], w[e], 0))


def test_exact_counts_where_blocks_do_not_divide():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 11))
    stack = Stack(0, 'down', rng.normal(size=(1, 11, 6)).astype(np.float32),
                  {'hidden_gram': (x.T @ x)[None], 'evaluated': np.array([50])})
    for sparsity in (0.0, 0.3, 0.5, 0.9):
        mask, new, _ = sparsegpt.solve(stack, sparsity, None, block=4)
        assert ((~mask).sum(axis=1) == int(sparsity * 11)).all()
        np.testing.assert_array_equal(new[~mask], 0)
    mask, new, _ = sparsegpt.solve(stack, 0.0, None)
    np.testing.assert_allclose(new, stack.weights, rtol=1e-6)


def test_singular_grams_are_damped_and_hopeless_ones_fall_back():
    one = np.ones((6, 6))
    assert obs.factor(one, 0.01, 1) is not None and obs.factor(one, 0.0, 3) is None
    bad = one.copy()
    bad[0, 5] = bad[5, 0] = 8.0  # no Gram matrix of anything
    stack = Stack(0, 'up', np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32), {
        'input_gram': np.stack([bad, np.eye(6)]), 'evaluated': np.array([40, 40])})
    assert obs.factor(bad, 0.01, 2) is None and obs.factor(bad, 0.01, 4) is not None
    mask, new, fallback = sparsegpt.solve(stack, 0.5, None, damping=0.0)
    assert fallback.tolist() == [0] and ((~mask).sum(axis=1) == 3).all()
    np.testing.assert_array_equal(new[0], np.where(mask[0], stack.weights[0], 0))


def test_inputs_that_were_always_zero():
    gram = np.diag([4.0, 0.0, 4.0, 0.0])
    stack = Stack(0, 'up', np.full((1, 4, 1), 3.0, np.float32),
                  {'input_gram': gram[None], 'evaluated': np.array([40])})
    mask, new, fallback = sparsegpt.solve(stack, 0.5, None)
    assert mask[0, :, 0].tolist() == [True, False, True, False] and not len(fallback)
    np.testing.assert_allclose(new[0, :, 0], [3, 0, 3, 0])


def test_the_values_are_in_the_plan_and_in_the_model(tmp_path):
    params = drawn()
    stats = observed(CFG, params, grams=True)
    plan = prune.sparsify('sparsegpt', stats, params, CFG, pattern=(2, 4))
    plan = prune.Plan.load(plan.save(tmp_path / 'plan.npz'))
    sparse, cfg = prune.apply(params, CFG, plan)
    assert cfg == CFG
    for i in CFG.moe_layers:
        for leaf in LEAVES:
            new = matrices(sparse, i)[leaf]
            np.testing.assert_array_equal(new, plan.layers[i].weights[leaf])
            assert (new[kept(plan, i)[leaf]] != matrices(params, i)[leaf][
                kept(plan, i)[leaf]]).any()
