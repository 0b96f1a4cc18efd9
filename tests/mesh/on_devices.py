"""Checks on 8 devices that this machine stands in for; test_on_devices.py asks what each found.

    python tests/mesh/on_devices.py [CHECK ...]   # a line of JSON for each: name, what went wrong
"""

import json
import os
import sys
import traceback

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8'])

import pathlib
import shutil
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import moe_jax
import prune
import train
from moe_jax import Config
from moe_jax.base import sharding
from moe_jax.base.tree import take
from moe_jax.data import batches as data
from moe_jax.experts import evaluate as experts
from moe_jax.experts import parallel
from moe_jax.inference.continuations import score_continuations
from moe_jax.layers import ffn
from moe_jax.model import decoder
from moe_jax.model.fingerprint import WHOLE, fingerprint, same_model
from moe_jax.routing.designs.expert_choice import ExpertChoice
from moe_jax.routing.designs.hash import Hash
from train.loop import store
from train.loop.step import train_step

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

CFG = Config(vocab=24, positions=16, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(4, 0, 4), topk=2, capacity_train=None, capacity_eval=None, zloss=0.001)


def arrays(shapes, seed=0, scale=0.5):
    """Normal numbers in the shapes of a tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), shapes)


def close(found, wanted, what):
    """Equal to 1e-5 of the largest number."""
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0,
                               atol=1e-5 * max(1.0, np.abs(wanted).max()), err_msg=what)


def layer() -> None:
    """Values and gradients of one layer's experts, in every form, equal those of one device."""
    wide, mixed = {'data': 2, 'expert': 4}, {'fsdp': 2, 'expert': 2, 'model': 2}
    # Even and skewed (several rounds), gathered by choice and by rule, split by hidden units.
    for kind, count, topk, skew, tried in (
            ('gelu', 8, 1, 9.0, ((wide, None), (wide, 'gather'), (mixed, None))),
            ('swiglu', 7, 3, 0.0, ((wide, None), (mixed, None))),
            ('gelu', 8, 6, 1.0, ((wide, None),))):
        cfg = CFG.replace(ffn=kind, experts=(count,), topk=topk)
        weights = arrays(decoder.shapes(cfg)['layer_0']['moe']['experts'])
        x = arrays(jax.ShapeDtypeStruct((45, 16), jnp.float32), 1)
        rng = np.random.default_rng(2)
        liking = rng.normal(size=(45, count)) + skew * (np.arange(count) == 0)
        ids = np.argsort(-liking, axis=1)[:, :topk].astype(np.int32)
        ids[7] = count  # padding
        gates = jnp.asarray(rng.uniform(size=(45, topk)), jnp.float32)

        def value(evaluate, weights, x, gates, ids=ids, cfg=cfg):
            y, kept = evaluate(ffn.of(cfg), weights, x, jnp.asarray(ids), gates)
            return jnp.sum(jnp.sin(3 * y)), (y, kept)

        run = lambda evaluate: jax.jit(jax.value_and_grad(  # noqa: E731
            partial(value, evaluate), argnums=(0, 1, 2), has_aux=True))
        one = run(experts.dropless)(weights, x, gates)
        for axes, form in tried:
            mesh = sharding.make_mesh(**axes)
            with jax.set_mesh(mesh):
                placed = sharding.place({'moe': {'experts': weights}}, mesh)['moe']['experts']
                many = run(partial(parallel.evaluate, form=form))(placed, x, gates)
            # The value itself is a sum of canceling terms, whose order differs.
            pairs = zip(*map(jax.tree.leaves, ((one[0][1], one[1]), (many[0][1], many[1]))),
                        strict=True)
            for a, b in pairs:
                close(b, a, f'{kind} {count} {axes} {form}')


def forward() -> None:
    """Logits and scores, with and without a capacity, and with 6 and 7 experts on 4 devices."""
    tokens = np.random.default_rng(0).integers(0, 24, (8, 12)).astype(np.int32)
    for change, axes, run in (
            ({'capacity_eval': 1.0}, {'data': 2, 'expert': 4}, moe_jax.apply),
            ({'experts': (6, 0, 7)}, {'data': 2, 'expert': 4}, moe_jax.apply),
            ({'router': ExpertChoice(capacity=1.5)}, {'data': 2, 'expert': 4}, moe_jax.apply),
            ({'router': Hash(topk=2)}, {'data': 2, 'expert': 4}, moe_jax.apply),
            ({}, {'fsdp': 2, 'expert': 2, 'model': 2}, moe_jax.score)):
        cfg = CFG.replace(**change)
        params = arrays(decoder.shapes(cfg))
        placed = sharding.place(params, sharding.make_mesh(**axes))
        close(run(cfg, placed, tokens), run(cfg, params, tokens), f'{change} {axes}')
    # Options that share a context, in rows with branches.
    asked = [(row[:8], row[8:8 + n]) for row in tokens[:5].tolist() for n in (1, 2, 4)]
    one, many = (score_continuations(CFG, at, asked) for at in (
        params, sharding.place(params, sharding.make_mesh(data=2, expert=4))))
    close(many.log_prob, one.log_prob, 'options')


