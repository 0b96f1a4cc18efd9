"""Experts to train (ESFT) and experts to protect, against loops over tokens and by hand."""

import itertools

import numpy as np
import pytest

from moe_jax import Config, Stats
from prune.experts.protect import super_experts
from prune.experts.select import select_experts

EXPERTS, TOPK, TOKENS = 6, 2, 50


@pytest.fixture(scope='module')
def esft() -> Config:
    return Config(vocab=8, positions=4, width=8, heads=2, mlp_hidden=4, expert_hidden=4,
                  experts=(EXPERTS, 0, EXPERTS), topk=TOPK, capacity_eval=None, shared_hidden=4)


def draw_gates(seed: int, renormalized: bool) -> np.ndarray:
    """Applied gates [T, E] of top-2 routing; expert 3 is never chosen."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(TOKENS, EXPERTS)) + np.arange(EXPERTS) / 3
    logits[:, 3] = -50
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gates = np.where(probs >= np.sort(probs, axis=1)[:, [-TOPK]], probs, 0)
    return gates / gates.sum(axis=1, keepdims=True) if renormalized else gates


def stats_of(gates: dict[str, dict[int, np.ndarray]]) -> Stats:
    """{group: {layer: gates [T, E]}} as statistics."""
    return Stats('made up', {
        name: {i: {'tokens': np.asarray(len(g)), 'gate_sum': g.sum(axis=0),
                   'count': (g > 0).sum(axis=0)} for i, g in layers.items()}
        for name, layers in gates.items()
    })


def of_scores(*scores: list[float]) -> Stats:
    """Statistics of 100 tokens whose mean gates in layers 0 and 2 are given."""
    layers = {i: {'tokens': np.asarray(100), 'gate_sum': 100 * np.array(s, np.float64),
                  'count': np.ones(EXPERTS, np.int64)} for i, s in zip((0, 2), scores, strict=True)}
    return Stats('made up', {'all': layers})


def smallest_set(score: np.ndarray, share: float) -> int:
    """How many experts the smallest set reaching a share has, by trying all of them."""
    for size in range(1, len(score) + 1):
        if max(sum(s) for s in itertools.combinations(score, size)) >= share:
            return size
    raise AssertionError('out of reach')


@pytest.mark.parametrize('share', [None, 0.05, 0.3, 0.45])
@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('by', ['gates', 'tokens'])
@pytest.mark.parametrize('group', [None, 'law'])
def test_the_shortest_prefix_that_reaches_the_share(esft, by, normalize, share, group):
    gates = {g: {i: draw_gates(7 * i + k, False) for i in (0, 2)}
             for k, g in enumerate(('law', 'intent'))}
    chosen = select_experts(stats_of(gates), esft, by=by, share=share, group=group,
                            normalize=normalize)
    assert list(chosen) == [0, 2]
    share = {'gates': 0.1, 'tokens': 0.2}[by] if share is None else share
    for i, ids in chosen.items():
        seen = np.concatenate([layers[i] for name, layers in gates.items()
                               if group in (None, name)])
        score = np.zeros(EXPERTS)
        for token in seen:
            for e in range(EXPERTS):
                mine = token[e] if by == 'gates' else (token[e] > 0) / TOPK
                score[e] += mine / len(seen)
        score = score / score.sum() if normalize else score
        assert ids.tolist() == sorted(ids.tolist()) and len(ids) == smallest_set(score, share)
        assert set(ids) == set(np.argsort(-score, kind='stable')[:len(ids)])


def test_a_selection_by_hand(esft):
    stats = of_scores([.05, .4, .05, .2, .1, .2], [0, 0, 1, 0, 0, 0])
    for share, want in ((.1, [1]), (.4, [1]), (.41, [1, 3]), (.7, [1, 3, 5]), (.85, [1, 3, 4, 5]),
                        (.92, [0, 1, 3, 4, 5]), (1.0, [0, 1, 2, 3, 4, 5])):
        chosen = select_experts(stats, esft, share=share)
        assert chosen[0].tolist() == want and chosen[2].tolist() == [2]
    assert select_experts(stats, esft)[0].tolist() == [1]
    # Half of the mass: 0.1 of it is one expert more than 0.1 of a token.
    half = of_scores([.1, .1, .1, .1, .05, .05], [.5, 0, 0, 0, 0, 0])
    assert select_experts(half, esft, share=.15)[0].tolist() == [0, 1]
    assert select_experts(half, esft, share=.5, normalize=True)[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize('by', ['gates', 'tokens'])
def test_the_whole_share_takes_every_expert_with_traffic(esft, by):
    """Sums taken in float32 may miss 1 by rounding; an expert without traffic is left out."""
    gates = {'all': {i: draw_gates(i, True).astype(np.float32) for i in (0, 2)}}
    for ids in select_experts(stats_of(gates), esft, by=by, share=1.0).values():
        assert ids.tolist() == [0, 1, 2, 4, 5]
    rounded = of_scores([.5, .2999999, .2, 0, 0, 0], [0, 0, 0, .9999998, 0, 0])
    chosen = select_experts(rounded, esft, share=1.0)
    assert chosen[0].tolist() == [0, 1, 2] and chosen[2].tolist() == [3]


def test_a_token_share_counts_k_choices_of_a_layer(esft):
    """With clamp a layer of one expert is chosen once per token: all of the share, not half."""
    small = esft.replace(experts=(1, 0, 1), clamp=True)
    layer = {'tokens': np.asarray(9), 'count': np.array([9]), 'gate_sum': np.array([9.])}
    stats = Stats('made up', {'all': {0: layer, 2: layer}})
    assert select_experts(stats, small, by='tokens', share=1.0)[0].tolist() == [0]


def test_rows_that_share_an_expert_add_up(esft):
    """Rows 0 and 2 use expert 0; row 4 is a constant, which nobody can train."""
    alias = (0, 1, 0, 2, 3, 2)
    shared = esft.replace(experts=(3, 0, 3), aliases=(alias, None, alias), constants=(1, 0, 1))
    stats = of_scores([.2, .3, .2, 0, .3, 0], [0, 0, 0, .1, 0, .1])
    chosen = select_experts(stats, shared, share=.2)
    assert chosen[0].tolist() == [0] and chosen[2].tolist() == [2]
    with pytest.raises(ValueError, match=r'layer 0.*sum to 0\.7000'):
        select_experts(stats, shared, share=.8)


def test_bad_statistics_and_options_are_refused(esft):
    stats = stats_of({'law': {i: draw_gates(i, False) for i in (0, 2)}})
    for share in (0, -0.1, 1.01, float('nan')):
        with pytest.raises(ValueError, match=r'share=.* in \(0, 1\]'):
            select_experts(stats, esft, share=share)
    with pytest.raises(ValueError, match="by='token'; did you mean 'tokens'"):
        select_experts(stats, esft, by='token')
    with pytest.raises(ValueError, match=r"group 'lax' .*did you mean 'law'"):
        select_experts(stats, esft, group='lax')
    with pytest.raises(ValueError, match='statistics are empty'):
        select_experts(Stats('made up', {}), esft)
    with pytest.raises(ValueError, match=r'layers \[0, 2\], the model has MoE layers \[0\]'):
        select_experts(stats, esft.replace(experts=(EXPERTS, 0, 0)))
    with pytest.raises(ValueError, match=r"'gate_sum' of layer 0 has shape \(6,\).*4 router rows"):
        select_experts(stats, esft.replace(experts=(4, 0, 4)))
    with pytest.raises(ValueError, match=r'layer \d: .*sum to 0\.\d+, less than share=0\.99'):
        select_experts(stats, esft, share=0.99)
    for value in (np.nan, np.inf, -1.0):
        broken = of_scores([value, .5, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])
        with pytest.raises(ValueError, match=r"'gate_sum' of layer 0 .*not finite"):
            select_experts(broken, esft)
    broken = stats_of({'law': {i: draw_gates(i, False)[:0] for i in (0, 2)}})
    with pytest.raises(ValueError, match='layer 0 saw no token'):
        select_experts(broken, esft)
    del stats.groups['law'][2]['count']
    with pytest.raises(ValueError, match="'count', which layer 2 lacks"):
        select_experts(stats, esft, by='tokens')
    assert list(select_experts(stats, esft)) == [0, 2]


def in_layers(*values: list[float]) -> dict[int, dict[str, np.ndarray]]:
    return {2 * k + 1: {'element_max': np.array(v, np.float64)} for k, v in enumerate(values)}


def test_super_experts_are_extreme_and_early():
    """Four layers, 800 experts: 99.5% of them are below the 4 largest."""
    base = np.random.default_rng(0).uniform(1, 5, size=(4, 200))
    base[0, 7], base[1, 3], base[3, 9], base[2, 5] = 900, 300, 500, 60
    found = super_experts(in_layers(*base))
    assert {i: np.flatnonzero(m).tolist() for i, m in found.items()} == {
        1: [7], 3: [3], 5: [], 7: []}  # 60 is below a tenth of 900, 500 is in the last layer
    every = super_experts(in_layers(*base), layers_share=1.0)
    assert np.flatnonzero(every[7]).tolist() == [9]
    assert all(m.shape == (200,) and m.dtype == bool for m in every.values())


def test_super_experts_pass_both_limits():
    """By loops: sorted values, linear between ranks, layers of different size."""
    rng = np.random.default_rng(1)
    layers = in_layers(*(np.exp(2 * rng.normal(size=n)) for n in (150, 300, 80, 120, 100)))
    values = sorted(v for layer in layers.values() for v in layer['element_max'])
    rank = 0.995 * (len(values) - 1)
    low = int(rank)
    percentile = values[low] + (rank - low) * (values[low + 1] - values[low])
    for share, count in ((0.75, 3), (0.5, 2), (1, 5), (0.1, 0), (0.6, 3)):
        found = super_experts(layers, layers_share=share)
        for position, (i, layer) in enumerate(layers.items()):
            want = [position < count and v > percentile and v > values[-1] / 10
                    for v in layer['element_max']]
            assert found[i].tolist() == want
    assert sum(m.sum() for m in super_experts(layers, layers_share=1).values()) >= 2


def test_super_experts_of_a_small_model():
    assert super_experts(in_layers([1, 2, 9], [1, 1, 1]), layers_share=1)[1].tolist() == [
        False, False, True]
    assert not any(m.any() for m in super_experts(in_layers([5, 5], [5, 5]), 1).values())
    assert not any(m.any() for m in super_experts(in_layers([0, 0], [0, 0]), 1).values())
    assert not super_experts(in_layers([1, 9]))[1].any()  # 75% of one layer is none
    # 29% of 100 layers are 29, though 0.29 * 100 is 28.999999999999996 in binary.
    spike = super_experts(in_layers(*([9 if k == 28 else 1] for k in range(100))), 0.29)
    assert spike[57].tolist() == [True]
    # Renaming experts, or giving the layers in another order, changes nothing else.
    layers = in_layers([1, 2, 9], [3, 1, 1])
    turned = {i: {'element_max': layers[i]['element_max'][::-1]} for i in (3, 1)}
    a, b = super_experts(layers, 0.5), super_experts(turned, 0.5)
    assert all(a[i].tolist() == b[i][::-1].tolist() for i in layers) and a[1].any()


def test_bad_maxima_are_refused():
    for share in (0, 1.5, -1, float('nan')):
        with pytest.raises(ValueError, match='layers_share='):
            super_experts(in_layers([1, 2]), layers_share=share)
    with pytest.raises(ValueError, match='no layer given'):
        super_experts({})
    with pytest.raises(ValueError, match="'element_max', which layer 3 lacks"):
        super_experts({1: {'element_max': np.ones(2)}, 3: {}})
    for value in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match='layer 3 has values'):
            super_experts(in_layers([1, 2], [1, value]))
