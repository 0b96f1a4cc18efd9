"""Ranking methods against their papers' formulas, evaluated on made-up tokens one by one."""

import importlib
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

from moe_jax import Config
from prune.experts import activation_scores
from prune.inputs.method import Cost
from prune.subsets.top import top

OBSERVED = [
    ('seer', {'by': 'gates'}), ('seer', {'by': 'probs'}),
    ('expert_drop', {'by': 'probs'}), ('expert_drop', {'by': 'gates'}),
    ('ean', {}), ('gated_ean', {}), ('reap', {}), ('man', {}), ('msan', {}),
    ('reap', {'min_tokens': 9}), ('man', {'min_tokens': 9}), ('msan', {'min_tokens': 9}),
    ('nllb', {}), ('mone', {'fluctuation': 'deviation'}), ('mone', {'fluctuation': 'variance'}),
]
METHODS = sorted({name for name, _ in OBSERVED})
D, TOPK = 5, 2


class Raw(NamedTuple):
    """What happened to every token: probs, gates [T, E], first [T], used [T, E], outputs [T, E, D].

    used: the choice was evaluated; a chosen expert without it was full.
    """

    probs: np.ndarray
    gates: np.ndarray
    first: np.ndarray
    used: np.ndarray
    outputs: np.ndarray


@pytest.fixture(scope='module')
def config() -> Config:
    """Two MoE layers of different size."""
    return Config(vocab=8, positions=4, width=D, heads=1, mlp_hidden=4, expert_hidden=6,
                  experts=(7, 0, 6), topk=TOPK, capacity_eval=None, ffn='swiglu')


def draw_tokens(seed: int, experts: int, tokens: int = 60) -> Raw:
    """Random routing: expert 1 is never chosen, expert 2 once, expert 3 is always full."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tokens, experts)) + np.linspace(0, 1, experts)
    logits[:, 1] = -30
    logits[:, 2] = -20
    logits[7, 2] = 20
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.argsort(-probs, axis=1)
    gates = np.zeros_like(probs)
    for t in range(tokens):
        gates[t, order[t, :TOPK]] = probs[t, order[t, :TOPK]] / probs[t, order[t, :TOPK]].sum()
    used = gates > 0
    used[:, 3] = False
    outputs = rng.normal(size=(tokens, experts, D)) * np.linspace(1, 3, experts)[:, None]
    return Raw(probs, gates, order[:, 0], used, outputs + rng.normal(size=(experts, D)))


def observe(raw: Raw) -> dict[str, np.ndarray]:
    """The statistics of raw tokens, one choice at a time."""
    tokens, experts = raw.gates.shape
    seen = {'tokens': np.asarray(tokens)}
    seen |= {name: np.zeros(experts, np.int64) for name in ('count', 'count_top1')}
    seen |= {name: np.zeros(experts) for name in ('gate_sum', 'prob_sum', 'top1_gate_sum')}
    seen |= {name: np.zeros((experts, D)) for name in ('output_sum', 'output_square')}
    seen['moments'] = np.zeros((3, 3, experts))
    for t, e in itertools.product(range(tokens), range(experts)):
        g = raw.gates[t, e]
        seen['prob_sum'][e] += raw.probs[t, e]
        if raw.first[t] == e:
            seen['count_top1'][e] += 1
            seen['top1_gate_sum'][e] += g
        if g > 0:
            seen['count'][e] += 1
            seen['gate_sum'][e] += g
        if raw.used[t, e]:
            y = raw.outputs[t, e]
            seen['output_sum'][e] += y
            seen['output_square'][e] += y * y
            for a, c in itertools.product(range(3), range(3)):
                seen['moments'][a, c, e] += g**a * math.sqrt(float(y @ y)) ** c
    return seen


def oracle(name: str, options: dict, raws: list[Raw]) -> np.ndarray:
    """The paper's score of every expert of a layer from raw tokens; `raws` are the groups."""
    if name == 'nllb':
        return np.mean([[nllb(raw, e) for e in range(raw.gates.shape[1])] for raw in raws], axis=0)
    raw = Raw(*(np.concatenate(parts) for parts in zip(*raws, strict=True)))
    return np.array([ORACLE[name](raw, e, options) for e in range(raw.gates.shape[1])])


def nllb(raw: Raw, e: int) -> float:
    first = raw.first == e
    return first.mean() * np.exp(raw.gates[first, e].mean()) if first.any() else 0.0


def norms(raw: Raw, e: int) -> np.ndarray:
    return np.linalg.norm(raw.outputs[raw.used[:, e], e], axis=1)


