import numpy as np
import pytest

from moe_jax import Stats
from moe_jax.base.tree import at, take
from moe_jax.calibration import reservoir
from moe_jax.calibration.expert_sums import ExpertSums
from moe_jax.calibration.observe import observe
from moe_jax.calibration.table import GRADIENTS, STATISTICS, statistic
from moe_jax.inference.score import score
from tests.moe_jax import numpy_model
from tests.moe_jax.calibration.observe_loops import by_loops

DEFAULT = {name for name, stat in STATISTICS.items() if not stat.option}
DENSE = {name for name, stat in STATISTICS.items() if stat.option == 'dense'}


@pytest.fixture(scope='module')
def batches():
    """Two batches [2, 9] with padding, in two groups."""
    rng = np.random.default_rng(5)
    mask = np.ones((2, 9), bool)
    mask[0, 6:], mask[1, 8:] = False, False
    return [{'tokens': rng.integers(0, 23, (2, 9)), 'mask': mask, 'group': group}
            for group in ('code', 'drama')]


@pytest.fixture(scope='module')
def stats(cfg, params, batches):
    return observe(cfg, params, batches)


def equal(a, b, rtol=1e-6, but=()):
    """Counts, tallies and keys exactly, the rest within rtol of the array's size."""
    assert set(a) == set(b)
    for name in set(a) - set(but):
        exact = statistic(name).kind in ('count', 'tally') or name == 'sample_key'
        size = 0 if exact or not a[name].size else rtol * np.abs(a[name]).max()
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=size, err_msg=name)


@pytest.mark.parametrize('fields', [{}, {'capacity_eval': 0.5, 'min_capacity': 1}])
def test_every_statistic_by_loops(cfg, params, batches, fields):
    cfg = cfg.replace(**fields)
    found = observe(cfg, params, batches, dense=True)
    assert found.layers == (0, 2)
    experts = {i: numpy_model.float64(params[f'layer_{i}']['moe']['experts']) for i in (0, 2)}
    for batch in batches:
        mask, tokens = batch['mask'], batch['tokens'].ravel()
        _, did = numpy_model.forward(cfg, params, batch['tokens'], mask.astype(int),
                                     cfg.capacity_eval)
        for i in (0, 2):
            layer = found.layer(i, batch['group'])
            assert set(layer) == DEFAULT | DENSE
            equal(layer, by_loops(cfg, experts[i], did[i], tokens, mask.ravel()), rtol=1e-4)
            assert (layer['dropped'].sum() > 0) == bool(fields)
            for name, value in layer.items():
                exact = statistic(name).kind in ('count', 'tally')
                assert value.dtype == np.dtype('int64' if exact else 'float64'), name


def test_sums_hold_together(stats):
    for i in stats.layers:
        layer = stats.layer(i)
        assert layer['tokens'] == 2 * 14 == layer['count_top1'].sum()
        assert layer['count'].sum() == 2 * 28
        np.testing.assert_allclose(layer['prob_sum'].sum(), 28, rtol=1e-6)
        np.testing.assert_allclose(layer['logit_gram'], layer['logit_gram'].T)
        assert (np.linalg.eigvalsh(layer['logit_gram']) > -1e-4).all()


def test_parts_add_up(cfg, params, batches, stats):
    parts = [observe(cfg, params, [batch]) for batch in batches]
    both = parts[0] + parts[1]
    swapped = parts[1] + parts[0]
    for i in stats.layers:
        for group in ('code', 'drama', None):
            equal(both.layer(i, group), stats.layer(i, group))
            equal(swapped.layer(i, group), stats.layer(i, group))
        for name in ('count', 'moments', 'logit_gram'):
            total = parts[0].layer(i)[name] + parts[1].layer(i)[name]
            np.testing.assert_array_equal(both.layer(i)[name], total)
        tops = [part.layer(i)['norm_max'] for part in parts]
        np.testing.assert_array_equal(both.layer(i)['norm_max'], np.maximum(*tops))
    assert both.data == swapped.data == stats.data != parts[0].data


def in_batches(batches, size, seed):
    """The same rows in another order and batch size, all in one group."""
    tokens, mask = (np.concatenate([b[k] for b in batches] * 2) for k in ('tokens', 'mask'))
    tokens[4:] = (tokens[4:] + 7) % 23
    order = np.random.default_rng(seed).permutation(len(tokens))
    return [{'tokens': tokens[rows], 'mask': mask[rows]}
            for rows in np.split(order, range(size, len(order), size))]


