import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers import ffn


def weights(cfg, seed=0):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32)
            for name, shape in ffn.shapes(cfg, 6).items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def swiglu(gate, up):
    return gate * sigmoid(gate) * up


def clamped(gate, up):
    gate, up = np.minimum(gate, 0.8), np.clip(up, -0.8, 0.8)
    return (up + 1) * gate * sigmoid(1.5 * gate)


def gelu(gate, up):
    return 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))


def relu(gate, up):
    return np.maximum(up, 0)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(('kind', 'form'), [
    ('gelu', gelu), ('relu', relu), ('swiglu', swiglu), ('swiglu_clamped', clamped)])
def test_by_numpy(cfg, kind, form, bias):
    cfg = cfg.replace(ffn=kind, ffn_bias=bias, ffn_limit=0.8, ffn_alpha=1.5)
    w = weights(cfg)
    assert ('gate' in w) == (kind not in ('gelu', 'relu')) and ('down_bias' in w) == bias
    exact = {name: np.asarray(leaf, np.float64) for name, leaf in w.items()}
    x = np.random.default_rng(1).normal(size=(5, cfg.width)).astype(np.float32)

    def part(name):
        return x @ exact[name] + exact.get(f'{name}_bias', 0) if name in exact else None

    y = form(part('gate'), part('up')) @ exact['down'] + exact.get('down_bias', 0)
    np.testing.assert_allclose(ffn.of(cfg)(w, jnp.asarray(x)), y, rtol=1e-4, atol=1e-5)


def test_one_function_object_per_config(cfg):
    """Or else every call would compile the experts again."""
    clamp = cfg.replace(ffn='swiglu_clamped')
    assert ffn.of(clamp) is ffn.of(cfg.replace(ffn='swiglu_clamped'))
    assert ffn.of(cfg) == ffn.of(cfg.replace(topk=1))


def test_gelu_by_hand(cfg):
    one = {'up': jnp.eye(1), 'down': jnp.eye(1)}
    found = ffn.of(cfg)(one, jnp.array([[0.0], [1.0], [-1.0]]))
    np.testing.assert_allclose(found[:, 0], [0.0, 0.841192, -0.158808], atol=1e-6)
