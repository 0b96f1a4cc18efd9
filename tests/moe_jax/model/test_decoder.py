import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from moe_jax.base.tree import at, leaves_with_paths, mix, take
from moe_jax.model import decoder
from tests.moe_jax import numpy_model


def close(found, exact):
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fields', [
    {}, {'gate': 'softmax_topk_renorm', 'topk': 3, 'capacity_eval': 0.8},
    {'capacity_eval': 0.5, 'min_capacity': 1}, {'capacity_eval': 1.0, 'topk': 1},
])
def test_the_whole_forward_by_numpy(cfg, params, run, rows, fields):
    cfg = cfg.replace(**fields)
    tokens, segments = rows
    logits, out = run(cfg, params, tokens, segments, watch=('routing',))
    exact, did = numpy_model.forward(cfg, params, tokens, segments, cfg.capacity_eval)
    valid = segments > 0
    assert logits.shape == (2, 9, 23) and logits.dtype == jnp.float32
    close(np.asarray(logits)[valid], exact[valid])
    flat = valid.ravel()
    np.testing.assert_array_equal(out['valid'], flat)
    for row, i in enumerate(cfg.moe_layers):
        record = out['routing'][i]
        np.testing.assert_array_equal(record.ids[flat], did[i]['ids'][flat])
        np.testing.assert_array_equal(record.kept[flat], did[i]['kept'][flat])
        for name in ('gates', 'logits', 'probs', 'inputs'):
            close(getattr(record, name)[flat], did[i][name][flat])
        count = np.bincount(did[i]['ids'][flat].ravel(), minlength=4)
        assert float(out['load'][row]) == pytest.approx(count.max() / count.mean(), rel=1e-5)
        dropped = 1 - did[i]['kept'][flat].mean()
        assert float(out['dropped'][row]) == pytest.approx(dropped, abs=1e-6)


def test_the_numpy_case_with_capacity_does_drop(cfg, params, rows):
    _, did = numpy_model.forward(cfg.replace(min_capacity=1), params, *rows, 0.5)
    assert not did[0]['kept'][rows[1].ravel() > 0].all()


def test_auxiliary_losses_are_scaled_sums_over_layers(cfg, params, run, rows):
    cfg = cfg.replace(balance=0.3, zloss=0.07)
    tokens, segments = rows
    _, out = run(cfg, params, tokens, segments)
    _, did = numpy_model.forward(cfg, params, tokens, segments)
    flat, balance, zloss = segments.ravel() > 0, 0.0, 0.0
    for layer in did.values():
        share = np.bincount(layer['ids'][flat].ravel(), minlength=4) / layer['ids'][flat].size
        balance += 4 * (share * layer['probs'][flat].mean(axis=0)).sum()
        zloss += (np.log(np.exp(layer['logits'][flat]).sum(axis=1)) ** 2).mean()
    assert float(out['balance']) == pytest.approx(0.3 * balance, rel=1e-4)
    assert float(out['zloss']) == pytest.approx(0.07 * zloss, rel=1e-4)
    assert {n: float(v) for n, v in out['losses'].items()} == {
        n: float(out[n]) for n in ('balance', 'zloss')}
    assert set(out) == {'losses', 'balance', 'zloss', 'load', 'dropped', 'active', 'hits', 'mass'}


@pytest.fixture(scope='module')
def one_layer(cfg, params):
    return cfg.replace(experts=(4,)), {k: params[k] for k in ('embed', 'layer_0', 'norm_final')}


def positions_to_logits(cfg, params, tokens):
    """The logits [T, V] of a row as a function of the position embeddings [T, D]."""
    def logits(positions):
        moved = at(params, 'embed/positions', lambda p: p.at[:len(positions)].set(positions))
        return decoder.apply(cfg, moved, tokens)[0]

    return logits


def test_a_token_sees_only_its_past(one_layer):
    """The gradient of each position's logits by each position's embedding is causal."""
    length = 9
    logits = positions_to_logits(*one_layer, jnp.arange(length, dtype=jnp.int32)[None])
    jacobian = jax.jit(jax.jacrev(lambda p: jnp.square(logits(p)).sum(axis=-1)))
    strength = np.abs(jacobian(one_layer[1]['embed']['positions'][:length])).sum(axis=-1)
    np.testing.assert_array_equal(np.triu(strength, 1), np.zeros((length, length)))
    assert (strength[np.tril_indices(length)] > 0).all()


def test_without_jit_the_logits_and_causality_are_the_same(one_layer, run):
    cfg, params = one_layer[0].replace(capacity_eval=9.0), one_layer[1]
    tokens = jnp.arange(9, dtype=jnp.int32)[None]
    logits, pull = jax.vjp(positions_to_logits(cfg, params, tokens),
                           params['embed']['positions'][:9])
    close(logits, run(cfg, params, tokens, jnp.ones_like(tokens))[0][0])
    gradient, = pull(jnp.zeros_like(logits).at[4].set(1.0))
    reached = np.abs(gradient).sum(axis=1) > 0
    np.testing.assert_array_equal(reached, np.arange(9) <= 4)


