"""Schedules by hand, AdamW against numpy, and what is decayed and frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.base.tree import leaves_with_paths
from tests.train.train_tiny import CFG, params
from train.optim import adamw
from train.trainable import trainable


def rates(schedule, steps, warmup, peak=1.0):
    peak, warm, last = jnp.float32(peak), jnp.int32(warmup), jnp.int32(steps)
    return [
        float(adamw.learning_rate(schedule, jnp.int32(step), peak, warm, last))
        for step in range(steps)
    ]


def test_linear_schedule_by_hand():
    expected = [1 / 3, 2 / 3, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
    np.testing.assert_allclose(rates('linear', 7, 3), expected, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    np.testing.assert_allclose(rates('linear', 4, 0, peak=2.0), [2.0, 1.5, 1.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize('schedule', sorted(adamw.SCHEDULES))
def test_schedules_reach_the_peak_once_warm_and_never_exceed_it(schedule):
    values = rates(schedule, 9, 4)
    assert values[3] == max(values) == 1.0
    assert all(value > 0 for value in values)
    assert values[4:] == sorted(values[4:], reverse=True)


def test_optax_agrees_on_the_decay():
    ours = rates('cosine', 12, 1)
    theirs = [float(optax.cosine_decay_schedule(1.0, 12)(step)) for step in range(12)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def adamw_by_hand(leaves, grads, mu, nu, count, rate, recipe, decay, clip):
    """One update in float64: clip by global norm, moments, bias correction, decoupled decay."""
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
    scale = min(1.0, clip / norm)
    new = {}
    for name, leaf in leaves.items():
        g = grads[name].astype(np.float64) * scale
        mu[name] = recipe.b1 * mu[name] + (1 - recipe.b1) * g
        nu[name] = recipe.b2 * nu[name] + (1 - recipe.b2) * g**2
        step = mu[name] / (1 - recipe.b1**count)
        step /= np.sqrt(nu[name] / (1 - recipe.b2**count)) + recipe.eps
        if name.endswith('kernel'):
            step += decay * leaf
        new[name] = leaf - rate * step
    return new


@pytest.mark.parametrize('clip', [0.5, 100.0])
def test_adamw_equals_numpy(clip):
    rng = np.random.default_rng(0)
    leaves = {'a/kernel': rng.normal(size=(3, 4)), 'a/up_bias': rng.normal(size=(2, 4))}
    recipe = adamw.Recipe(None, 'constant', 0.9, 0.95, 1e-8)
    scalars = adamw.Scalars(*map(jnp.float32, (0, 0, 0, 0.1, clip, 0)))
    ours = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
    opt_state = adamw.adamw(recipe, 0.0, 0.0, 1.0).init(ours)
    mu = {name: np.zeros(leaf.shape) for name, leaf in leaves.items()}
    nu = {name: np.zeros(leaf.shape) for name, leaf in leaves.items()}
    for count in (1, 2, 3):
        grads = {name: rng.normal(size=leaf.shape) for name, leaf in leaves.items()}
        leaves = adamw_by_hand(leaves, grads, mu, nu, count, 0.01, recipe, 0.1, clip)
        grads = {name: jnp.asarray(g, jnp.float32) for name, g in grads.items()}
        ours, opt_state = adamw.update(
            recipe, scalars, jnp.float32(0.01), grads, opt_state, ours
        )
        for name in leaves:
            np.testing.assert_allclose(ours[name], leaves[name], rtol=2e-6, atol=1e-7)


def test_only_matrices_and_token_embeddings_decay():
    decayed = {path for path, yes in adamw.decays(trainable.select(params(), None)).items() if yes}
    assert decayed == {
        'embed/tokens', 'layer_0/moe/router/kernel', 'layer_0/moe/experts/up',
        'layer_0/moe/experts/down', 'layer_1/mlp/up', 'layer_1/mlp/down',
        *(f'layer_{i}/attn/{name}' for i in (0, 1) for name in ('q', 'k', 'v', 'out')),
    }


def test_select_and_put_are_inverse():
    tree = params(CFG)
    chosen = trainable.select(tree, r'moe/router|norm_final')
    assert sorted(chosen) == [
        'layer_0/moe/router/kernel', 'norm_final/bias', 'norm_final/scale'
    ]
    changed = trainable.put(tree, {path: leaf + 1.0 for path, leaf in chosen.items()})
    for (path, old), (_, new) in zip(leaves_with_paths(tree), leaves_with_paths(changed),
                                     strict=True):
        np.testing.assert_array_equal(new, old + 1.0 if path in chosen else old)
    assert jax.tree.structure(tree) == jax.tree.structure(changed)


def test_an_expression_that_matches_nothing_says_what_there_is():
    with pytest.raises(ValueError, match=r"'moe/gate' matches none of the .* such as embed/"):
        trainable.select(params(), 'moe/gate')
