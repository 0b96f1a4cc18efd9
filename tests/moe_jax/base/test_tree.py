import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from moe_jax.base import tree

EXPERTS = {
    'up': np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    'bias': np.array([[1], [2], [3], [5]], np.float32),
}


def test_take_selects_rows_of_every_leaf():
    found = tree.take(EXPERTS, [3, 0])
    np.testing.assert_array_equal(found['up'], EXPERTS['up'][[3, 0]])
    np.testing.assert_array_equal(found['bias'], [[5], [1]])


def test_mix_by_hand():
    found = tree.mix(EXPERTS, [[0.5, 0, 0.5, 0], [0, 0.25, 0, 0.75]])
    np.testing.assert_array_equal(found['bias'], [[2], [4.25]])
    np.testing.assert_array_equal(found['up'][0], (EXPERTS['up'][0] + EXPERTS['up'][2]) / 2)


def test_mix_of_one_hot_rows_is_take():
    jax.tree.map(np.testing.assert_array_equal, tree.mix(EXPERTS, np.eye(4)[[2, 1]]),
                 tree.take(EXPERTS, [2, 1]))


def test_mix_sums_in_float32_and_keeps_the_dtype():
    half = np.array([[256.0], [1.0], [1.0]], ml_dtypes.bfloat16)
    found = tree.mix({'w': half}, [[1.0, 1.0, 1.0]])['w']
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0]) == 258.0  # in bfloat16, 256 + 1 is 256


def test_leaves_have_paths():
    nested = {'layer_0': {'moe': EXPERTS}}
    assert dict(tree.leaves_with_paths(nested)).keys() == {
        'layer_0/moe/up', 'layer_0/moe/bias'}
    seen = tree.map_with_path(lambda path, leaf: f'{path} {leaf.ndim}', nested)
    assert seen['layer_0']['moe']['bias'] == 'layer_0/moe/bias 2'


def test_counts():
    assert tree.count_params(EXPERTS) == 28 and tree.count_bytes(EXPERTS) == 112
    abstract = {'huge': jax.ShapeDtypeStruct((2**20, 2**20), jnp.bfloat16), 'one': np.float32(1)}
    assert tree.count_params(abstract) == 2**40 + 1
    assert tree.count_bytes(abstract) == 2**41 + 4


def test_at_replaces_one_subtree_and_edits_nothing():
    nested = {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}
    assert tree.at(nested, 'a/b', lambda b: {**b, 'f': 4}) == {
        'a': {'b': {'c': 1, 'f': 4}, 'd': 2}, 'e': 3}
    assert nested == {'a': {'b': {'c': 1}, 'd': 2}, 'e': 3}
    with pytest.raises(KeyError, match="no 'x' here; there are"):
        tree.at(nested, 'a/x', lambda b: b)
