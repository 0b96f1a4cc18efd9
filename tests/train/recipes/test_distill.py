"""Distillation against torch and loops in numpy, and the laws of its terms."""

import dataclasses
import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.base.sharding import replicated
from moe_jax.base.tree import at, leaves_with_paths
from moe_jax.data import batches
from moe_jax.layers import ffn
from moe_jax.model import decoder
from tests.train.train_tiny import DROPLESS, OPTIONS, batch, equal, params
from train import Distill, Interrupted, distill, fit, router_kd, teach
from train.loop import feed
from train.objectives import losses
from train.objectives.distill import DistillLoss, Gap, expert_error
from train.objectives.objective import LANGUAGE_MODEL, share_of
from train.objectives.teacher import Question, ask, gather_experts

CFG = DROPLESS.replace(experts=(4,), topk=2, capacity_eval=None)
SMALL = CFG.replace(experts=(2,))
PACKED = jax.tree.map(lambda *rows: np.concatenate(rows), *(batch(i) for i in range(3)))
FEW = dataclasses.replace(OPTIONS, steps=3, log_every=1, clip=None, weight_decay=0.0)
ONCE = dataclasses.replace(FEW, steps=1, warmup=0)
ALL = Distill(ce=0.5, logits=1.0, temperature=2.0, hidden=3.0, experts=0.25)
MIX = np.array([[0.25, 0.0, 0.75, 0.0], [0.0, 1.0, 0.0, 0.0]])
HOME, KEY = replicated(jnp.zeros(())), jax.random.key(0)


@pytest.fixture(scope='module')
def teacher():
    return CFG, params(CFG)


def halved(tree):
    """A student of the teacher's size with other experts and another embedding."""
    def other(path, leaf):
        return leaf * 0.5 if 'experts' in path or 'embed' in path else leaf
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: other(jax.tree_util.keystr(path), leaf), tree)


def logits_of(seed, *shape):
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


@pytest.mark.parametrize('tau', [1.0, 2.5])
def test_divergence_equals_torch(tau):
    torch = pytest.importorskip('torch')
    t, s = logits_of(0, 2, 5, 7), logits_of(1, 2, 5, 7)
    weights = np.ones((2, 5), np.float32)
    ours = losses.divergence(jnp.asarray(t), jnp.asarray(s), jnp.float32(tau), jnp.asarray(weights))
    pairs = [torch.tensor(z[:, :-1].reshape(8, 7) / tau).log_softmax(-1) for z in (s, t)]
    theirs = torch.nn.KLDivLoss(reduction='batchmean', log_target=True)(*pairs) * tau**2
    np.testing.assert_allclose(float(ours) / 8, theirs.item(), rtol=1e-5)


def test_divergence_is_weighted_as_the_cross_entropy_is():
    t, s = logits_of(0, 1, 3, 4), logits_of(1, 1, 3, 4)
    weights = jnp.asarray([[9.0, 2.0, 0.5]])
    p, q = (np.exp(z.astype(np.float64)) for z in (t[0], s[0]))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    nats = (p * np.log(p / q)).sum(-1)
    ours = losses.divergence(jnp.asarray(t), jnp.asarray(s), jnp.float32(1), weights)
    np.testing.assert_allclose(ours, 2.0 * nats[0] + 0.5 * nats[1], rtol=1e-5)


def test_the_best_and_the_rest_equal_a_loop():
    z, ids, tau = logits_of(3, 2, 6), np.array([[4, 1], [0, 5]]), 1.7
    ours = losses.with_rest(jnp.asarray(z), jnp.asarray(ids), jnp.float32(tau))
    probs = np.exp(z.astype(np.float64) / tau)
    probs /= probs.sum(-1, keepdims=True)
    for row in range(2):
        few = np.exp(np.asarray(ours[row], np.float64) / tau)
        wanted = [*probs[row, ids[row]], 1 - probs[row, ids[row]].sum()]
        np.testing.assert_allclose(few / few.sum(), wanted, rtol=1e-5)


