"""Fingerprints: every change that matters is noticed, and copies in other formats are the model."""

import time
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest

import moe_jax
from moe_jax.base.tree import leaves_with_paths, map_with_path
from moe_jax.model import fingerprint
from moe_jax.model.fingerprint import WHOLE, differs, routers, same_model

CFG = moe_jax.Config(vocab=600, positions=16, width=128, heads=2, mlp_hidden=64, expert_hidden=160,
                     experts=(0, 6), topk=2, gate='softmax_topk_renorm', capacity_eval=None)


@pytest.fixture(scope='module')
def params():
    drawn = moe_jax.init(CFG, jax.random.key(0))
    rng = np.random.default_rng(1)  # no leaf of zeros or ones, which any scaling leaves as they are
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.02, leaf.shape).astype('f4'), drawn)


def paths():
    shapes = jax.eval_shape(lambda: moe_jax.init(CFG, jax.random.key(0)))
    return [path for path, _ in leaves_with_paths(shapes)]


def of(tree):
    return fingerprint.fingerprint(tree, CFG)


def changed(tree, path, change):
    return map_with_path(lambda at, leaf: change(leaf) if at == path else leaf, tree)


def test_some_leaves_are_read_whole_and_some_are_not(params):
    sizes = [leaf.size for _, leaf in leaves_with_paths(params)]
    assert min(sizes) < WHOLE < max(sizes)


@pytest.mark.parametrize('path', paths())
def test_training_of_any_one_leaf_is_noticed(params, path):
    rng = np.random.default_rng(2)
    for step in (1e-2, 3e-5):  # half of a weight's usual size, and a 700th
        other = changed(params, path, lambda leaf, step=step: leaf + step * np.sign(
            rng.normal(size=leaf.shape)).astype('f4'))
        assert differs(of(params), other, CFG)
    assert not differs(of(params), params, CFG)


@pytest.mark.parametrize('path', paths())
def test_one_number_of_a_leaf_that_is_read_whole_is_noticed(params, path):
    def change(leaf):
        return leaf.at[(-1,) * leaf.ndim].multiply(1.01) if leaf.size <= WHOLE else leaf * 1.01

    assert differs(of(params), changed(params, path, change), CFG)


def test_every_expert_of_a_large_leaf_is_read(params):
    path = 'layer_1/moe/experts/up'
    for e in range(6):
        other = changed(params, path, lambda leaf, e=e: leaf.at[e].multiply(1.001))
        assert differs(of(params), other, CFG)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('keeps', ['nothing', 'routers'])
def test_a_copy_in_half_precision_is_the_model(params, dtype, keeps):
    def cast(path, leaf):
        return leaf if keeps == 'routers' and 'router' in path else leaf.astype(dtype)

    copy = map_with_path(cast, params)
    assert not differs(of(params), copy, CFG) and not differs(of(copy), params, CFG)
    assert differs(of(copy), jax.tree.map(lambda leaf: leaf * 1.001, params), CFG)


def test_all_copies_of_a_bfloat16_model_are_one(params):
    half = jax.tree.map(lambda leaf: leaf.astype('bfloat16'), params)
    wide = jax.tree.map(lambda leaf: leaf.astype('float32'), half)
    other = jax.tree.map(lambda leaf: leaf.astype('float16'), wide)
    texts = [of(half), of(wide), of(other)]
    assert all(same_model(a, b) for a in texts for b in texts)
    assert of(half) == of(wide)


def test_numpy_and_jax_and_leaves_in_any_memory_order_agree(params):
    plain = jax.tree.map(np.asarray, params)
    assert of(plain) == of(params)
    assert of(jax.tree.map(np.asfortranarray, plain)) == of(params)


def test_names_and_shapes_belong_to_it(params):
    renamed = {('layer_9' if name == 'layer_0' else name): part for name, part in params.items()}
    assert differs(of(params), renamed, CFG)
    flat = changed(params, 'embed/tokens', lambda leaf: leaf.reshape(CFG.width, -1))
    assert differs(of(params), flat, CFG)


def old_form(params):
    """The fingerprint as it was before: of the routers alone."""
    import hashlib
    digest = hashlib.sha256()
    for i in CFG.moe_layers:
        kernel = np.asarray(params[f'layer_{i}']['moe']['router']['kernel'])
        digest.update(kernel.astype(ml_dtypes.bfloat16).tobytes())
    return f'model:{digest.hexdigest()[:16]}'


def test_an_old_one_is_accepted_with_a_warning_and_refused_for_other_routers(params):
    old = old_form(params)
    assert of(params).endswith(routers(params, CFG)) and same_model(old, of(params))
    with pytest.warns(UserWarning, match='stats.npz: .*routers alone.*[Mm]ake it anew'):
        assert not differs(old, params, CFG, 'stats.npz')
    other = changed(params, 'layer_1/moe/router/kernel', lambda leaf: leaf * 1.1)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert differs(old, other, CFG)
    assert not same_model(old, of(other))


def test_the_callers_own_words_say_nothing(params):
    assert not differs('mine', params, CFG) and not differs('', params, CFG)
    assert same_model('mine', 'mine') and not same_model('mine', of(params))


def test_a_fine_tuned_copy_with_frozen_routers_is_refused(params):
    import prune
    batches = [{'tokens': np.arange(32).reshape(2, 16), 'mask': np.ones((2, 16), bool)}]
    stats = moe_jax.observe(CFG, params, batches)
    tuned = map_with_path(lambda p, leaf: leaf if 'router' in p else leaf * 1.001, params)
    with pytest.raises(ValueError, match='the routers are equal, other weights differ'):
        prune.plan('frequency', stats, tuned, CFG, experts=2)
    plan = prune.plan('frequency', stats, params, CFG, experts=2)
    with pytest.raises(ValueError, match=r'other weights.*the routers are equal'):
        prune.apply(tuned, CFG, plan)


def test_it_is_read_in_a_moment():
    size = 2**22  # per leaf; as zeros, 1.3 thousand million numbers take no memory
    tree = {f'layer_{i}': {'w': np.broadcast_to(np.float32(i), (64, size // 64))}
            for i in range(320)}
    cfg = CFG.replace(experts=(0,))
    start = time.perf_counter()
    fingerprint.fingerprint(tree, cfg)
    assert time.perf_counter() - start < 2  # 0.2 s on two quiet cores


def test_a_device_that_is_not_the_host_gathers_there(params, monkeypatch):
    wanted = of(params)
    calls = []

    class Elsewhere:
        platform = 'gpu'

    real = fingerprint._read

    def read(array, places):
        calls.append(array.shape)

        class Far:  # an array of which indexing is all that is asked
            shape = array.shape

            def devices(self):
                return {Elsewhere()}

            def __getitem__(self, index):
                return array[index]

        return real(Far(), places)

    monkeypatch.setattr(fingerprint, '_read', read)
    assert of(params) == wanted and calls