def test_batch_size_and_order_do_not_matter(cfg, params, batches):
    found = [observe(cfg, params, in_batches(batches, *how), reservoir=20)
             for how in ((1, 0), (7, 1), (8, 2))]
    for other in found[1:]:
        assert other.data == found[0].data
        for i in (0, 2):
            equal(found[0].layer(i), other.layer(i), rtol=1e-5)
            assert len(other.layer(i)['sample_key']) == 20


def test_the_reservoir_holds_what_the_experts_give(cfg, params, batches):
    found = observe(cfg, params, batches, reservoir=9, outputs='all')
    mask, tokens = batches[1]['mask'], batches[1]['tokens']
    _, did = numpy_model.forward(cfg, params, tokens, mask.astype(int))
    experts = numpy_model.float64(params['layer_2']['moe']['experts'])
    layer = found.layer(2, 'drama')
    inputs, valid = did[2]['inputs'], np.flatnonzero(mask.ravel())
    places = [valid[np.abs(inputs[valid] - x).sum(axis=1).argmin()]
              for x in layer['sample_input']]
    assert len(set(places)) == 9
    y = np.stack([numpy_model.ffn(inputs[places], **{k: w[r] for k, w in experts.items()})
                  for r in range(4)], axis=1)
    gates = np.zeros((9, 4))
    np.put_along_axis(gates, did[2]['ids'][places], did[2]['gates'][places], axis=1)
    routed = np.einsum('sr,srd->sd', gates, y)
    for name, value in {
        'sample_input': inputs[places], 'sample_logits': did[2]['logits'][places],
        'sample_gates': gates, 'sample_output': y, 'sample_gram': np.einsum('sid,sjd->sij', y, y),
        'sample_cross': np.einsum('sid,sd->si', y, routed),
        'sample_square': (routed**2).sum(axis=1),
    }.items():
        np.testing.assert_allclose(layer[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def test_reservoirs_merge_to_the_reservoir_of_the_whole(cfg, params, batches):
    parts = [observe(cfg, params, [batch | {'group': 'x'}], reservoir=9) for batch in batches]
    whole = observe(cfg, params, [batch | {'group': 'x'} for batch in batches], reservoir=9)
    apart = observe(cfg, params, batches, reservoir=9)
    for found in (parts[0] + parts[1], parts[1] + parts[0], apart):
        for i in whole.layers:
            equal(found.layer(i), whole.layer(i), rtol=1e-5)
    small = parts[0] + observe(cfg, params, [batches[1] | {'group': 'x'}], reservoir=5)
    assert len(small.layer(0)['sample_key']) == small.reservoir == 5


def test_the_reservoir_is_uniform(cfg):
    """Of many rows, the tokens of smallest key are spread over rows and places alike."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 23, (400, 10))
    keys = reservoir.keys(tokens, np.ones_like(tokens))
    chosen = np.argsort(keys.ravel())[:1000]
    for counts in (np.bincount(chosen % 10, minlength=10), np.bincount(chosen // 400)):
        assert abs(counts - 100).max() < 40  # 4 standard deviations
    assert len(np.unique(keys)) == 4000


def test_keys_are_of_a_place_in_a_text(cfg):
    tokens = np.array([[1, 2, 3, 1, 2, 3], [1, 2, 3, 0, 0, 0], [1, 2, 4, 0, 0, 0]])
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]])
    keys = reservoir.keys(tokens, segments)
    np.testing.assert_array_equal(keys[0, :3], keys[0, 3:])
    np.testing.assert_array_equal(keys[0, :3], keys[1, :3])
    assert (keys[1, 3:] == 2**64 - 1).all()
    assert len(set(keys[1, :3]) | set(keys[2, :3])) == 6


def test_grams_and_gradients(cfg, params, batches):
    found = observe(cfg, params, batches, grams=True, gradients=True)
    for i in found.layers:
        layer = found.layer(i)
        for side in ('input', 'hidden'):
            diagonal = np.diagonal(layer[f'{side}_gram'], axis1=1, axis2=2)
            np.testing.assert_allclose(diagonal, layer[f'{side}_square'], rtol=1e-4, atol=1e-5)
    path, row = ('layer_2/moe/experts/up', (2, 3, 4)), batches[0]

    def loss(step):
        moved = at(params, path[0], lambda w: w.at[path[1]].add(step))
        return -score(cfg, moved, row['tokens'], row['mask']).sum(axis=1)

    slopes = np.asarray(loss(1e-2) - loss(-1e-2), np.float64) / 2e-2
    layer = found.layer(2, 'code')
    weight = float(params['layer_2']['moe']['experts']['up'][path[1]])
    for name, value in (('abs', abs(slopes)), ('square', slopes**2),
                        ('weight', abs(slopes * weight))):
        assert layer[f'grad_{name}/up'][path[1]] == pytest.approx(value.sum(), rel=2e-2, abs=1e-4)
    assert {name.split('/')[0] for name in layer if name.startswith('grad')} == set(GRADIENTS)


def test_observing_changes_no_output(cfg, params, rows, run):
    plain = run(cfg, params, *rows)[0]
    watched = run(cfg, params, *rows, watch=('routing',), observer=ExpertSums())[0]
    np.testing.assert_allclose(plain, watched, rtol=1e-5, atol=1e-5)


def test_a_row_nobody_chose_has_zeros_and_a_flag(cfg, params, batches):
    away = at(params, 'layer_0/moe/router/kernel', lambda k: k.at[1].set(0).at[0].set(k[2]))
    found = observe(cfg, away, batches)
    layer, unused = found.layer(0), found.unused[0]
    assert np.array_equal(unused, np.flatnonzero(layer['count'] == 0))
    for name in ('output_sum', 'hidden_square', 'gate_sum', 'norm_max'):
        assert not layer[name][unused].any()
    assert all(np.isfinite(value).all() for value in layer.values())


def test_padding_and_ids_under_it_do_not_count(cfg, params, batches, stats):
    batch = batches[0]
    marked = np.where(batch['mask'], batch['tokens'], -100)
    empty = {'tokens': marked, 'mask': np.zeros_like(batch['mask']), 'group': 'nothing'}
    found = observe(cfg, params, [{**batch, 'tokens': marked}, empty])
    assert set(found.groups) == {'code'}
    for i in stats.layers:
        equal(found.layer(i), stats.layer(i, 'code'))


def test_segments_keep_packed_documents_apart(cfg, params, rows):
    tokens, segments = rows
    packed = observe(cfg, params, [{'tokens': tokens, 'segments': segments}])
    alone = np.zeros((6, 9), np.int64), np.zeros((6, 9), bool)
    documents = [(b, s) for b in range(2) for s in sorted(set(segments[b]) - {0})]
    for row, (b, s) in enumerate(documents):
        part = tokens[b, segments[b] == s]
        alone[0][row, :len(part)], alone[1][row, :len(part)] = part, True
    apart = observe(cfg, params, [
        {'tokens': alone[0][r:r + 2], 'mask': alone[1][r:r + 2]} for r in (0, 2, 4)])
    for i in packed.layers:
        equal(packed.layer(i), apart.layer(i), rtol=1e-4)


def test_permuting_experts_permutes_statistics(cfg, params, batches, stats):
    order = np.array([2, 0, 3, 1])
    found = observe(cfg, at(params, 'layer_0/moe', lambda moe: take(moe, order)), batches)
    for group in ('code', 'drama'):
        before, after = stats.layer(0, group), found.layer(0, group)
        moved = {name: permuted(name, value, order) for name, value in before.items()}
        equal(after, moved, rtol=1e-5, but=('vocab',))
        vocab = after['vocab'].copy()
        vocab[:, 1] = order[vocab[:, 1]]
        assert sorted(map(tuple, vocab)) == sorted(map(tuple, before['vocab']))
        equal(found.layer(2, group), stats.layer(2, group), rtol=1e-4)


def permuted(name, value, order):
    for axis, letter in enumerate(statistic(name).shape):
        value = np.take(value, order, axis=axis) if letter == 'R' else value
    return value


def test_rows_that_share_an_expert_count_apart_and_not_as_dropped(cfg, params, batches, stats):
    alias = (0, 1, 2, 0)
    three = at(params, 'layer_0/moe/experts', lambda e: take(e, [0, 1, 2]))
    shared = cfg.replace(experts=(3, 0, 4), aliases=(alias, None, None))
    found = observe(shared, three, batches)
    before, after = stats.layer(0), found.layer(0)  # layer 0 routes before it mixes
    for name in ('count', 'together', 'vocab'):
        np.testing.assert_array_equal(before[name], after[name])
    np.testing.assert_allclose(after['output_sum'][:3], before['output_sum'][:3], atol=1e-5)
    assert found.layer(2)['dropped'].sum() == 0
    with pytest.raises(ValueError, match=r'rows of layers \[0\] share experts'):
        observe(shared, three, batches, reservoir=4)


def test_counts_are_exact_beyond_float32(stats):
    layer = {**stats.layer(0), 'count': np.array([2**24, 1, 0, 2**53], np.int64)}
    big = Stats('f', {'all': {0: layer}})
    np.testing.assert_array_equal(
        (big + big + big).layer(0)['count'], [3 * 2**24, 3, 0, 3 * 2**53])
    one = Stats('f', {'all': {0: {**layer, 'count': np.array([1, 0, 0, 1], np.int64)}}})
    np.testing.assert_array_equal((big + one).layer(0)['count'], [2**24 + 1, 1, 0, 2**53 + 1])


def test_adding_changes_neither_part(stats):
    before = stats.layer(0, 'code')['count'].copy()
    _ = stats + stats
    np.testing.assert_array_equal(stats.layer(0, 'code')['count'], before)


def test_statistics_of_two_models_tokenizers_or_options_do_not_add(cfg, params, batches, stats):
    with pytest.raises(ValueError, match='two models'):
        _ = stats + Stats('other', stats.groups)
    with pytest.raises(ValueError, match='two tokenizers'):
        _ = stats + Stats(stats.fingerprint, stats.groups, 'other')
    with pytest.raises(ValueError, match='only one part has dense_cosine, dense_output_sum'):
        _ = stats + observe(cfg, params, batches[:1], dense=True)
    with pytest.raises(ValueError, match='capacity_eval=None'):
        observe(cfg.replace(capacity_eval=1.0), params, batches, gradients=True)


def test_an_absent_layer_or_group_is_named(stats):
    with pytest.raises(KeyError, match=r"no group 'cod' .* \['code', 'drama'\]"):
        stats.layer(0, 'cod')
    with pytest.raises(KeyError, match=r'no layer 1 .* \(0, 2\)'):
        stats.layer(1)


@pytest.mark.parametrize('batches', [
    [], [{'tokens': np.zeros((1, 4), int), 'mask': np.zeros((1, 4), bool)}],
    [{'tokens': np.zeros((0, 4), int), 'mask': np.zeros((0, 4), bool)}],
])
def test_nothing_to_observe_is_refused(cfg, params, batches):
    with pytest.raises(ValueError, match='no valid token'):
        observe(cfg, params, batches)


@pytest.mark.parametrize(('tokens', 'mask', 'message'), [
    (np.full((1, 4), 23), None, 'token ids 23..23 do not fit vocab=23'),
    (np.full((1, 4), -1), None, 'do not fit vocab'),
    (np.zeros((1, 11), int), None, '11 tokens in a row; the model has 10 positions'),
    (np.zeros((1, 4)), None, 'float64 and must be integers'),
    (np.zeros((1, 4), int), np.ones((1, 4)), 'must be bool or integers'),
    (np.zeros((1, 4), int), np.ones((1, 5), bool), r'must both be \[B, T\]'),
    (np.zeros(4, int), None, r'must both be \[B, T\]'),
])
def test_tokens_that_do_not_fit_are_refused(cfg, params, tokens, mask, message):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    with pytest.raises(ValueError, match=f'observe: .*{message}'):
        observe(cfg, params, [{'tokens': tokens, 'mask': mask}])


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_layer(cfg, params, batches, value):
    broken = at(params, 'layer_2/moe/router/kernel', lambda kernel: kernel.at[1].set(value))
    with pytest.raises(ValueError, match='of layer_2 is not finite'):
        observe(cfg, broken, batches)


def test_a_dense_model_is_refused(cfg, draw, batches):
    dense = cfg.replace(experts=(0,))
    with pytest.raises(ValueError, match='no layer of this model has experts'):
        observe(dense, draw(dense), batches)