def test_streams_are_those_of_the_blocks_and_their_error_equals_numpy(teacher):
    rows = batch(0)
    run = jax.jit(functools.partial(decoder.hidden, CFG, watch=('stream',)))
    x, out = run(teacher[1], rows['tokens'], rows['segments'])
    stream = np.asarray(out['stream'][0])
    norm = teacher[1]['norm_final']
    mean, var = (f(stream, axis=-1, keepdims=True) for f in (np.mean, np.var))
    again = (stream - mean) / np.sqrt(var + 1e-5) * np.asarray(norm['scale'])
    np.testing.assert_allclose(x, again + np.asarray(norm['bias']), atol=1e-5)
    other, valid = stream + logits_of(2, *stream.shape), rows['segments'] > 0
    ours = losses.stream_error(jnp.asarray(stream), jnp.asarray(other), jnp.asarray(valid))
    wanted = sum(((stream - other)[b, t] ** 2).mean() for b, t in np.argwhere(valid))
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.parametrize('alias', [None, (0, 1, 1)])
def test_the_expert_term_equals_a_loop(teacher, alias):
    cfg = SMALL if alias is None else SMALL.replace(aliases=(alias,))
    student, rows = params(cfg, seed=1), batch(0)
    run = jax.jit(functools.partial(decoder.hidden, cfg, watch=('routing',)))
    _, out = run(student, rows['tokens'], rows['segments'])
    given = gather_experts(*teacher, {0: MIX}, HOME)['layer_0']
    assert given['share'].shape == (2, 2)
    gap = Gap(ffn.of(cfg), ffn.of(CFG), 'float32')
    ours = jax.jit(functools.partial(expert_error, cfg, gap, layer=0))(
        student, out, members=given)
    record, function = out['routing'][0], ffn.of(CFG)
    x, ids, valid = (np.asarray(a) for a in (record.inputs, record.ids, out['valid']))
    ids = ids if alias is None else np.asarray(alias)[ids]
    one = lambda tree, e: jax.tree.map(lambda leaf: leaf[e], tree)  # noqa: E731
    wanted = 0.0
    for g in range(2):
        mine = x[valid & (ids == g).any(axis=1)]
        of = sum(MIX[g, e] * np.asarray(function(one(teacher[1]['layer_0']['moe']['experts'], e),
                                                 mine)) for e in range(4))
        own = np.asarray(function(one(student['layer_0']['moe']['experts'], g), mine))
        wanted += ((own - of) ** 2).mean(axis=1).mean()
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.full
def test_a_student_that_is_its_teacher_has_nothing_to_learn(teacher):
    """Exactly nothing of streams and experts, and but for rounding of logits."""
    recipe = Distill(ce=0.0, hidden=1.0, experts=1.0, auxiliary=0.0)
    _, (line,) = distill(*teacher, teacher, PACKED, ONCE, recipe)
    assert line['loss'] == line['hidden'] == line['expert'] == line['grad_norm'] == 0.0
    taught = teach(*teacher, PACKED, batch=4)
    _, (line,) = distill(*teacher, None, taught, ONCE, Distill(ce=0.0, logits=1.0))
    assert abs(line['kd']) < 1e-6 and line['grad_norm'] < 1e-6


@functools.partial(jax.jit, static_argnames='asked')
def computed(student, rows, share, asked):
    """Value and terms of the loss on rows that carry the signals, by ALL without experts."""
    extra = {'weights': {name: jnp.float32(getattr(ALL, name)) for name in (
        'ce', 'logits', 'temperature', 'hidden', 'auxiliary')}}
    value, terms, _ = DistillLoss(True, asked, None)(CFG, student, rows, extra, KEY, share)
    return terms | {'loss': value}


def test_terms_add_up_and_micro_batches_are_one_batch(teacher):
    """Rows of unequal weight and length, which would show a mean of means."""
    student, asked = halved(teacher[1]), Question(layers=(0,))
    rows = {name: array[:8] for name, array in teach(*teacher, PACKED, batch=4,
                                                     layers=(0,)).items()}
    rows['weights'], rows['segments'] = (rows[name].copy() for name in ('weights', 'segments'))
    rows['weights'][1:3] = 0
    rows['segments'][2] = 0
    one = computed(student, rows, share_of({name: a[None] for name, a in rows.items()}), asked)
    parts = [{name: a[i:i + 4] for name, a in rows.items()} for i in (0, 4)]
    share = share_of(jax.tree.map(lambda *a: np.stack(a), *parts))
    two = [computed(student, part, share, asked) for part in parts]
    for name in ('loss', 'ce', 'kd', 'hidden'):
        np.testing.assert_allclose(two[0][name] + two[1][name], one[name], rtol=1e-5)
    wanted = 0.5 * one['ce'] + one['kd'] + 3.0 * one['hidden']
    np.testing.assert_allclose(one['loss'], wanted, rtol=1e-6)


