"""Checks on 8 devices that this machine stands in for; test_on_devices.py runs each by name.

    python tests/mesh/on_devices.py layer
"""

import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ('--xla_force_host_platform_device_count=8 '
                           '--xla_backend_optimization_level=0')

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
from moe_jax import Config, expert_parallel, experts, ffn, model, sharding
from moe_jax.data import batches as data
from train import store
from train.step import train_step

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
    for kind, count, topk, skew in (('gelu', 8, 2, 0.0), ('swiglu', 8, 1, 9.0), ('gelu', 6, 2, 1.0),
                                    ('swiglu', 7, 3, 0.0), ('gelu', 8, 6, 1.0)):
        cfg = CFG.replace(ffn=kind, experts=(count,), topk=topk)
        weights = arrays(model.shapes(cfg)['layer_0']['moe']['experts'])
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
        for axes in ({'data': 2, 'expert': 4}, {'fsdp': 2, 'expert': 2, 'model': 2}):
            for form in (None, 'gather') if topk == 2 and count == 8 else (None,):
                mesh = sharding.make_mesh(**axes)
                with jax.set_mesh(mesh):
                    placed = sharding.place({'moe': {'experts': weights}}, mesh)['moe']['experts']
                    many = run(partial(expert_parallel.evaluate, form=form))(placed, x, gates)
                # The value itself is a sum of cancelling terms, whose order differs.
                pairs = zip(*map(jax.tree.leaves, ((one[0][1], one[1]), (many[0][1], many[1]))),
                            strict=True)
                for a, b in pairs:
                    close(b, a, f'{kind} {count} {axes} {form}')


def forward() -> None:
    """Logits and scores, with and without a capacity, and with 6 and 7 experts on 4 devices."""
    tokens = np.random.default_rng(0).integers(0, 24, (8, 12)).astype(np.int32)
    for change in ({}, {'capacity_eval': 1.0}, {'experts': (6, 0, 7)}):
        cfg = CFG.replace(**change)
        params = arrays(model.shapes(cfg))
        for axes in ({'data': 2, 'expert': 4}, {'fsdp': 2, 'expert': 2, 'model': 2}):
            placed = sharding.place(params, sharding.make_mesh(**axes))
            for run in (moe_jax.apply, moe_jax.score):
                close(run(cfg, placed, tokens), run(cfg, params, tokens), f'{change} {axes}')


def pruning() -> None:
    """The same statistics, the same kept experts, and a plan applied where the weights lie."""
    params = arrays(model.shapes(CFG))
    rng = np.random.default_rng(0)
    batches = [{'tokens': rng.integers(0, 24, (11, 9)), 'mask': rng.uniform(size=(11, 9)) < 0.9}]
    one = moe_jax.observe(CFG, params, batches, gradients=True)
    plan = prune.plan('reap', one, params, CFG, experts=3)
    small, small_cfg = prune.apply(params, CFG, plan)
    for axes in ({'data': 8}, {'data': 2, 'expert': 4}, {'expert': 2, 'model': 2}):
        placed = sharding.place(params, sharding.make_mesh(**axes))
        many = moe_jax.observe(CFG, placed, batches, gradients=True)
        assert many.data == one.data
        for i in one.layers:
            for name, value in one.layer(i).items():
                size = 1e-5 * np.abs(value).max() if value.dtype.kind == 'f' else 0
                np.testing.assert_allclose(many.layer(i)[name], value, rtol=0, atol=size,
                                           err_msg=f'{name} {axes}')
        again = prune.plan('reap', many, placed, CFG, experts=3)
        for i, layer in plan.layers.items():
            assert np.array_equal(layer.mix, again.layers[i].mix)
        few, few_cfg = prune.apply(placed, CFG, again)
        assert few_cfg == small_cfg
        assert all(jax.tree.leaves(jax.tree.map(
            lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), few, small)))


def training() -> None:
    """20 steps on one device; the same on 8, killed after 12 and resumed on 1, 2, 4 and 8.

    With a capacity, router jitter and a balance loss, which see the tokens of all devices.
    """
    cfg = CFG.replace(experts=(4, 0), capacity_train=1.2, jitter=0.01, balance=0.01)
    options = train.TrainOptions(steps=20, batch=8, length=12, peak_lr=3e-3, warmup=2, log_every=1,
                                 checkpoint_every=6)
    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(0, 24, (40, 12)).astype(np.int32),
            'segments': np.ones((40, 12), np.int32), 'weights': np.ones((40, 12), np.float32)}
    stream = partial(data.stream, rows, 8, 0)
    params = arrays(model.shapes(cfg), scale=0.1)

    def dying(start):
        for k, batch in enumerate(stream(start), start):
            if k == 14:
                raise RuntimeError('died')
            yield batch

    def on(axes):
        return params if axes is None else sharding.place(params, sharding.make_mesh(**axes))

    wide, states = {'data': 2, 'expert': 4}, []
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
    assert train_step._cache_size() == 4
    for state in states:
        assert int(state.step) == 12
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, states[0], state)))


def distilling() -> None:
    """Every term of distillation, towards a teacher of more experts and one of as many."""
    options = train.TrainOptions(steps=4, batch=4, length=12, peak_lr=3e-3, warmup=0, log_every=1)
    cfg = CFG.replace(experts=(4, 0))
    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(0, 24, (12, 12)).astype(np.int32),
            'segments': np.ones((12, 12), np.int32), 'weights': np.ones((12, 12), np.float32)}
    teacher, other = (arrays(model.shapes(cfg), seed, 0.1) for seed in (0, 1))
    seen = [{'tokens': rows['tokens'], 'mask': rows['segments'] > 0}]
    stats = moe_jax.observe(cfg, teacher, seen)
    plan = prune.plan('reap', stats, teacher, cfg, experts=3)
    small, small_cfg = prune.apply(teacher, cfg, plan)
    recipe = train.Distill(logits=1.0, hidden=0.5, experts='balance')
    mesh = sharding.make_mesh(data=2, expert=2)
    for own, ours, mixes in ((cfg, other, None), (small_cfg, small, prune.stands_for(plan))):
        found = [train.distill(own, at(ours), (cfg, at(teacher)), rows, options, recipe,
                               stands_for=mixes)[1]
                 for at in (lambda tree: tree, partial(sharding.place, mesh=mesh))]
        for a, b in zip(*found, strict=True):
            for name in ('loss', 'ce', 'kd', 'hidden', 'expert'):
                np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-6, err_msg=name)


CHECKS = {f.__name__: f for f in (layer, forward, pruning, training, distilling)}

if __name__ == '__main__':
    CHECKS[sys.argv[1]]()
    print('same')
