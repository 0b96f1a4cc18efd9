"""What trains: names, some experts, low-rank adapters, and zeros that stay zero."""

import dataclasses
import json
import logging
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.base.tree import at, count_bytes, count_params, leaves_with_paths
from moe_jax.model import decoder
from tests.matrix import rows
from tests.train.train_tiny import (
    CFG,
    DROPLESS,
    OPTIONS,
    batch,
    equal,
    params,
    stream,
    stream_until,
)
from train import (
    TRAINABLE,
    Interrupted,
    Trainable,
    TrainOptions,
    fit,
    forecast,
    init_state,
    last_state,
    make_step,
    params_of,
)
from train.optim.adamw import moments
from train.trainable import resolved
from train.trainable.kinds import Adapter, Slice, Whole
from train.trainable.resolved import TrainedLeaves, resolve

SOME = Trainable(leaves='norm_final', experts={0: [3, 1]})
LOW = Trainable(rank=2, alpha=6.0, on=r'moe/experts/|attn/|router|embed')
EXPERTS = 'layer_0/moe/experts'
ONE = DROPLESS.replace(experts=(4,), capacity_eval=None)  # what compiles fastest


def stepped(start, options, steps=1):
    state = init_state(start, options)
    for index in range(steps):
        rows = jax.tree.map(lambda x: x[None], batch(index))
        state, _ = make_step(ONE, options)(state, rows)
    return state


def told(trainable, **fields) -> TrainOptions:
    return dataclasses.replace(OPTIONS, trainable=trainable, **fields)


def half(tree):
    return jax.tree.map(lambda leaf: leaf.astype('bfloat16'), tree)


def with_zeros(tree):
    """Every other weight of the experts' matrices exactly zero."""
    def zero(experts):
        return {name: leaf if leaf.ndim < 3 else leaf.at[:, ::2].set(0.0)
                for name, leaf in experts.items()}
    return at(tree, EXPERTS, zero)


def zeros_of(tree):
    return {path: np.asarray(leaf == 0) for path, leaf in leaves_with_paths(tree)
            if 'moe/experts/' in path and leaf.ndim == 3}


def test_names_cover_a_model_and_say_what_they_say():
    cfg = CFG.replace(shared_hidden=8, qk_norm='head', router_bias=True)
    paths = dict(leaves_with_paths(decoder.shapes(cfg)))
    found = {name: set(resolve(paths, TRAINABLE[name]).select(paths)) for name in TRAINABLE}
    assert found['all'] == set(paths)
    assert found['routers'] == {'layer_0/moe/router/kernel', 'layer_0/moe/router/bias'}
    assert found['experts'] == {f'{EXPERTS}/{name}' for name in (
        'up', 'down', 'up_bias', 'down_bias')}
    assert found['embeddings'] == {'embed/tokens', 'embed/positions'}
    assert found['norms'] == {path for path in paths if 'norm' in path}
    assert found['biases'] == {path for path in paths if path.endswith('bias')}
    rest = ('routers', 'experts', 'shared', 'dense', 'attention', 'norms', 'embeddings')
    assert set().union(*(found[name] for name in rest)) == set(paths)


@pytest.mark.parametrize(('trainable', 'words'), [
    (lambda: 'routers', r"did you mean train.TRAINABLE\['routers'\]"),
    (lambda: 'moe/gate', r'matches none of the .* such as embed/.*common choices.*routers'),
    (lambda: Trainable(experts={0: [4]}), r'layer 0 has 4 experts and no expert 4'),
    (lambda: Trainable(experts={1: [0]}), r'layer 1 has 0 experts'),
    (lambda: Trainable(leaves='experts/up', experts={0: [0]}), 'leaves and experts both name'),
    (lambda: Trainable(leaves='attn', rank=1, on='attn/q'), r'leaves and on both name'),
    (lambda: Trainable(experts={0: [0]}, rank=1, on='moe/'), 'experts and on both name'),
    (lambda: Trainable(rank=1, on='bias'), r"on='bias': matches no matrix"),
    (lambda: Trainable(), 'nothing trains'),
    (lambda: Trainable(rank=2), 'need a rank of at least 1 and the paths'),
    (lambda: Trainable(leaves='moe', alpha=2.0), 'alpha=2.0: must be positive, with a rank'),
    (lambda: Trainable(experts={0: [1, 1]}), 'give distinct ids'),
    (lambda: Trainable(experts={0: np.array([True, False])}), r'True, False\]; give distinct'),
    (lambda: Trainable(experts={0: [1.5]}), 'give distinct ids'),
    (lambda: Trainable(leaves='('), 'not a regular expression'),
])
def test_what_cannot_train_is_refused(trainable, words):
    with pytest.raises(ValueError, match=words):
        init_state(params(), told(trainable()))


