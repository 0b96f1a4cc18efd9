"""AdamW against numpy and optax, and what is decayed and frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.base.tree import leaves_with_paths
from moe_jax.kernels import target
from tests.train.train_tiny import CFG, equal, params
from train.optim import adamw
from train.trainable.resolved import TrainedLeaves, put, resolve


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
    recipe = adamw.Recipe('constant', 0.9, 0.95, 1e-8)
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
            recipe, TrainedLeaves(()), scalars, jnp.float32(0.01), grads, opt_state, ours
        )
        for name in leaves:
            np.testing.assert_allclose(ours[name], leaves[name], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('backend', ['cpu', 'gpu'])
def test_adamw_equals_optax(backend, monkeypatch):
    """On every backend: the same state, and the same numbers but for the order of roundings."""
    monkeypatch.setattr(target, 'platform', lambda: backend)
    rng = np.random.default_rng(1)
    recipe, rate = adamw.Recipe('constant', 0.9, 0.95, 1e-8), jnp.float32(0.01)
    scalars = adamw.Scalars(*map(jnp.float32, (0, 0, 0, 0.1, 0.5, 0)))
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(
        rate, 0.9, 0.95, 1e-8, weight_decay=0.1, mask=adamw.decays))
    leaves = {'a/kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
              'a/bias': jnp.asarray(rng.normal(size=4), jnp.float32)}
    expected, wanted = leaves, theirs.init(leaves)
    state = adamw.adamw(recipe, rate, scalars.weight_decay, scalars.clip).init(leaves)

    @jax.jit
    def step(leaves, state, grads, keep):
        return adamw.update(recipe, TrainedLeaves(()), scalars, rate, grads, state, leaves, keep)

    @jax.jit
    def optax_step(leaves, state, grads):
        with jax.numpy_dtype_promotion('standard'):
            changes, state = theirs.update(grads, state, leaves)
            return optax.apply_updates(leaves, changes), state

    for _ in range(3):
        grads = {name: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
                 for name, leaf in leaves.items()}
        assert equal(step(leaves, state, grads, False), (leaves, state))
        leaves, state = step(leaves, state, grads, True)
        expected, wanted = optax_step(expected, wanted, grads)
        assert jax.tree.structure(state) == jax.tree.structure(wanted)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
                     (leaves, state), (expected, wanted))


def test_only_matrices_and_token_embeddings_decay():
    leaves = resolve(params(), None).select(params())
    decayed = {path for path, yes in adamw.decays(leaves).items() if yes}
    assert decayed == {
        'embed/tokens', 'layer_0/moe/router/kernel', 'layer_0/moe/experts/up',
        'layer_0/moe/experts/down', 'layer_1/mlp/up', 'layer_1/mlp/down',
        *(f'layer_{i}/attn/{name}' for i in (0, 1) for name in ('q', 'k', 'v', 'out')),
    }


def test_select_and_put_are_inverse():
    tree = params(CFG)
    chosen = resolve(tree, r'moe/router|norm_final').select(tree)
    assert sorted(chosen) == [
        'layer_0/moe/router/kernel', 'norm_final/bias', 'norm_final/scale'
    ]
    changed = put(tree, {path: leaf + 1.0 for path, leaf in chosen.items()})
    for (path, old), (_, new) in zip(leaves_with_paths(tree), leaves_with_paths(changed),
                                     strict=True):
        np.testing.assert_array_equal(new, old + 1.0 if path in chosen else old)
    assert jax.tree.structure(tree) == jax.tree.structure(changed)


def test_an_expression_that_matches_nothing_says_what_there_is():
    with pytest.raises(ValueError, match=r"'moe/gate' matches none of the .* such as embed/"):
        resolve(params(), 'moe/gate')
