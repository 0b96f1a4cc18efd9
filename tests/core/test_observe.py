import itertools
import zipfile

import numpy as np
import numpy_model
import pytest

from moe_jax import Stats, observe
from moe_jax.observe import COUNTS, SUMS
from moe_jax.tree import at, take


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


def equal(a, b, exact=COUNTS, rtol=1e-6):
    assert set(a) == set(b) == {*COUNTS, *SUMS}
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0 if name in exact else rtol,
                                   atol=0 if name in exact else 1e-5, err_msg=name)


def by_loops(did, valid, rows):
    """Every statistic of one layer, token by token, in float64."""
    shapes = {'tokens': (), 'logit_gram': (rows, rows), 'input_sum': (did['inputs'].shape[1],)}
    found = {name: np.zeros(shapes.get(name, rows)) for name in (*COUNTS, *SUMS)}
    for n in np.flatnonzero(valid):
        found['tokens'] += 1
        found['count_top1'][did['ids'][n, 0]] += 1
        for k, r in enumerate(did['ids'][n]):
            found['count'][r] += 1
            found['gate_sum'][r] += did['gates'][n, k]
            found['dropped'][r] += not did['kept'][n, k]
        found['prob_sum'] += did['probs'][n]
        found['logit_sum'] += did['logits'][n]
        found['logit_gram'] += np.outer(did['logits'][n], did['logits'][n])
        found['input_sum'] += did['inputs'][n]
    return found


@pytest.mark.parametrize('fields', [{}, {'capacity_eval': 0.5, 'min_capacity': 1}])
def test_every_statistic_by_loops(cfg, params, batches, fields):
    cfg = cfg.replace(**fields)
    found = observe(cfg, params, batches)
    assert found.layers == (0, 2)
    for batch in batches:
        mask = batch['mask']
        _, did = numpy_model.forward(cfg, params, batch['tokens'], mask.astype(int),
                                     cfg.capacity_eval)
        for i in (0, 2):
            layer = found.layer(i, batch['group'])
            equal(layer, by_loops(did[i], mask.ravel(), 4), rtol=1e-4)
            assert (layer['dropped'].sum() > 0) == bool(fields)
            assert {layer[name].dtype for name in COUNTS} == {np.dtype('int64')}
            assert {layer[name].dtype for name in SUMS} == {np.dtype('float64')}


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
        sums = {name: parts[0].layer(i)[name] + parts[1].layer(i)[name] for name in both.layer(i)}
        equal(both.layer(i), sums)


def test_batch_size_and_order_do_not_matter(cfg, params, batches, stats):
    single = [{'tokens': b['tokens'][r:r + 1], 'mask': b['mask'][r:r + 1], 'group': b['group']}
              for b in reversed(batches) for r in (1, 0)]
    found = observe(cfg, params, single)
    for i in stats.layers:
        equal(found.layer(i, 'code'), stats.layer(i, 'code'), rtol=1e-5)


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
        wanted = {name: before[name][order] if before[name].shape == (4,) else before[name]
                  for name in before}
        wanted['logit_gram'] = before['logit_gram'][np.ix_(order, order)]
        equal(after, wanted, rtol=1e-5)
        equal(found.layer(2, group), stats.layer(2, group), rtol=1e-4)


def test_rows_that_share_an_expert_count_apart_and_not_as_dropped(cfg, params, batches, stats):
    alias = (0, 1, 2, 0)
    three = at(params, 'layer_0/moe/experts', lambda e: take(e, [0, 1, 2]))
    shared = cfg.replace(experts=(3, 0, 4), aliases=(alias, None, None))
    found = observe(shared, three, batches)
    equal(found.layer(0), stats.layer(0), rtol=1e-5)  # layer 0 routes before it mixes
    assert found.layer(2)['dropped'].sum() == 0


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


def test_statistics_of_two_models_do_not_add(stats):
    with pytest.raises(ValueError, match='two models'):
        _ = stats + Stats('other', stats.groups)


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


def test_save_and_load(stats, tmp_path):
    path = tmp_path / 'new folder' / 'stats.npz'
    stats.save(path)
    found = Stats.load(path)
    assert found.fingerprint == stats.fingerprint and set(found.groups) == set(stats.groups)
    for group, layers in stats.groups.items():
        assert set(found.groups[group]) == set(layers)
        for i, sums in layers.items():
            for name, value in sums.items():
                np.testing.assert_array_equal(found.groups[group][i][name], value)
                assert found.groups[group][i][name].dtype == value.dtype
    assert [p.name for p in path.parent.iterdir()] == ['stats.npz']


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Stats.load(tmp_path / 'none.npz')


def test_a_damaged_file_is_refused_by_name_or_was_not_harmed(stats, tmp_path):
    path = tmp_path / 'stats.npz'
    stats.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b'', b'PK', b'<html></html>', whole[:1], whole[:-1], whole[:len(whole) // 2],
               whole[100:], bytes(rng.integers(0, 256, 500, np.uint8))]
    for place in rng.integers(0, len(whole), 60):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1:])
    refused = 0  # not always: a zip has bytes that nobody reads
    for content in damaged:
        path.write_bytes(content)
        try:
            found = Stats.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            for i, group in itertools.product(stats.layers, stats.groups):
                equal(found.layer(i, group), stats.layer(i, group), rtol=0)
    assert refused > len(damaged) / 2


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_hostile_files_are_refused(stats, tmp_path):
    class Marker:
        def __reduce__(self):
            return (open, (str(tmp_path / 'marker'), 'w'))

    path = tmp_path / 'stats.npz'
    header = np.frombuffer(b'{"format": 1, "fingerprint": "", "groups": ["all"]}', np.uint8)
    bomb = tmp_path / 'bomb.npz'
    np.savez_compressed(bomb, header=header, **{'0/0/count': np.zeros(10**6)})
    np.save(tmp_path / 'plain.npy', np.zeros(3))
    with zipfile.ZipFile(tmp_path / 'text.zip', 'w') as archive:
        archive.writestr('header.npy', 'no array')
    for file in (
        write(path, header=np.array([Marker()], object)),
        bomb, tmp_path / 'plain.npy', tmp_path / 'text.zip',
        write(tmp_path / 'a.npz', weights=np.zeros(3)),
        write(tmp_path / 'b.npz', header=header),
        write(tmp_path / 'c.npz', header=header, **{'0/0/count': np.zeros(3)}),
        write(tmp_path / 'd.npz', header=header, **{'7/0/count': np.zeros(3)}),
        write(tmp_path / 'e.npz', header=np.frombuffer(b'[1]', np.uint8)),
        write(tmp_path / 'f.npz', header=np.frombuffer(b'{"format": 99}', np.uint8)),
    ):
        with pytest.raises(ValueError, match=file.name):
            Stats.load(file)
    assert not (tmp_path / 'marker').exists()