def test_a_choice_is_one_value_however_it_is_written():
    same = Trainable(leaves='norm_final', experts={np.int64(0): np.array([1, 3]), 1: []})
    assert same == SOME and hash(same) == hash(SOME) and dataclasses.replace(SOME) == SOME
    json.dumps(dataclasses.asdict(same))


def test_selected_experts_train_as_they_would_in_whole_leaves():
    options = told(Trainable(experts={0: [3, 1]}), clip=None)
    start = params(ONE)
    some = stepped(start, options)
    whole = stepped(start, dataclasses.replace(options, trainable=EXPERTS))
    new, expected = params_of(some, options), whole.params
    for name, leaf in new['layer_0']['moe']['experts'].items():
        theirs = expected['layer_0']['moe']['experts'][name]
        np.testing.assert_allclose(  # a weight that crosses 0 has the rounding of its step
            leaf[jnp.array([1, 3])], theirs[jnp.array([1, 3])], rtol=1e-6, atol=1e-9)
        assert not equal(leaf[1], start['layer_0']['moe']['experts'][name][1])


def test_only_what_trains_has_moments_and_the_rest_keeps_its_bytes():
    start = half(params(ONE))
    state = init_state(start, told(SOME))
    experts = start['layer_0']['moe']['experts']
    numbers = count_params(experts) // 2 + count_params(start['norm_final'])
    assert count_bytes(state.opt_state) == 2 * 4 * numbers + 4
    assert count_bytes(state.parts) == 4 * (count_params(experts) // 2)
    trained, _ = fit(ONE.replace(dtype='bfloat16'), start, stream, told(SOME, peak_lr=0.05))
    for (path, old), (_, new) in zip(leaves_with_paths(start), leaves_with_paths(trained),
                                     strict=True):
        if path.startswith(EXPERTS):
            assert equal(old[jnp.array([0, 2])], new[jnp.array([0, 2])])
            assert not equal(old[1], new[1]) and not equal(old[3], new[3])
        else:
            assert equal(old, new) == (not path.startswith('norm_final')), path


def test_adapters_start_at_nothing_and_have_two_small_matrices():
    start = params()
    state = init_state(start, told(LOW))
    shapes = {name: leaf.shape for name, leaf in state.parts.items()}
    assert shapes[f'{EXPERTS}/up/a'] == (4, 16, 2) and shapes[f'{EXPERTS}/up/b'] == (4, 2, 24)
    assert shapes['layer_0/moe/router/kernel/a'] == (4, 2)
    assert 'layer_0/moe/experts/up_bias/a' not in shapes and 'embed/tokens/b' in shapes
    assert count_bytes(state.opt_state) == 2 * count_bytes(state.parts) + 4
    assert equal(params_of(state, told(LOW)), start)
    a = np.asarray(state.parts['layer_1/attn/q/a'])
    assert not equal(a, np.asarray(state.parts['layer_0/attn/q/a']))
    assert 0.5 < a.std() * np.sqrt(a.shape[0]) < 1.5
    other = init_state(start, told(LOW, seed=1)).parts['layer_1/attn/q/a']
    assert not equal(a, np.asarray(other))


@pytest.mark.parametrize('path', [f'{EXPERTS}/down', 'layer_1/attn/q'])
def test_an_adapter_and_its_gradient_equal_numpy(path):
    rng = np.random.default_rng(0)
    w = dict(leaves_with_paths(params()))[path]
    a = rng.normal(size=(*w.shape[:-1], 2)).astype(np.float32)
    b = rng.normal(size=(*w.shape[:-2], 2, w.shape[-1])).astype(np.float32)
    given = rng.normal(size=w.shape).astype(np.float32)

    def run(parts):
        return resolve({path: w}, LOW).effective({path: w}, parts)[path]
    new, pull = jax.vjp(run, {f'{path}/a': jnp.asarray(a), f'{path}/b': jnp.asarray(b)})
    np.testing.assert_allclose(new, np.asarray(w) + 3.0 * a @ b, rtol=1e-5, atol=1e-5)
    grads = pull(jnp.asarray(given))[0]
    np.testing.assert_allclose(grads[f'{path}/a'], 3.0 * given @ np.swapaxes(b, -1, -2),
                               rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads[f'{path}/b'], 3.0 * np.swapaxes(a, -1, -2) @ given,
                               rtol=1e-4, atol=1e-4)


def test_merged_adapters_are_what_the_forward_pass_used():
    start = params(ONE)
    options = told(LOW, peak_lr=0.01)
    state, rows = stepped(start, options, steps=2), batch(2)

    @jax.jit
    def both(state, rows):
        used = resolve(state.params, LOW).effective(state.params, state.parts)
        return used, decoder.forward(ONE, used, rows['tokens'], rows['segments'])[0]
    used, logits = both(state, rows)
    merged = params_of(state, options)
    assert equal(used, merged) and not equal(merged['layer_0'], start['layer_0'])
    alone = decoder.apply(ONE, merged, rows['tokens'], rows['segments'])
    np.testing.assert_allclose(logits, alone, atol=1e-6)


def test_training_by_adapters_lowers_the_loss_and_moves_nothing_else():
    trainable = Trainable(rank=4, on='moe/experts/')
    trained, history = fit(ONE, params(ONE), lambda start: iter([batch(0)] * 30), told(
        trainable, steps=30, warmup=3, peak_lr=0.03, log_every=1))
    assert history[-1]['ce'] < history[0]['ce'] - 0.05
    for path, leaf in leaves_with_paths(params(ONE)):
        same = equal(leaf, dict(leaves_with_paths(trained))[path])
        assert same == (path not in (f'{EXPERTS}/up', f'{EXPERTS}/down')), path


def test_adapters_leave_zeros_alone_where_they_are_kept():
    w = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
    parts = {'moe/experts/up/a': jnp.ones((2, 1)), 'moe/experts/up/b': jnp.ones((1, 2))}
    for keep, wanted in (('experts', [[2.0, 0.0], [0.0, 3.0]]), (None, [[2.0, 1.0], [1.0, 3.0]])):
        tree = {'moe/experts/up': w}
        new = resolve(tree, Trainable(rank=1, on='experts'), keep).effective(tree, parts)
        np.testing.assert_array_equal(new['moe/experts/up'], wanted)


@pytest.mark.parametrize('trainable', rows([None, Trainable(experts={0: [0, 2]})], quick=[None]))
def test_zeros_that_are_kept_survive_training_and_resuming(tmp_path, trainable):
    start = with_zeros(params(ONE))
    options = told(trainable, keep_zeros='moe/experts/', peak_lr=0.05, weight_decay=0.1)
    whole, history = fit(ONE, start, stream, options)
    stopped = stream_until(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(ONE, start, stopped, options, out=tmp_path / 'run')
    resumed, again = fit(ONE, start, stream, options, out=tmp_path / 'run')
    assert equal(whole, resumed) and history == again
    before, after = zeros_of(start), zeros_of(whole)
    for name in ('up_bias', 'down_bias'):  # zero, and no mask made them so
        assert not np.any(start['layer_0']['moe']['experts'][name])
        assert np.any(whole['layer_0']['moe']['experts'][name])
    for path, zero in before.items():
        assert 0.4 < zero.mean() < 0.6
        np.testing.assert_array_equal(after[path], zero)
        assert not equal(*(dict(leaves_with_paths(t))[path] for t in (start, whole)))
        for name, moment in leaves_with_paths(moments(last_state(
                tmp_path / 'run', start, options).opt_state)._replace(count=())):
            if name.endswith(path) and moment.shape == zero.shape:
                assert np.any(moment) and not np.asarray(moment)[zero].any()
    changed = told(Trainable(leaves='moe'), keep_zeros='moe/experts/', peak_lr=0.05)
    with pytest.raises(ValueError, match=r'options\.trainable was'):
        fit(ONE, start, stream, changed, out=tmp_path / 'run')


def test_zeros_that_will_be_filled_are_announced(caplog):
    start = with_zeros(params())
    with caplog.at_level(logging.WARNING):
        for quiet in (told('attn'), told(None, keep_zeros='experts')):
            init_state(start, quiet)
        init_state(params(), told(None))
        assert not caplog.records
        init_state(start, told(Trainable(experts={0: [1]})))
        init_state(start, told(Trainable(rank=1, on='experts/down')))
    assert '2 expert matrices have exact zeros' in caplog.records[0].message
    assert 'experts/down: 50%' in caplog.records[0].message
    assert '1 expert matrices' in caplog.records[1].message
    with pytest.raises(ValueError, match="keep_zeros='moe' matches none of the 2"):
        init_state(start, told('norm_final', keep_zeros='moe'))
    with pytest.raises(ValueError, match="keep_zeros='bias': matches no matrix"):
        init_state(start, told(None, keep_zeros='bias'))


def test_paths_of_each_kind():
    tree = params()
    some, low = resolve(tree, SOME), resolve(tree, LOW)
    assert {leaf.path: leaf.kind for leaf in some.leaves} == {
        'norm_final/scale': Whole(), 'norm_final/bias': Whole(),
        **{f'{EXPERTS}/{name}': Slice((1, 3)) for name in ('up', 'down', 'up_bias', 'down_bias')}}
    assert {leaf.kind for leaf in low.leaves} == {Adapter(2, 3.0)}
    assert 'layer_0/attn/q_bias' not in low.by_path
    assert {leaf.kind for leaf in resolve(tree, 'moe').leaves} == {Whole()}


@pytest.mark.parametrize('trainable', [None, 'moe/', SOME, LOW, Trainable(
    leaves='norm_final', experts={0: [2]}, rank=1, on='attn/')])
@pytest.mark.parametrize('keep_zeros', [None, 'moe/experts/|attn/'])
def test_every_kind_makes_a_round_trip(trainable, keep_zeros):
    """The arrays have the shapes that are forecast, and put back they are the weights again."""
    tree = half(with_zeros(params()))
    trained = resolve(tree, trainable, keep_zeros)
    assert trained == resolve(decoder.shapes(CFG), trainable, keep_zeros)
    assert hash(trained) == hash(resolve(tree, trainable, keep_zeros))
    arrays, parts = trained.start(tree, seed=0)
    assert {name: array.shape for name, array in arrays.items()} == trained.shapes
    assert arrays.keys() - parts.keys() == trained.select(tree).keys()
    assert all(array.dtype == np.float32 for array in parts.values())
    assert equal(trained.effective(tree, arrays), tree)
    assert {name for name in arrays if trained.zeros_stay(name)} == {
        name for name in arrays if keep_zeros and ('experts/' in name or 'attn/' in name)
        and not name.endswith(('bias', 'scale', '/a', '/b'))}


@pytest.mark.full
def test_a_run_resolves_what_trains_once(tmp_path, monkeypatch):
    calls, resolve = [], resolved.resolve

    def counted(*arguments) -> TrainedLeaves:
        calls.append(arguments)
        return resolve(*arguments)
    monkeypatch.setattr(resolved, 'resolve', counted)
    for index, trainable in enumerate((None, SOME, LOW), 1):
        options = told(trainable, keep_zeros=None, steps=3, evaluate_every=1, log_every=1)
        fit(CFG, params(), stream, options, out=tmp_path / str(index), evaluate=lambda tree: {})
        assert len(calls) == index
    forecast(CFG, told(SOME), {'data': 2})
    assert len(calls) == 4
    last_state(tmp_path / '2', params(), told(SOME, steps=3))
    assert len(calls) == 5
