"""The bootstrap against plain loops and scipy; pairing, weights, clusters, seeds."""

import numpy as np
import pytest
from scipy import stats

from moe_jax.study.report.expert_count.values import Examples, Model, Score, scratch
from moe_jax.study.report.paired import (
    Estimate,
    align,
    expansion,
    generator,
    mean,
    measure,
    over_seeds,
    resampled_means,
)

A, B = Model(8, 4, 'uncurl'), scratch(4)


def score(model, values, groups, weight=None, ids=None, seed=0, task='t', correct=None) -> Score:
    n = len(values)
    examples = Examples(
        tuple(ids or (f'{i}' for i in range(n))),
        tuple(groups),
        np.asarray(values, float),
        np.ones(n) if weight is None else np.asarray(weight, float),
        correct,
    )
    return Score(seed, task, model, 0.0, (), examples, {})


def estimates(*scores: Score, accuracy=False) -> dict:
    aligned, _ = align(scores)
    return measure(aligned[scores[0].task], accuracy=accuracy)


def test_replicates_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    groups = [f'g{i}' for i in rng.integers(7, size=40)]
    values, weight = rng.normal(size=40), rng.integers(1, 9, 40)
    found = estimates(score(A, values, groups, weight))[0, 't', A]

    names = sorted(set(groups))
    picks = generator('task t').integers(len(names), size=(2000, len(names)))
    expected = []
    for row in picks[:50]:
        rows = [i for p in row for i in range(40) if groups[i] == names[p]]
        expected.append(sum(values[i] * weight[i] for i in rows) / sum(weight[i] for i in rows))
    centre = np.average(values, weights=weight)
    expected = centre + (np.array(expected) - centre) * expansion(len(names))
    np.testing.assert_allclose(found.draws[:50], expected)
    assert found.value == pytest.approx(centre)


def test_expansion_makes_few_groups_as_wide_as_student_t():
    assert expansion(4) == pytest.approx(3.1824 / 1.96 * (4 / 3) ** 0.5, rel=1e-4)
    assert expansion(1000) == pytest.approx(1, abs=0.003)
    rng = np.random.default_rng(8)
    hits = {True: 0, False: 0}
    for trial in range(200):
        values = rng.normal(size=5)
        found = estimates(score(A, values, 'abcde', task=f'{trial}'))[0, f'{trial}', A]
        hits[True] += found.low <= 0 <= found.high
        plain = (found.draws - found.value) / expansion(5) + found.value
        hits[False] += np.quantile(plain, 0.025) <= 0 <= np.quantile(plain, 0.975)
    assert hits[False] / 200 < 0.88 < hits[True] / 200


def test_interval_agrees_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, 60), rng.normal(0, 1, 60)
    table = estimates(score(A, a, map(str, range(60))), score(B, b, map(str, range(60))))
    found = table[0, 't', A] - table[0, 't', B]
    unwidened = 1 / expansion(60)
    other = stats.bootstrap(
        (a - b,), np.mean, n_resamples=20_000, method='percentile', rng=np.random.default_rng(2)
    ).confidence_interval
    middle = found.value
    assert middle + (found.low - middle) * unwidened == pytest.approx(other.low, abs=0.03)
    assert middle + (found.high - middle) * unwidened == pytest.approx(other.high, abs=0.03)


def test_pairing_removes_what_models_share():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 100)
    table = estimates(
        score(A, hard + 0.1, map(str, range(100))), score(B, hard, map(str, range(100)))
    )
    paired = table[0, 't', A] - table[0, 't', B]
    assert paired.status == 'better'
    np.testing.assert_allclose(paired.draws, 0.1, atol=1e-12)
    assert table[0, 't', A].high - table[0, 't', A].low > 1


def test_examples_of_one_group_move_together():
    rng = np.random.default_rng(4)
    values = np.repeat(rng.normal(size=12), 10)
    clustered = estimates(score(A, values, [str(i // 10) for i in range(120)]))[0, 't', A]
    naive = estimates(score(A, values, map(str, range(120))))[0, 't', A]
    assert (clustered.high - clustered.low) > 2 * (naive.high - naive.low)


def test_one_group_falls_back_to_examples():
    found = estimates(score(A, np.arange(20.0), ['only'] * 20))[0, 't', A]
    assert found.high - found.low > 1


def test_blocks_do_not_change_the_draws(monkeypatch):
    rng = np.random.default_rng(5)
    sums, weights = rng.normal(size=(9, 2)), np.ones((9, 2))
    whole = resampled_means(sums, weights, name='x', resamples=100)
    monkeypatch.setattr('moe_jax.study.report.paired.BLOCK', 50)
    np.testing.assert_array_equal(whole, resampled_means(sums, weights, name='x', resamples=100))


def test_weightless_draws_keep_the_mean():
    sums, weights = np.array([[0.0], [3.0]]), np.array([[0.0], [1.0]])
    np.testing.assert_allclose(resampled_means(sums, weights, name='x', resamples=200), 3.0)


def test_different_examples_are_cut_or_left_out():
    full = [score(Model(8, g, 'm'), [1, 2, 3], 'abc', ids='xyz') for g in (4, 2)]
    more = score(A, [1, 2, 3, 9], 'abcd', ids='xyzw')
    fewer = score(B, [1, 2], 'ab', ids='xy')
    aligned, notes = align([*full, more, fewer])
    assert [s.model for s, _ in aligned['t']] == [full[0].model, full[1].model, A]
    assert measure(aligned['t'], accuracy=False)[0, 't', A].value == 2
    assert len(notes) == 2 and 'left out' in notes[0] and 'cut' in notes[1]


def test_seeds_are_resampled_as_a_second_level():
    flat = {s: Estimate(float(s), np.full(2000, float(s))) for s in (0, 1, 2)}
    found = over_seeds(flat)
    assert found.value == 1
    picked = 1 + (found.draws - 1) / 1.5**0.5  # undo sqrt(S / (S - 1))
    assert set(np.round(picked * 3)) == set(range(7))
    assert np.mean(np.round(picked, 9) == 0) == pytest.approx(1 / 27, abs=0.015)
    assert np.var(found.draws) == pytest.approx(np.var([0, 1, 2], ddof=1) / 3, rel=0.1)
    assert over_seeds({5: flat[1]}) is flat[1]


def test_mean_is_stratified_by_task():
    a, b = Estimate(1.0, np.array([0.0, 2.0])), Estimate(3.0, np.array([3.0, 3.0]))
    np.testing.assert_array_equal(mean([a, b]).draws, [1.5, 2.5])


def test_coverage_of_the_interval():
    rng = np.random.default_rng(6)
    hits = 0
    for trial in range(120):
        shared = np.repeat(rng.normal(0, 1, 25), 4)
        values = shared + rng.normal(0, 1, 100)
        groups = [str(i // 4) for i in range(100)]
        found = estimates(score(A, values, groups, task=f'{trial}'))[0, f'{trial}', A]
        hits += found.low <= 0 <= found.high
    assert 0.9 <= hits / 120 <= 0.99


def test_accuracy_needs_answers():
    right = np.array([1.0, 0.0, 1.0, 1.0])
    table = estimates(
        score(A, [0, 0, 0, 0], 'abcd', correct=right), score(B, [0] * 4, 'abcd'), accuracy=True
    )
    assert table[0, 't', A].value == 0.75 and (0, 't', B) not in table