def weighted(raw: Raw, e: int) -> np.ndarray:
    return raw.gates[raw.used[:, e], e] * norms(raw, e)


def mean_of(values: np.ndarray, options: dict) -> float:
    return values.mean() if len(values) >= max(options.get('min_tokens', 0), 1) else 0.0


def mone(raw: Raw, e: int, options: dict) -> float:
    outputs = raw.outputs[raw.used[:, e], e]
    spread = outputs.var(axis=0, ddof=1).sum() if len(outputs) > 1 else 0.0
    power = {'deviation': 0.5, 'variance': 1}[options['fluctuation']]
    return spread**power * raw.gates[:, e].mean()


ORACLE = {
    'seer': lambda r, e, o: {'gates': r.gates, 'probs': r.probs}[o['by']][:, e].sum(),
    'expert_drop': lambda r, e, o: {'gates': r.gates, 'probs': r.probs}[o['by']][:, e].mean(),
    'ean': lambda r, e, o: norms(r, e).sum(),
    'gated_ean': lambda r, e, o: weighted(r, e).sum(),
    'reap': lambda r, e, o: mean_of(weighted(r, e), o),
    'man': lambda r, e, o: mean_of(norms(r, e), o),
    'msan': lambda r, e, o: mean_of(norms(r, e) ** 2, o),
    'mone': mone,
}


def module(name: str):
    return importlib.import_module(f'prune.experts.methods.{name}')


def statistics(name: str, groups: dict[str, dict[int, dict]]) -> dict:
    """What the planner gives a method: one group after another, or all together."""
    if module(name).METHOD.per_group:
        return groups
    first, *rest = groups.values()
    return {i: {n: sum((g[i][n] for g in rest), v) for n, v in seen.items()}
            for i, seen in first.items()}


@pytest.mark.parametrize(('name', 'options'), OBSERVED)
def test_scores_are_the_papers_formula_over_raw_tokens(config, name, options):
    raws = {g: {i: draw_tokens(10 * k + i, config.experts[i], 40 + 20 * k)
                for i in config.moe_layers} for k, g in enumerate(('en', 'de'))}
    seen = {g: {i: observe(raw) for i, raw in layers.items()} for g, layers in raws.items()}
    found = module(name).scores(statistics(name, seen), None, config, **options)
    assert list(found) == list(config.moe_layers)
    for i, score in found.items():
        assert score.dtype == np.float64 and score.shape == (config.experts[i],)
        want = oracle(name, options, [layers[i] for layers in raws.values()])
        np.testing.assert_allclose(score, want, rtol=1e-9, atol=1e-15)


def test_a_layer_by_hand(config):
    """Three tokens: expert 0 gives (3, 4) and (0, 2) with gates 1 and 0.5, expert 1 (6, 8) with .5.
    """
    seen = {'tokens': np.array(3), 'gate_sum': np.array([1.5, 0.5, 0]),
            'count_top1': np.array([2, 0, 0]), 'top1_gate_sum': np.array([1.5, 0, 0]),
            'output_sum': np.array([[3., 6], [6, 8], [0, 0]]),
            'output_square': np.array([[9., 20], [36, 64], [0, 0]])}
    moments = np.zeros((3, 3, 3))
    moments[0, 0], moments[0, 1], moments[0, 2] = [2, 1, 0], [7, 10, 0], [29, 100, 0]
    moments[1, 1], moments[2, 2] = [6, 5, 0], [26, 25, 0]
    seen['moments'] = moments
    one = config.replace(experts=(3,))
    want = {'ean': [7, 10, 0], 'gated_ean': [6, 5, 0], 'reap': [3, 5, 0], 'man': [3.5, 10, 0],
            'msan': [14.5, 100, 0], 'seer': [1.5, .5, 0], 'nllb': [2 / 3 * math.exp(.75), 0, 0],
            # Variances 4.5 and 2 of the two outputs of expert 0; none of a single one.
            'mone': [math.sqrt(6.5) / 2, 0, 0]}
    for name, scores in want.items():
        stats = {0: seen} if name != 'nllb' else {'all': {0: seen}}
        np.testing.assert_allclose(module(name).scores(stats, None, one)[0], scores, rtol=1e-12)
    # Values 5 and 1: variance 8, over two tokens.
    np.testing.assert_allclose(activation_scores.standard_error(seen, 1, 1), [2, np.inf, np.inf])


