"""The safe-sparsity curve: its points are plan, apply and compare; its stop is the rule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from moe_jax.model.decoder import shapes
from prune.curves.safety import Safety

CFG = Config(
    vocab=64, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=6, experts=(6, 0, 6),
    topk=2, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
)
TOKENS = np.random.default_rng(0).integers(0, 64, (8, 16)).astype(np.int32)
BATCHES = [{'tokens': TOKENS[:4], 'mask': TOKENS[:4] >= 0, 'group': 'a'},
           {'tokens': TOKENS[4:], 'mask': TOKENS[4:] >= 0, 'group': 'b'}]


METHODS = {'reap': ('reap', {}), 'm_smoe': ('m_smoe', {'selection': 'per_layer'})}


@pytest.fixture(scope='module')
def params():
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.7 * rng.normal(size=leaf.shape), leaf.dtype),
                        shapes(CFG))


@pytest.fixture(scope='module')
def stats(params):
    return moe_jax.observe(CFG, params, BATCHES)


@pytest.fixture(scope='module')
def safety(params, stats):
    return prune.safe_sparsity(METHODS, stats, params, CFG, BATCHES, experts=[3, (2, 5)])


def test_points_are_plan_apply_and_compare(params, stats, safety):
    assert [(p['method'], p['experts']) for p in safety.points] == [
        ('reap', [2, 5]), ('reap', [3, 3]), ('m_smoe', [2, 5]), ('m_smoe', [3, 3])]
    for point in safety.points:
        name, own = METHODS[point['method']]
        plan = prune.plan(name, stats, params, CFG, experts=point['experts'], **own)
        small, cfg = prune.apply(params, CFG, plan)
        wanted = moe_jax.compare(CFG, params, cfg, small, BATCHES)
        for metric in ('lost', 'kl', 'acceptance', 'agreement'):
            low, high = wanted.interval(metric)
            assert point[metric]['mean'] == pytest.approx(wanted.mean(metric), rel=1e-4, abs=1e-6)
            assert point[metric]['low'] == pytest.approx(low, rel=1e-3, abs=1e-5)
            assert point[metric]['high'] == pytest.approx(high, rel=1e-3, abs=1e-5)
            assert point['groups']['b'][metric]['mean'] == pytest.approx(
                wanted.mean(metric, 'b'), rel=1e-4, abs=1e-6)
        assert point['rejected']['high'] == 1 - point['acceptance']['low']
        assert point['kept'] == sum(point['experts']) / 2
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (small, params)]
        assert point['parameters'] == sizes[0] / sizes[1]


def made(method, kept, mean, gap=0.01):
    spread = {'mean': mean, 'low': mean - gap, 'high': mean + gap}
    return {'method': method, 'kept': kept, 'experts': [kept], 'parameters': kept / 8,
            'lost': spread, 'kl': spread, 'rejected': spread}


def test_the_stop_by_hand():
    points = (made('a', 6, 0.01), made('a', 4, 0.03), made('a', 2, 0.2),
              made('b', 6, 0.06), made('b', 4, 0.0), made('b', 2, 0.0),  # safe by luck after a hole
              made('c', 6, 0.02), made('c', 4, 0.02), made('c', 2, 0.045))  # 0.055 is too much
    safety = Safety(points, 'lost', 0.05)
    stops = safety.stops()
    assert stops['a'] is points[1] and stops['b'] is None and stops['c'] is points[7]
    assert safety.stop() is points[7]  # as few experts as a, less lost
    assert safety.verdict().startswith('Safe down to 4 experts per layer with c: +0.020')
    strict = Safety(points, 'lost', 0.001)
    assert strict.stop() is None and 'No budget tried' in strict.verdict()
    assert Safety(points, 'kl', 0.3).stop()['kept'] == 2


def test_of_equal_sizes_all_must_be_safe():
    points = (made('a', 8, 0.0), made('a', 6, 0.01), made('a', 6, 9.0), made('a', 4, 0.0))
    for order in (points, points[::-1]):
        safety = Safety(order, 'lost', 0.05)
        assert safety.stop()['kept'] == 8
        assert list(safety.table().columns[-1].cells).count('yes') == 1


@pytest.mark.full
def test_default_budgets_fit_the_model(params):
    cfg = CFG.replace(experts=(6,))
    params = {name: leaf for name, leaf in params.items() if name not in ('layer_1', 'layer_2')}
    stats = moe_jax.observe(cfg, params, BATCHES)
    found = prune.safe_sparsity(['frequency'], stats, params, cfg.replace(clamp=True), BATCHES)
    assert [p['experts'][0] for p in found.points] == [5, 4, 3, 2, 1]  # each once
    one = prune.safe_sparsity('frequency', stats, params, cfg, BATCHES)
    assert [p['experts'][0] for p in one.points] == [5, 4, 3, 2]  # topk at least


def test_a_stopped_curve_goes_on(params, stats, safety):
    seen = []
    again = prune.safe_sparsity(
        METHODS, stats, params, CFG, BATCHES, experts=[3, (2, 5)],
        known={p['id']: p for p in safety.points[:3]}, on_point=lambda *args: seen.append(args))
    assert again.points == safety.points and [s[1:] for s in seen] == [(4, 4)]
    other = []
    prune.safe_sparsity(  # other text: nothing is known of it
        ['reap'], stats, params, CFG, BATCHES[:1], experts=[3],
        known={p['id']: p for p in safety.points}, on_point=lambda *args: other.append(args))
    assert len(other) == 1 and other[0][0]['groups'].keys() == {'a'}
    tuned = jax.tree_util.tree_map_with_path(  # equal routers, other experts: other points
        lambda path, leaf: leaf if 'router' in str(path) else 1.1 * leaf, params)
    prune.safe_sparsity(['reap'], moe_jax.observe(CFG, tuned, BATCHES), tuned, CFG, BATCHES,
                        experts=[3],
                        known={p['id']: p for p in safety.points},
                        on_point=lambda *args: other.append(args))
    assert len(other) == 2


def test_points_say_what_the_plan_really_keeps(params, stats):
    found = prune.safe_sparsity(['reap'], stats, params, CFG, BATCHES, experts=[3],
                                first_layer='keep')
    assert found.points[0]['experts'] == [6, 3] and found.points[0]['kept'] == 4.5


@pytest.mark.full
def test_labels_with_options_table_and_figure(params, stats):
    safety = prune.safe_sparsity(
        {'kept rows': ('uncurl', {'router_init': 'reference'}), 'shared rows': ('m_smoe', {})},
        stats, params, CFG, BATCHES, experts=[4, 3], tolerance=10.0)
    table = safety.table()
    assert list(table.columns[0].cells) == ['kept rows'] * 2 + ['shared rows'] * 2
    assert set(table.columns[-1].cells) == {'yes'} and table.caption == safety.verdict()
    ax = safety.figure().axes[0]
    assert {line.get_label() for line in ax.lines[:2]} == {'kept rows', 'shared rows'}
    np.testing.assert_allclose(ax.lines[0].get_ydata(),
                               [safety.points[1]['lost']['mean'], safety.points[0]['lost']['mean']])


@pytest.mark.parametrize('changes, message', [
    ({'methods': ['reep']}, "no method 'reep'"), ({'methods': []}, 'no method given'),
    ({'metric': 'loss'}, "metric='loss'"), ({'tolerance': -1}, 'tolerance=-1'),
    ({'experts': [1]}, 'cannot keep 1'), ({'methods': ['naee']}, 'observe again with reservoir'),
    ({'methods': ['reap', 'm_smoe'], 'gates': 'preserve_mass'}, 'for methods that drop experts'),
    ({'gates': 'slise'}, "gates='slise'"), ({'gate': 'slice'}, "no option 'gate'"),
    ({'ratio': 0.5}, 'not by ratio='), ({'floor': 4}, 'cannot keep 3'),
    ({'stats': None}, 'needs the statistics'), ({'group': 'c'}, "group 'c'"),
])
def test_what_would_fail_later_is_refused_first(params, stats, changes, message):
    def never():
        raise AssertionError('read')
        yield

    wanted = {'methods': ['reap'], 'stats': stats, 'experts': [3]} | changes
    methods, seen = wanted.pop('methods'), wanted.pop('stats')
    with pytest.raises(ValueError, match=message):
        prune.safe_sparsity(methods, seen, params, CFG, never(), **wanted)


def test_one_row_is_refused(params, stats):
    one = [{'tokens': TOKENS[:1], 'mask': TOKENS[:1] >= 0}]
    with pytest.raises(ValueError, match='at least two rows'):
        prune.safe_sparsity(['reap'], stats, params, CFG, one, experts=[3])
    padded = [{'tokens': TOKENS[:2], 'mask': np.arange(2)[:, None] + 0 * TOKENS[:2] == 0}]
    with pytest.raises(ValueError, match='at least two rows'):
        prune.safe_sparsity(['reap'], stats, params, CFG, padded, experts=[3])