def test_rows_that_were_taught_serve_as_well_as_a_teacher(teacher):
    student = halved(teacher[1])
    first = {name: array[None, :4] for name, array in PACKED.items()}
    one_of = lambda rows: {name: array[0] for name, array in rows.items()}  # noqa: E731
    share, asked = share_of(first), Question(layers=(0,))
    present = one_of(ask(*teacher, asked, 2.0, HOME, first))
    full = teach(*teacher, PACKED, batch=4, layers=(0,), temperature=2.0)
    best = teach(*teacher, PACKED, batch=4, top=63, layers=(0,), temperature=2.0)
    assert best['teacher_top'].shape == (12, 12, 64) and 'teacher_logits' not in best
    wanted = computed(student, present, share, asked)
    for taught, question in ((full, asked), (best, Question(False, 63, (0,)))):
        found = computed(student, {n: a[:4] for n, a in taught.items()}, share, question)
        for name in ('loss', 'ce', 'kd', 'hidden'):  # 63 and one more are all 64 classes
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4)
    assert wanted['kd'] > 1e-5 and wanted['hidden'] > 1e-5


def test_rows_say_what_was_asked_of_the_teacher(teacher):
    """Streams of another layer and ids of another vocabulary look like any others."""
    best = teach(*teacher, PACKED, batch=4, top=2, layers=(0,))
    assert best['teacher_layers'].shape == (12, 12, 1)
    two, kd = CFG.replace(experts=(4, 0)), Distill(logits=1.0)
    for cfg, rows, recipe, words in (
            (two, best, Distill(hidden=1.0, layers=(1,)), r'after layers \[0\].*says \[1\]'),
            (CFG, {k: v for k, v in best.items() if k != 'teacher_layers'}, Distill(hidden=1.0),
             'after layers None'),
            (CFG.replace(vocab=32), best, kd, 'beyond the vocab=32'),
            (CFG, {k: v for k, v in best.items() if k != 'teacher_temperature'}, kd,
             'do not belong together'),
            (CFG, best | {'teacher_top': best['teacher_top'][..., :2]}, kd,
             'do not belong together')):
        with pytest.raises(ValueError, match=words):
            distill(cfg, teacher[1], None, rows, FEW, recipe)


def test_a_run_resumes_on_what_the_same_teacher_said():
    first = batch(0) | {'teacher_stream': np.ones((4, 12, 1, 3))}
    second = first | {'teacher_stream': np.zeros((4, 12, 1, 3))}

    def read(rows, *resumed):
        return next(feed.stream(CFG, lambda start: iter([rows] * 2), FEW, None, *resumed or (0, ''),
                                ('teacher_stream',)))[1]()

    seen = read(first)
    assert read(first, 1, seen) == seen
    with pytest.raises(ValueError, match='not the batch that step 1'):
        read(second, 1, seen)


def test_half_precision_rows_and_padding():
    cfg = CFG
    packed = teach(cfg, params(cfg), {k: v[:5] for k, v in PACKED.items()}, batch=4, top=3,
                   dtype='float16')
    assert packed['teacher_top'].dtype == np.float16 and packed['teacher_ids'].dtype == np.int32
    assert all(len(array) == 5 for array in packed.values())
    first = next(batches.stream(packed, 2, 0))
    assert first['teacher_top'].shape == (2, 12, 4) and first['teacher_temperature'][0, 0] == 1.0
    order = np.sort(packed['teacher_top'][..., :3], axis=-1)[..., ::-1]
    np.testing.assert_array_equal(order, packed['teacher_top'][..., :3])


@pytest.mark.full
def test_balanced_experts_count_as_much_as_the_cross_entropy_and_resume(teacher, tmp_path):
    student = params(SMALL, seed=1)
    recipe = Distill(experts='balance')
    run = functools.partial(distill, SMALL, student, teacher, options=FEW, recipe=recipe,
                            stands_for={0: MIX})
    trained, history = run(packed=PACKED)
    first = history[0]
    np.testing.assert_allclose(first['loss'], 2 * first['ce'], rtol=1e-5)
    assert history[-1]['expert'] < first['expert']

    def stop(step, steps, metrics):
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run(packed=PACKED, out=tmp_path / 'run', progress=stop)
    resumed, again = run(packed=PACKED, out=tmp_path / 'run')
    assert equal(trained, resumed) and history == again
    said = json.loads((tmp_path / 'run/run.json').read_text())['objective']
    assert "experts='balance'" in said and 'model:' in said
    for other in ({'stands_for': {0: MIX[::-1]}}, {'recipe': Distill(experts=1.0)}):
        with pytest.raises(ValueError, match='objective was Distill'):
            run(packed=PACKED, out=tmp_path / 'run', **other)


