"""The platform that a program is traced for, and what follows from it, without such devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from moe_jax import Config
from moe_jax.base import sharding
from moe_jax.experts import evaluate, parallel
from moe_jax.kernels import target, trial
from moe_jax.layers import ffn
from moe_jax.model import decoder
from tests.moe_jax.kernels.absent import mesh_of


@pytest.fixture(autouse=True)
def _free(monkeypatch):
    monkeypatch.delenv(target.VARIABLE, raising=False)
    trial._candidates.cache_clear()
    yield
    trial._candidates.cache_clear()


def test_the_default_backend_where_no_mesh_is_in_force():
    assert target.platform() == jax.default_backend() == 'cpu'
    assert target.cores() is None
    with jax.set_mesh(sharding.make_mesh(data=1)):
        assert target.platform() == 'cpu'
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ('data',))):  # of no known device
        assert target.platform() == 'cpu'


@pytest.mark.parametrize('axes', [{'data': 1}, {'data': 2, 'expert': 4}, {'rows': 2}], ids=str)
def test_the_platform_of_the_mesh_whose_devices_are_not_there(axes):
    with jax.sharding.use_abstract_mesh(mesh_of('gpu', 78, **axes)):
        assert target.platform() == 'gpu' and target.cores() == 78
    assert target.platform() == 'cpu'


def test_inside_a_trace_and_inside_a_shard_map():
    seen, mesh = [], mesh_of('tpu', data=2)

    def inside(x):
        seen.append(target.platform())
        return x

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(jax.jit(inside), jnp.ones(2))
        assert sharding.current() == mesh
        jax.eval_shape(jax.shard_map(inside, mesh=mesh, in_specs=P('data'), out_specs=P('data')),
                       jnp.ones(2))
    jax.eval_shape(inside, jnp.ones(2))
    assert seen == ['tpu', 'tpu', 'cpu']


def test_no_trial_where_no_device_is_there(monkeypatch):
    monkeypatch.setattr(trial, 'trial', lambda *_: pytest.fail('tried'))
    for platform, names in trial.UNTRIED.items():
        if platform != 'cpu':
            with jax.sharding.use_abstract_mesh(mesh_of(platform)):
                assert trial.candidates() == names
    with jax.sharding.use_abstract_mesh(mesh_of('neuron')):
        assert trial.candidates() == ('blocks',)
        monkeypatch.setenv(target.VARIABLE, 'ragged')
        assert trial.candidates() == ('ragged',)


def layer(count=8):
    weights = {'up': (count, 16, 32), 'gate': (count, 16, 32), 'down': (count, 32, 16)}
    return ({name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in weights.items()},
            jax.ShapeDtypeStruct((64, 16), jnp.float32), jax.ShapeDtypeStruct((64, 2), jnp.int32),
            jax.ShapeDtypeStruct((64, 2), jnp.float32))


@pytest.mark.parametrize(('axes', 'run'), [
    ({'data': 1}, evaluate.dropless), ({'expert': 4}, parallel.evaluate),
    ({'expert': 2}, parallel.evaluate), ({'data': 4}, parallel.evaluate),
], ids=['one device', 'exchange', 'gather', 'local'])
def test_a_layer_asks_for_its_backend_once(axes, run, monkeypatch):
    """Forward and backward, whatever the form; of those that work on the mesh's devices."""
    asked, choose = [], trial.choose
    monkeypatch.setattr(trial, 'choose', lambda *given: asked.append(choose(*given)) or asked[-1])

    def loss(weights, x, ids, gates):
        return run(ffn.Ffn(ffn.swiglu), weights, x, ids, gates)[0].sum()

    with jax.sharding.use_abstract_mesh(mesh_of('tpu', **axes)):
        jax.eval_shape(jax.grad(loss), *layer())
    assert [choice.name for choice in asked] == ['blocks']


def test_a_model_is_traced_as_its_target_computes():
    """Attention of one sequence at a time is for one CPU; loops over experts are for CPUs."""
    cfg = Config(vocab=40, positions=16, width=16, heads=2, mlp_hidden=12, expert_hidden=12,
                 experts=(4,), capacity_eval=None)
    tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)

    def program():
        return str(jax.make_jaxpr(lambda params, tokens: decoder.forward(cfg, params, tokens)[0])(
            decoder.shapes(cfg), tokens))

    here = program()
    with jax.sharding.use_abstract_mesh(mesh_of('tpu')):
        there = program()
    assert 'name=attend' in here and 'name=attend' not in there