def test_packed_segments_equal_separate_sequences(cfg, params, run, rows):
    tokens, segments = rows
    packed, _ = run(cfg, params, tokens, segments)
    for b in range(2):
        for segment in set(segments[b]) - {0}:
            place = segments[b] == segment
            alone = np.zeros((2, 9), np.int32)
            alone[0, :place.sum()] = tokens[b, place]
            inside = np.zeros((2, 9), np.int32)
            inside[0, :place.sum()] = 1
            found, _ = run(cfg, params, alone, inside)
            close(found[0, :place.sum()], packed[b, place])


def test_padding_changes_nothing(cfg, params, run, rows):
    tokens, segments = rows
    other = np.where(segments > 0, tokens, 7).astype(np.int32)
    before, out = run(cfg, params, tokens, segments)
    after, out_other = run(cfg, params, other, segments)
    np.testing.assert_array_equal(before[segments > 0], after[segments > 0])
    jax.tree.map(np.testing.assert_array_equal, out, out_other)


def test_padding_alone_is_finite(cfg, params, run, rows):
    logits, out = run(cfg, params, rows[0], np.zeros_like(rows[1]))
    assert np.isfinite(logits).all()
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(out))


def test_no_segments_means_one_to_a_row(cfg, params, run, rows):
    close(run(cfg, params, rows[0])[0], run(cfg, params, rows[0], np.ones_like(rows[1]))[0])


def test_bfloat16_routes_in_float32_and_gives_float32_logits(cfg, params, run, rows):
    exact, _ = run(cfg.replace(topk=4), params, *rows)
    logits, out = run(cfg.replace(topk=4, dtype='bfloat16'), params, *rows, watch=('routing',))
    record = out['routing'][0]
    assert logits.dtype == jnp.float32 and record.inputs.dtype == jnp.bfloat16
    kernel = np.asarray(params['layer_0']['moe']['router']['kernel'], np.float64)
    close(record.logits, np.asarray(record.inputs, np.float64) @ kernel.T)
    valid = rows[1] > 0  # with every expert used, no choice flips by rounding
    error = np.abs(logits - exact)[valid].max() / np.abs(exact)[valid].max()
    assert 0 < error < 0.05


def test_permuting_experts_changes_nothing(cfg, params, run, rows):
    order = np.array([2, 0, 3, 1])
    shuffled = at(params, 'layer_2/moe', lambda moe: take(moe, order))
    before, out = run(cfg, params, *rows, watch=('routing',))
    after, out_after = run(cfg, shuffled, *rows, watch=('routing',))
    close(after, before)
    np.testing.assert_array_equal(order[out_after['routing'][2].ids], out['routing'][2].ids)


@pytest.mark.parametrize('capacity', [None, 0.6])
def test_sharing_an_expert_equals_copies_of_it(cfg, params, run, rows, capacity):
    """Rows 0 and 3 use one expert: as if each had its copy, where nothing is dropped."""
    alias = (0, 1, 2, 0)
    three = at(params, 'layer_0/moe/experts', lambda e: take(e, [0, 1, 2]))
    copies = at(params, 'layer_0/moe/experts', lambda e: take(e, alias))
    shared = cfg.replace(experts=(3, 0, 4), aliases=(alias, None, None), capacity_eval=capacity,
                         min_capacity=1)
    found, out = run(shared, three, *rows, watch=('routing',))
    record, flat = out['routing'][0], rows[1].ravel() > 0
    if capacity is None:
        close(found, run(cfg, copies, *rows)[0])
        assert record.kept[flat].all() and float(out['dropped'][0]) == 0
    else:
        assert not record.kept[flat].all()
    # two rows of one expert are served or dropped together
    expert, kept = np.asarray(alias)[record.ids[flat]], np.asarray(record.kept)[flat]
    same = expert[:, 0] == expert[:, 1]
    assert same.any()
    np.testing.assert_array_equal(kept[same, 0], kept[same, 1])


def test_merging_equal_experts_and_their_rows_changes_nothing(cfg, params, run, rows):
    twins = at(params, 'layer_0/moe/experts', lambda e: take(e, [0, 1, 2, 2]))
    halved = at(twins, 'layer_0/moe/experts',
                lambda e: mix(e, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5]]))
    shared = cfg.replace(experts=(3, 0, 4), aliases=((0, 1, 2, 2), None, None))
    close(run(shared, halved, *rows)[0], run(cfg, twins, *rows)[0])


