"""The error of a subset from Gram matrices, against layers evaluated token by token in loops."""

import numpy as np
import pytest

from prune.subsets import error
from prune.subsets.curve import error_curve, relative_curve
from tests.matrix import rows
from tests.prune.subsets import reconstruct_loops as loops

FORMS = {
    **{f'{gate}, K={k}': {'gate': gate, 'topk': k} for gate in loops.GATES for k in (1, 2)},
    'K=3, scaled': {'gate': 'softmax_topk', 'topk': 3, 'gate_scale': 2.5},
    'sigmoid with correction': {'gate': 'sigmoid_topk_renorm', 'correction': True},
    'correction of logits': {'gate': 'topk_softmax', 'correction': True},
    'correction of shares': {'gate': 'softmax_topk', 'correction': True},
    'groups': {'gate': 'softmax_topk_renorm', 'groups': 3, 'groups_used': 2},
    'one group of two used, with correction': {
        'gate': 'sigmoid_topk', 'groups': 2, 'groups_used': 1, 'correction': True},
}


QUICK = 'softmax_topk_renorm, K=2', 'K=3, scaled', 'sigmoid with correction', 'groups'


def case(seed=0, **fields):
    cfg = loops.config(**fields)
    params = loops.layer(cfg, seed)
    seen = loops.reservoir(cfg, params, seed=seed)
    return cfg, params, seen, sample(cfg, params, seen)


def sample(cfg, params, seen):
    return error.sample_of(seen, params['layer_0']['moe'], cfg)


@pytest.mark.parametrize('form', rows(FORMS, QUICK))
def test_errors_are_those_of_the_layer_evaluated_again(form):
    cfg, params, seen, found = case(**FORMS[form])
    assert sum(len(loops.route(z, None, cfg)) for z in seen['sample_logits'][:4]) == 4 * cfg.topk
    sizes = [n for n in range(1, 7) if n % cfg.groups == 0 and (n // cfg.groups > 1 or (
        not cfg.gate.startswith('sigmoid') or cfg.groups == 1))]
    for size in sizes:
        subsets = loops.sets(6, size, cfg.groups)[::2]
        want = [loops.error(cfg, params, seen, s) for s in subsets]
        got = error.errors(found, cfg, np.array(subsets))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5 * found.scale)
        assert got.dtype == np.float64
    assert error.error(found, cfg, np.arange(6)) <= 1e-6 * found.scale


@pytest.mark.parametrize('form', rows(FORMS, QUICK))
def test_errors_without_each_expert(form):
    cfg, params, seen, found = case(**FORMS[form])
    least = 3 if cfg.groups > 1 else 1  # below, a group could be empty and no token could choose
    for kept in ([0, 1, 2, 3, 4, 5], [0, 2, 3, 5], [1, 4]):
        if len(kept) > least:
            want = [loops.error_left(cfg, params, seen, np.delete(kept, i))
                    for i in range(len(kept))]
            got = error.errors_without(found, cfg, np.array(kept))
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-5 * found.scale)


def test_the_order_of_a_subset_does_not_matter():
    cfg, _, _, found = case()
    got = error.errors(found, cfg, np.array([[1, 3, 4], [4, 1, 3]]))
    assert got[0] == got[1]


def test_equal_logits_go_to_the_lower_row():
    cfg = loops.config(topk=1, gate='softmax_topk')
    params = loops.layer(cfg)
    logits = np.random.default_rng(0).integers(0, 2, (24, 6)).astype(float)
    seen = loops.reservoir(cfg, params, logits=logits)
    found = sample(cfg, params, seen)
    for subset in loops.sets(6, 3):
        want = loops.error(cfg, params, seen, subset)
        np.testing.assert_allclose(error.error(found, cfg, subset), want, rtol=1e-4)


@pytest.mark.parametrize('gate', ['softmax_topk', 'softmax_topk_renorm'])
def test_survivors_that_had_no_share_at_all(gate):
    """Logits 200 below the best: their softmax among themselves is as good as any."""
    cfg = loops.config(gate=gate)
    params = loops.layer(cfg)
    logits = np.random.default_rng(0).normal(size=(24, 6))
    logits[:, :2] += 200
    seen = loops.reservoir(cfg, params, logits=logits)
    found = sample(cfg, params, seen)
    subsets = [(2, 3, 4), (0, 2, 3), (3, 4, 5)]
    want = [loops.error(cfg, params, seen, s) for s in subsets]
    np.testing.assert_allclose(error.errors(found, cfg, np.array(subsets)), want, rtol=1e-4)
    kept = np.array([0, 2, 3, 4])
    want = [loops.error(cfg, params, seen, np.delete(kept, i)) for i in range(4)]
    np.testing.assert_allclose(error.errors_without(found, cfg, kept), want, rtol=1e-4,
                               atol=1e-5 * found.scale)