def test_router_kd_moves_routers_towards_the_teacher(teacher):
    """A teacher whose experts matter, and the same with another router."""
    loud = at(teacher[1], 'layer_0/moe/experts', lambda experts: jax.tree.map(
        lambda leaf: 10.0 * leaf, experts))
    student = at(loud, 'layer_0/moe/router/kernel', lambda kernel: kernel[::-1])
    cfg, same = CFG.replace(balance=1.0), {name: array[:4] for name, array in PACKED.items()}
    options = dataclasses.replace(FEW, steps=8, peak_lr=0.01)
    trained, history = router_kd(cfg, student, (CFG, loud), same, options)
    assert history[-1]['kd'] < history[0]['kd'] and history[0]['loss'] == history[0]['kd']
    for (path, old), (_, new) in zip(leaves_with_paths(student), leaves_with_paths(trained),
                                     strict=True):
        assert equal(old, new) == ('moe/router' not in path), path


@pytest.mark.parametrize(('fields', 'words'), [
    ({'ce': -1.0, 'logits': 1.0}, 'ce=-1.0: must be finite'),
    ({'logits': 'balance'}, "logits='balance': must be finite"),
    ({'experts': 'equal'}, "experts='equal'.*or 'balance'"),
    ({'logits': 1.0, 'temperature': 0.0}, 'temperature=0.0: must be positive'),
    ({}, 'nothing is learned from the teacher'),
])
def test_recipes_are_checked(fields, words):
    with pytest.raises(ValueError, match=words):
        Distill(**fields)


def test_teachers_and_rows_that_do_not_fit_are_refused(teacher):
    student = params(SMALL)
    kd, best = Distill(logits=1.0), teach(*teacher, PACKED, batch=4, top=2)
    with pytest.raises(ValueError, match=r"2 experts and the teacher's 4; .*prune.stands_for"):
        distill(SMALL, student, teacher, PACKED, FEW, Distill(experts=1.0))
    with pytest.raises(ValueError, match=r'stands_for\[0\] must be a finite matrix \[2, 4\]'):
        distill(SMALL, student, teacher, PACKED, FEW, Distill(experts=1.0), stands_for={0: MIX.T})
    with pytest.raises(ValueError, match='the teacher has vocab=64 and the student 32'):
        distill(SMALL.replace(vocab=32), student, teacher, PACKED, FEW, kd)
    with pytest.raises(ValueError, match='evaluates experts of the teacher'):
        distill(SMALL, student, None, best, FEW, Distill(experts=1.0))
    with pytest.raises(ValueError, match=r'teacher_logits has shape None.*train\.teach'):
        distill(SMALL, student, None, PACKED, FEW, kd)
    with pytest.raises(ValueError, match=r'temperature 1.0 and the recipe says 2.0'):
        distill(SMALL, student, None, best, FEW, Distill(logits=1.0, temperature=2.0))
    with pytest.raises(ValueError, match=r'layers=\[7\]: give distinct layers from 0 to 0'):
        distill(SMALL, student, teacher, PACKED, FEW, Distill(hidden=1.0, layers=(7,)))
    with pytest.raises(ValueError, match='top=64: give 1 to 63'):
        teach(*teacher, PACKED, batch=4, top=64)
    for options, words in (({'temperature': np.inf}, 'inf: must be positive and finite'),
                           ({'dtype': 'int8'}, 'must be one of floats'),
                           ({'batch': 0}, 'batch=0'), ({'layers': (0.5,)}, 'distinct layers')):
        with pytest.raises(ValueError, match=words):
            teach(*teacher, PACKED, **{'batch': 4, 'top': 2, **options})
    for scale, dtype in ((jnp.nan, 'float32'), (1e6, 'float16')):
        loud = at(teacher[1], 'embed', lambda e, s=scale: jax.tree.map(lambda leaf: leaf * s, e))
        with pytest.raises(ValueError, match=f'teacher_stream is NaN or too large for {dtype}'):
            teach(CFG, loud, PACKED, batch=4, logits=False, layers=(0,), dtype=dtype)
    needy = LANGUAGE_MODEL._replace(name='needy', reads=('teacher_logits',))
    with pytest.raises(ValueError, match="the objective reads 'teacher_logits'"):
        fit(CFG, teacher[1], lambda start: iter([batch(0)]), FEW, objective=needy)