@pytest.mark.parametrize(('name', 'options'), OBSERVED)
def test_no_traffic_scores_zero_and_ties_go_to_the_lower_index(config, name, options):
    seen = {i: {n: np.zeros_like(v) for n, v in observe(draw_tokens(i, config.experts[i])).items()}
            for i in config.moe_layers}
    stats = statistics(name, {'all': seen})
    for score in module(name).scores(stats, None, config, **options).values():
        np.testing.assert_array_equal(score, 0)
        assert top(score, 3).tolist() == [0, 1, 2]
    raw = draw_tokens(0, 7)
    raw = raw._replace(**{n: getattr(raw, n)[:, [4] * 7] for n in ('probs', 'gates', 'used',
                                                                   'outputs')})
    same = {i: observe(Raw(*(a[:, :config.experts[i]] if a.ndim > 1 else a for a in raw)))
            for i in config.moe_layers}
    for seen in same.values():  # the loop counts first choices for one index only
        seen['count_top1'][:], seen['top1_gate_sum'][:] = 3, 2.0
    for score in module(name).scores(statistics(name, {'all': same}), None, config,
                                     **options).values():
        assert len(set(score.tolist())) == 1 and score[0] > 0
        assert top(score, 3).tolist() == [0, 1, 2]


@pytest.mark.parametrize(('name', 'options'), OBSERVED)
def test_renaming_experts_renames_observed_scores(config, name, options):
    one, order = config.replace(experts=(7,)), np.random.default_rng(3).permutation(7)
    raw = draw_tokens(5, 7)
    renamed = Raw(*(a[:, order] if a.ndim > 1 else np.argsort(order)[a] for a in raw))
    a, b = (module(name).scores(statistics(name, {'all': {0: observe(r)}}), None, one,
                                **options)[0] for r in (raw, renamed))
    np.testing.assert_allclose(b, a[order], rtol=1e-12)


@pytest.mark.parametrize(('a', 'c'), [(1, 1), (0, 1), (1, 0)])
def test_standard_error_is_that_of_the_raw_values(a, c):
    raw = draw_tokens(2, 7)
    found = activation_scores.standard_error(observe(raw), a, c)
    for e in range(7):
        values = raw.gates[raw.used[:, e], e] ** a * norms(raw, e) ** c
        want = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.inf
        np.testing.assert_allclose(found[e], want, rtol=1e-9)
    np.testing.assert_allclose(found[[1, 2, 3]], np.inf)


def test_powers_that_were_not_summed_are_refused():
    seen = observe(draw_tokens(0, 7))
    with pytest.raises(ValueError, match=r'g\^0 n\^4.*0 to 2'):
        activation_scores.standard_error(seen, 0, 2)
    with pytest.raises(ValueError, match=r'g\^-1'):
        activation_scores.family(seen, 1, -1, 1)


def test_the_minimum_of_tokens_is_for_means_alone():
    seen = observe(draw_tokens(1, 7))
    n = seen['moments'][0, 0]
    assert n[2] == 1
    np.testing.assert_array_equal(activation_scores.family(seen, 0, 1, 1, min_tokens=20),
                                  activation_scores.family(seen, 0, 1, 1))
    few = activation_scores.family(seen, 1, 1, 1, min_tokens=20)
    np.testing.assert_array_equal(few > 0, n >= 20)
    exact = activation_scores.family(seen, 1, 1, 1, min_tokens=int(n[4]))
    assert exact[4] == activation_scores.family(seen, 1, 1, 1)[4] > 0 == exact[2]
    np.testing.assert_allclose(activation_scores.family(seen, 0.5, 1, 1)[4],
                               seen['moments'][1, 1, 4] / np.sqrt(n[4]))


def test_a_constant_output_does_not_vary():
    """Sums in float32 of a constant leave rounding where the variance is zero: never below it."""
    n = np.array([1000.0])
    y = np.float32(0.1) * np.ones(D, np.float32)
    sums = {'moments': np.broadcast_to(n, (3, 3, 1)), 'output_sum': (n * y)[None],
            'output_square': np.asarray(n * (y * y), np.float32)[None].astype(np.float64) * 0.9999}
    np.testing.assert_array_equal(module('mone').variance(sums), 0)


@pytest.mark.parametrize('name', METHODS)
def test_methods_declare_what_they_read(config, name):
    method = module(name).METHOD
    assert method.kind == 'drop' and method.paper and method.doc.split(':')[0]
    assert method.cost is Cost.PASS
    seen = {i: observe(draw_tokens(i, config.experts[i])) for i in config.moe_layers}
    table = method.option_needs or {'none': {None: ()}}
    for option, needs in table.items():
        for value, extra in needs.items():
            given = {i: {n: s[n] for n in (*method.needs, *extra)} for i, s in seen.items()}
            given = {'all': given} if method.per_group else given
            method.scores(given, None, config, **({} if value is None else {option: value}))