def test_more_subsets_and_tokens_than_one_chunk():
    """The loop over chunks and the sum over blocks leave none out."""
    cfg, params, seen, _ = case()
    many = {name: np.concatenate([value] * 7) for name, value in seen.items()}
    found = sample(cfg, params, many)
    subsets = np.array(loops.sets(6, 3) * 14)
    want = [loops.error(cfg, params, seen, s) for s in loops.sets(6, 3)] * 14
    assert len(subsets) > error.CHUNK and len(many['sample_square']) > error.BLOCK
    got = error.errors(found, cfg, subsets)
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_sums_of_blocks():
    cfg, params, seen, found = case()
    tokens = loops.token_errors(cfg, params, seen, [0, 3, 4])
    mask = np.isin(np.arange(6), [0, 3, 4])[None]
    got = error.block_sums(found, cfg, mask, 10)[0]
    want = [tokens[:10].sum(), tokens[10:20].sum(), tokens[20:].sum()]
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_another_target():
    """cross and square may be of other outputs y, as in progressive pruning."""
    cfg, params, seen, _ = case()
    moe = params['layer_0']['moe']
    goal = np.random.default_rng(1).normal(size=(24, loops.D))
    f = np.array([[loops.expert(moe['experts'], e, x) for e in range(6)]
                  for x in seen['sample_input']])
    seen |= {'sample_cross': np.einsum('ted,td->te', f, goal).astype(np.float32),
             'sample_square': (goal**2).sum(axis=1).astype(np.float32)}
    want = []
    for t, z in enumerate(seen['sample_logits'].astype(float)):
        kept = np.array([1, 2, 5])
        y = sum(g * f[t, kept[r]] for r, g in loops.route(z[kept], None, cfg).items())
        want.append(np.sum((goal[t] - y) ** 2))
    got = error.error(sample(cfg, params, seen), cfg, [1, 2, 5])
    np.testing.assert_allclose(got, np.mean(want), rtol=2e-5)


def test_what_is_no_subset():
    cfg, params, seen, found = case(groups=2, groups_used=2)
    for wrong, message in (([[0, 6, 2, 3]], 'ids from 0 to 6'), ([[0, 0, 3, 4]], 'twice'),
                           ([[0, 1, 2, 3]], 'equally many'), ([[0.0, 3.0]], 'integers'),
                           ([0, 3], 'integers')):
        with pytest.raises(ValueError, match=message):
            error.errors(found, cfg, np.array(wrong))
    assert error.errors(found, cfg, np.zeros((0, 2), int)).shape == (0,)
    with pytest.raises(ValueError, match='no tokens'):
        sample(cfg, params, {name: value[:0] for name, value in seen.items()})


def test_errors_closer_than_rounding_are_equal():
    assert error.least(np.array([3.0, 1 + 1e-9, 1.0, 2.0]), 1.0) == 1
    assert error.least(np.array([3.0, 1.001, 1.0, 2.0]), 1.0) == 2


def test_the_curve_of_a_ranking_keeps_its_best():
    cfg, params, seen, found = case(gate='softmax_topk')
    scores = np.array([2.0, 5, 1, 5, 0, 3])  # falling: 1, 3, 5, 0, 2, 4
    curve = error_curve(found, cfg, scores, [6, 1, 3, 4])
    nested = {6: range(6), 1: [1], 3: [1, 3, 5], 4: [0, 1, 3, 5]}
    assert list(curve) == [6, 1, 3, 4] and type(curve[1]) is float
    for count, subset in nested.items():
        want = loops.error(cfg, params, seen, list(subset))
        np.testing.assert_allclose(curve[count], want, rtol=2e-5, atol=1e-5)
    share = relative_curve(found, cfg, scores, [1, 3])
    mean = seen['sample_square'].astype(float).mean()
    np.testing.assert_allclose([share[1], share[3]], [curve[1] / mean, curve[3] / mean])
    with pytest.raises(ValueError, match='cannot keep 7'):
        error_curve(found, cfg, scores, [7])
    with pytest.raises(ValueError, match=r'scores of shape \(5,\)'):
        error_curve(found, cfg, scores[:5], [2])


def test_the_curve_of_groups_and_of_a_layer_that_gives_nothing():
    cfg, params, seen, found = case(groups=2, groups_used=2, gate='softmax_topk_renorm')
    curve = error_curve(found, cfg, np.array([9.0, 8, 7, 1, 3, 2]), [2, 4])
    np.testing.assert_allclose(curve[2], loops.error(cfg, params, seen, [0, 4]), rtol=2e-5)
    np.testing.assert_allclose(curve[4], loops.error(cfg, params, seen, [0, 1, 4, 5]), rtol=2e-5)
    with pytest.raises(ValueError, match='multiples of the 2 router groups'):
        error_curve(found, cfg, np.arange(6.0), [3])
    nothing = {name: 0 * value if name != 'sample_logits' else value
               for name, value in seen.items()}
    assert relative_curve(sample(cfg, params, nothing), cfg, np.arange(6.0), [2]) == {2: 0.0}
