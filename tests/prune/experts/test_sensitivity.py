"""Curves of a ranking against the layer evaluated again in numpy loops, token by token."""

import numpy as np
import pytest

import prune
from moe_jax import Stats
from tests.prune.subsets import reconstruct_loops as loops

USED = np.array([3, 9, 9, 1, 0, 2])
BY_USE = [1, 2, 0, 5, 3, 4]  # ties to the lower index


def case(**fields):
    cfg = loops.config(**fields)
    params = loops.layer(cfg)
    seen = loops.reservoir(cfg, params)
    layer = {**seen, 'tokens': np.asarray(24), 'count_top1': USED,
             'sample_key': np.arange(24, dtype=np.uint64)}
    return cfg, params, Stats('made up', {'all': {0: layer}}, reservoir=24)


def relative(cfg, params, stats, kept):
    seen = stats.layer(0)
    return loops.error(cfg, params, seen, kept) / seen['sample_square'].astype(float).mean()


@pytest.mark.parametrize('fields', [
    {'gate': 'softmax_topk_renorm'}, {'gate': 'softmax_topk', 'topk': 1},
    {'gate': 'sigmoid_topk', 'correction': True}], ids=str)
def test_every_count_is_the_layer_with_only_the_best_experts(fields):
    cfg, params, stats = case(**fields)
    curve = prune.sensitivity('frequency', stats, params, cfg)[0]
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    want = [relative(cfg, params, stats, sorted(BY_USE[:count])) for count in curve]
    np.testing.assert_allclose(list(curve.values()), want, rtol=2e-5, atol=1e-6)
    assert want[0] > 0.1 and curve[6] == pytest.approx(0, abs=1e-6)


def test_router_groups_give_up_experts_together():
    cfg, params, stats = case(gate='softmax_topk_renorm', groups=3, groups_used=2)
    curve = prune.sensitivity('frequency', stats, params, cfg)[0]
    kept = {3: [1, 2, 5], 6: [0, 1, 2, 3, 4, 5]}  # the best of the pairs (3, 9), (9, 1), (0, 2)
    assert list(curve) == [3, 6]
    np.testing.assert_allclose(
        list(curve.values()), [relative(cfg, params, stats, k) for k in kept.values()],
        rtol=2e-5, atol=1e-6)


def test_a_group_of_the_statistics_counts_alone():
    cfg, params, stats = case()
    other = loops.reservoir(cfg, params, seed=5)
    layer = {**stats.layer(0), **other, 'count_top1': USED[::-1].copy()}
    both = Stats('made up', {'all': stats.groups['all'], 'code': {0: layer}}, reservoir=24)
    curve = prune.sensitivity('frequency', both, params, cfg, group='code')[0]
    code = Stats('made up', {'code': {0: layer}}, reservoir=24)
    assert curve[1] == pytest.approx(relative(cfg, params, code, [3]), rel=1e-4)


def test_methods_that_read_groups_apart():
    cfg, params, stats = case()
    layer = {**stats.layer(0), 'top1_gate_sum': USED / 2}
    found = prune.sensitivity(
        'nllb', Stats('made up', {'all': {0: layer}}, reservoir=24), params, cfg)[0]
    assert found[6] == pytest.approx(0, abs=1e-6) and len(found) == 6


def test_refusals_say_what_to_do():
    cfg, params, stats = case()
    with pytest.raises(ValueError, match='does not rank experts; methods that do: frequency'):
        prune.sensitivity('uncurl', stats, params, cfg)
    few = Stats('made up', {'all': {0: {'tokens': np.asarray(24), 'count_top1': USED}}})
    with pytest.raises(ValueError, match='observe again with reservoir='):
        prune.sensitivity('frequency', few, params, cfg)
    with pytest.raises(ValueError, match='needs the statistics'):
        prune.sensitivity('frequency', None, params, cfg)
    other = Stats('model:0123456789abcdef', stats.groups, reservoir=24)
    with pytest.raises(ValueError, match='another model'):
        prune.sensitivity('frequency', other, params, cfg)