def pruning() -> None:
    """The same statistics, the same kept experts, and a plan applied where the weights lie.

    11 rows, which divide over no axis, and experts whole or split, with rows or without.
    """
    cfg = CFG.replace(experts=(0, 4))
    params = arrays(decoder.shapes(cfg))
    rng = np.random.default_rng(0)
    batches = [{'tokens': rng.integers(0, 24, (11, 9)), 'mask': rng.uniform(size=(11, 9)) < 0.9}]
    mask = batches[0]['mask']
    mask[3, 5:], mask[7, 2:] = False, False
    one = moe_jax.observe(cfg, params, batches, reservoir=20, dense=True, gradients=True)
    wanted = {i: one.layer(i) for i in one.layers}
    assert list(one.layers) == [1]
    plan = prune.plan('reap', one, params, cfg, experts=3)
    small, small_cfg = prune.apply(params, cfg, plan)
    for axes, gradients in (({'data': 2, 'expert': 4}, True), ({'expert': 2, 'model': 2}, False),
                            ({'data': 8}, False)):
        placed = sharding.place(params, sharding.make_mesh(**axes))
        many = moe_jax.observe(cfg, placed, batches, reservoir=20, dense=True, gradients=gradients)
        assert many.data == one.data
        for i in one.layers:
            assert set(many.layer(i)) == {
                name for name in wanted[i] if gradients or not name.startswith('grad_')}
            for name in many.layer(i):
                value = wanted[i][name]
                size = 1e-5 * np.abs(value).max() if value.dtype.kind == 'f' else 0
                np.testing.assert_allclose(many.layer(i)[name], value, rtol=0, atol=size,
                                           err_msg=f'{name} {axes}')
        again = prune.plan('reap', many, placed, cfg, experts=3)
        for i, layer in plan.layers.items():
            assert np.array_equal(layer.mix, again.layers[i].mix)
        few, few_cfg = prune.apply(placed, cfg, again)
        assert few_cfg == small_cfg
        assert all(jax.tree.leaves(jax.tree.map(
            lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), few, small)))


def fingerprints() -> None:
    """Leaves of which only a sample is read, split over any axes, have one device's fingerprint."""
    cfg = CFG.replace(experts=(0, 4), width=64, expert_hidden=384, mlp_hidden=2048)
    params = arrays(decoder.shapes(cfg))
    assert max(leaf.size for leaf in jax.tree.leaves(params)) > WHOLE
    wanted = fingerprint(params, cfg)
    for axes in ({'data': 2, 'expert': 4}, {'expert': 2, 'model': 4}, {'fsdp': 8}):
        placed = sharding.place(params, sharding.make_mesh(**axes))
        assert fingerprint(placed, cfg) == wanted, axes
        other = jax.tree.map(lambda leaf: leaf * 1.001, placed)
        assert not same_model(fingerprint(other, cfg), wanted)