def test_jitter_needs_training_and_a_key(one_layer, run, rows):
    cfg, params = one_layer
    cfg, key = cfg.replace(jitter=0.2, capacity_train=9.0, capacity_eval=9.0), jax.random.key(0)
    calm = run(cfg, params, *rows)[0]
    np.testing.assert_array_equal(run(cfg, params, *rows, key=key)[0], calm)
    noisy = run(cfg, params, *rows, train=True, key=key)[0]
    assert np.abs(noisy - calm).max() > 1e-3
    np.testing.assert_array_equal(run(cfg, params, *rows, train=True, key=key)[0], noisy)


@pytest.mark.parametrize('capacity', [None, 2.0])
def test_gradients_are_finite_and_reach_what_is_used(cfg, draw, rows, capacity):
    cfg = cfg.replace(capacity_train=capacity, zloss=0.01, experts=(4, 0))
    params = draw(cfg)
    tokens, segments = rows

    @jax.jit
    @jax.grad
    def gradient(params):
        logits, out = decoder.forward(cfg, params, tokens, segments, train=True)
        used = jnp.where(jnp.asarray(segments)[:, :, None] > 0, jnp.square(logits), 0.0)
        return used.mean() + out['balance'] + out['zloss']

    _, did = numpy_model.forward(cfg, params, tokens, segments, capacity)
    for path, leaf in leaves_with_paths(gradient(params)):
        leaf = np.asarray(leaf)
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
        if '/moe/experts/' in path:
            layer = did[int(path[len('layer_')])]
            used = set(layer['ids'][layer['kept']].tolist())
            assert {e for e in range(4) if np.abs(leaf[e]).max() > 0} == used, path


def test_init_is_what_shapes_says_and_is_deterministic(cfg):
    cfg = cfg.replace(experts=(4, 0))
    init = jax.jit(lambda key: decoder.init(cfg, key))
    fresh = init(jax.random.key(3))
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
                 fresh, decoder.shapes(cfg))
    jax.tree.map(np.testing.assert_array_equal, fresh, init(jax.random.key(3)))
    for path, leaf in leaves_with_paths(fresh):
        if path.endswith('bias'):
            assert not np.asarray(leaf).any(), path


def test_init_has_the_scales_of_gpt2(cfg):
    cfg = cfg.replace(width=1024, heads=16, experts=(2,), topk=1, mlp_hidden=8, expert_hidden=256)
    assert decoder.init_std(cfg) == pytest.approx(0.02)
    moe = jax.jit(lambda key: decoder.init(cfg, key)['layer_0']['moe'])(jax.random.key(0))
    assert float(moe['experts']['up'].std()) == pytest.approx(0.02, rel=0.01)
    assert float(moe['experts']['down'].std()) == pytest.approx(0.02 / 2**0.5, rel=0.01)


@pytest.mark.parametrize(('change', 'path'), [
    ({'experts': (3, 0, 4)}, '/layer_0/moe'), ({'experts': (4, 0, 5)}, '/layer_2/moe'),
    ({'experts': (4, 4, 4)}, '/layer_1/moe'), ({'experts': (0, 0, 4)}, '/layer_0/mlp'),
    ({'width': 16}, '/embed'), ({'experts': (4, 0, 4, 0)}, '/layer_3'),
    ({'experts': (4, 0)}, 'layer_2'),
])
def test_a_stale_config_is_refused_by_path(cfg, params, rows, change, path):
    stale = cfg.replace(**change)
    with pytest.raises((errors.ScopeParamShapeError, errors.ScopeParamNotFoundError,
                        errors.ScopeCollectionNotFound, ValueError), match=path):
        jax.eval_shape(lambda p: decoder.apply(stale, p, rows[0]), params)


def test_rows_that_do_not_fit_are_refused(cfg, params):
    with pytest.raises(ValueError, match='11 tokens in a row; the model has 10 positions'):
        decoder.apply(cfg, params, jnp.zeros((1, 11), jnp.int32))
    with pytest.raises(ValueError, match=r'must both be \[B, T\]'):
        decoder.apply(cfg, params, jnp.zeros((1, 4), jnp.int32), jnp.ones((2, 4), jnp.int32))
    with pytest.raises(ValueError, match=r'must both be \[B, T\]'):
        decoder.apply(cfg, params, jnp.zeros(4, jnp.int32))


def test_a_dense_model_has_no_routing(cfg, draw, run, rows):
    dense = cfg.replace(experts=(0, 0))
    params = draw(dense)
    logits, out = run(dense, params, *rows, watch=('routing',))
    exact, _ = numpy_model.forward(dense, params, *rows)
    close(np.asarray(logits)[rows[1] > 0], exact[rows[1] > 0])
    assert out['routing'] == {} and out['load'].shape == (0,) and float(out['balance']) == 0