def notebook() -> None:
    """What a person does beside it: functions of their own, other meshes, layers one by one."""
    cfg = CFG.replace(experts=(4,))
    params, mesh = arrays(decoder.shapes(cfg)), sharding.make_mesh(data=2, expert=4)
    placed = sharding.place(params, mesh)
    tokens = np.random.default_rng(0).integers(0, 24, (5, 9)).astype(np.int32)
    one = moe_jax.apply(cfg, params, tokens)
    # A mesh cannot be set inside their traces: closed over, the params are seen there all the same.
    close(jax.jit(lambda t: moe_jax.apply(cfg, placed, t))(tokens), one, 'closed over')
    twice = jax.vmap(lambda t: moe_jax.apply(cfg, placed, t))(np.stack([tokens, tokens]))
    close(twice[1], one, 'vmap')
    batches = [{'tokens': tokens, 'mask': np.ones((5, 9), bool)}]
    refused(lambda: moe_jax.observe(cfg, placed, batches, mesh=sharding.make_mesh(data=2)),
            'not on the devices')
    theirs = jax.make_mesh((2, 4), ('data', 'expert'))  # explicit axes, by default
    refused(lambda: sharding.place(params, theirs), 'Auto')
    refused(lambda: moe_jax.apply(cfg, jax.device_put(params, sharding.NamedSharding(
        theirs, sharding.P())), tokens), 'Auto')
    found = [prune.plan_layerwise('frequency', at, cfg, batches, experts=3)
             for at in (params, placed)]
    assert np.array_equal(*(f.plan.layers[0].mix for f in found))
    # 3 experts on 4 devices are split by hidden units, not whole on every device.
    down = found[1].params['layer_0']['moe']['experts']['down']
    assert down.sharding.shard_shape(down.shape) == (3, 24 // 4, 16)
    small, _ = train.tsep(cfg.replace(topk=1), placed, rows_of(16, 8), train.TrainOptions(
        steps=2, batch=8, length=8, warmup=0), train.Tsep(window=1, least=2))[:2]
    down = small['layer_0']['moe']['experts']['down']
    assert down.sharding.shard_shape(down.shape) == (2, 24 // 4, 16)


def refused(run, words):
    """It says so with a ValueError of these words."""
    try:
        run()
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(f'was to be refused: {words}')


def rows_of(count, length):
    """Packed rows of random tokens."""
    return {'tokens': np.random.default_rng(0).integers(0, 24, (count, length)).astype(np.int32),
            'segments': np.ones((count, length), np.int32),
            'weights': np.ones((count, length), np.float32)}


def training() -> None:
    """14 steps on one device; the same on 8, killed after 8 and resumed on 1, 2, 4 and 8.

    With a capacity, router jitter and a balance loss, which see the tokens of all devices.
    """
    cfg = CFG.replace(experts=(4, 0), capacity_train=1.2, jitter=0.01, balance=0.01)
    options = train.TrainOptions(steps=14, batch=8, length=12, peak_lr=3e-3, warmup=2, log_every=1,
                                 checkpoint_every=4)
    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(0, 24, (40, 12)).astype(np.int32),
            'segments': np.ones((40, 12), np.int32), 'weights': np.ones((40, 12), np.float32)}
    stream = partial(data.stream, rows, 8, 0)
    params = arrays(decoder.shapes(cfg), scale=0.1)

    def dying(start):
        for k, batch in enumerate(stream(start), start):
            if k == 10:
                raise RuntimeError('died')
            yield batch

    def on(axes):
        return params if axes is None else sharding.place(params, sharding.make_mesh(**axes))

    wide, states, programs = {'data': 2, 'expert': 4}, [], train_step._cache_size()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        one, unbroken = train.fit(cfg, params, stream, options)
        try:
            train.fit(cfg, on(wide), dying, options, out=out / 'eight')
            raise AssertionError('was to be interrupted')
        except RuntimeError as error:
            assert str(error) == 'died'
        for axes in (wide, None, {'expert': 2}, {'fsdp': 2, 'model': 2}):
            run, placed = out / str(axes), on(axes)
            shutil.copytree(out / 'eight', run)
            with store.opened(run, cfg, placed, options) as opened:
                state, *_ = store.restore(opened, train.init_state(placed, options))
            assert sharding.mesh_of(state.params) == sharding.mesh_of(placed)
            states.append(jax.tree.map(np.asarray, state))
            last, found = train.fit(cfg, placed, stream, options, out=run)
            for a, b in zip(unbroken, found, strict=True):
                np.testing.assert_allclose(b['loss'], a['loss'], rtol=1e-4, err_msg=str(axes))
            for a, b in zip(*map(jax.tree.leaves, (one, last)), strict=True):
                np.testing.assert_allclose(b, a, rtol=0, atol=1e-3, err_msg=str(axes))
    # One program for each layout, and none for a state that came out of a step otherwise laid out.
    assert train_step._cache_size() == programs + 4
    for state in states:
        assert int(state.step) == 8
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, states[0], state)))


def distilling() -> None:
    """Every term of distillation, towards a teacher of more experts, on one mesh with it."""
    options = train.TrainOptions(steps=4, batch=4, length=12, peak_lr=3e-3, warmup=0, log_every=1)
    cfg = CFG.replace(experts=(4,))
    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(0, 24, (12, 12)).astype(np.int32),
            'segments': np.ones((12, 12), np.int32), 'weights': np.ones((12, 12), np.float32)}
    teacher, other = (arrays(decoder.shapes(cfg), seed, 0.1) for seed in (0, 1))
    seen = [{'tokens': rows['tokens'], 'mask': rows['segments'] > 0}]
    stats = moe_jax.observe(cfg, teacher, seen)
    plan = prune.plan('reap', stats, teacher, cfg, experts=3)
    small, small_cfg = prune.apply(teacher, cfg, plan)
    recipe = train.Distill(logits=1.0, hidden=0.5, experts='balance')
    mesh = sharding.make_mesh(data=2, expert=2)
    # An expert term that is not 0: the student's experts are of another model.
    student = {**small, 'layer_0': {**small['layer_0'], 'moe': {
        **small['layer_0']['moe'], 'experts': take(other['layer_0']['moe']['experts'], [0, 1, 2])}}}
    found = [train.distill(small_cfg, at(student), (cfg, at(teacher)), rows, options, recipe,
                           stands_for=prune.stands_for(plan))[1]
             for at in (lambda tree: tree, partial(sharding.place, mesh=mesh))]
    for a, b in zip(*found, strict=True):
        for name in ('loss', 'ce', 'kd', 'hidden', 'expert'):
            assert a[name] > 0
            np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-6, err_msg=name)


CHECKS = {f.__name__: f for f in (layer, forward, pruning, fingerprints, notebook, training,
                                    distilling)}


def main(names) -> None:
    for name in names or CHECKS:
        try:
            CHECKS[name]()
            wrong = ''
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps([name, wrong]), flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
