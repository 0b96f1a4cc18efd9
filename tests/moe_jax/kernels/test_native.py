"""The native kernels, and experts and their statistics by them; needs a C++ compiler."""

import logging
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.calibration import expert_sums
from moe_jax.experts import grouped, grouped_chunks
from moe_jax.kernels import build, native, target, trial
from moe_jax.kernels import outer as outer_product
from moe_jax.kernels.linear import linear
from moe_jax.layers import ffn
from moe_jax.routing.routing import Routing
from tests.moe_jax.kernels import native_products
from tests.moe_jax.kernels.absent import mesh_of
from tests.moe_jax.kernels.grouped_layer import ROWS, SIZES, D, F, both, by_group, layer

PROGRAM = Path(native_products.__file__)
WITHOUT = ['-mno-avx512f', '-mno-avx']  # what older processors lack


@pytest.fixture(scope='module', autouse=True)
def _built(tmp_path_factory):
    """Compiled and tried in a cache of its own, and used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.mktemp('cache')))
        patch.delenv(target.VARIABLE, raising=False)
        try:
            build.compiler()
        except FileNotFoundError as reason:
            pytest.skip(str(reason))
        build.build()
        trial.try_native()
        yield


@pytest.fixture(autouse=True)
def _chosen_anew():
    forget()
    yield
    forget()


def forget():
    native.passed.cache_clear()
    trial._candidates.cache_clear()


def by_choice(function, weights, x, sizes):
    choice = grouped.choose(function, weights, len(x), x.dtype)
    return grouped.grouped_apply(function, choice, weights, x, sizes)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('case', native_products.CASES, ids=str)
def test_products_equal_numpy(case, dtype):
    native_products.check(case, dtype)


@pytest.mark.parametrize('case', [((1, 4), 5, 3, 5), ((7, 0, 20), 30, 33, 1)], ids=str)
def test_float32_of_odd_widths(case):
    native_products.check(case, 'float32')
    assert native.fits(1, 3, 5, jnp.dtype('float32'))
    assert not native.fits(1, 3, 4, jnp.dtype('bfloat16'))
    assert not native.fits(1, 4, 4, jnp.dtype('float16'))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rows_of_other_groups_and_of_none_are_not_touched(dtype):
    """Not a number in one group or past the last stays there; sums of an odd number of rows too."""
    sizes = (3, 5, 4)
    lhs, rhs, dy, counts = native_products.inputs(sizes, 15, 6, 10, dtype)
    bad = jnp.asarray([*range(3, 8), *range(12, 15)])
    lhs, dy = lhs.at[bad].set(jnp.nan), dy.at[bad].set(jnp.nan)
    y, dx, dw = native_products.products(lhs, rhs, dy, counts)
    for found in (y, dx):
        good = np.asarray(np.isfinite(found.astype(jnp.float32)).all(axis=1))
        assert good.tolist() == [True] * 3 + [False] * 5 + [True] * 7
        assert not np.asarray(found[12:], np.float32).any()
    assert np.isfinite(np.asarray(dw, np.float32)).all(axis=(1, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize('kind', ['gelu', 'swiglu_clamped'])
@pytest.mark.parametrize('rows', [ROWS, 300, 64])
def test_experts_some_rows_at_a_time_equal_one_product_per_group(kind, rows, monkeypatch):
    monkeypatch.setattr(grouped_chunks, 'LEAST', 1)
    monkeypatch.setattr(grouped_chunks, 'CHUNK', rows * F)
    function, weights, x, dy = layer(kind)
    sizes = jnp.asarray(SIZES, jnp.int32)
    exact = jax.jit(partial(both, partial(by_group, function)))(weights, x, dy)
    found = jax.jit(partial(both, lambda w, x: by_choice(function, w, x, sizes)))(
        weights, x, dy)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, exact)


@pytest.mark.parametrize('rows', [ROWS, 100])
@pytest.mark.parametrize('weights_dtype', ['float32', 'bfloat16'])
def test_halves_are_summed_in_float32(rows, weights_dtype, monkeypatch):
    monkeypatch.setattr(grouped_chunks, 'LEAST', 1)
    monkeypatch.setattr(grouped_chunks, 'CHUNK', rows * F)
    function, weights, x, dy = layer('swiglu', jnp.bfloat16)
    exact = jax.jit(partial(both, partial(by_group, function)))(
        *jax.tree.map(lambda a: a.astype(jnp.float32), (weights, x, dy)))
    weights = jax.tree.map(lambda w: w.astype(weights_dtype), weights)
    y, dweights, dx = jax.jit(partial(both, lambda w, x: grouped_chunks.apply(
        function, w, x, jnp.asarray(SIZES, jnp.int32))))(weights, x, dy)
    assert y.dtype == dx.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(dweights)} == {jnp.dtype(weights_dtype)}
    for a, b in zip(jax.tree.leaves((y, dweights, dx)), jax.tree.leaves(exact), strict=True):
        assert np.linalg.norm(np.asarray(a, np.float64) - b) < 1e-2 * np.linalg.norm(b)


def test_sums_over_many_chunks_are_not_rounded_on_the_way(monkeypatch):
    """300 equal rows of a bfloat16 model, some in each of 100 chunks: their sum is exact."""
    monkeypatch.setattr(grouped_chunks, 'LEAST', 1)
    monkeypatch.setattr(grouped_chunks, 'CHUNK', 3 * F)
    function, weights, _, _ = layer('swiglu', jnp.bfloat16)
    x, dy = (jnp.ones((300, D), jnp.bfloat16) for _ in range(2))
    sizes = jnp.zeros((len(SIZES),), jnp.int32).at[1].set(300)
    _, pull = jax.vjp(lambda w: grouped_chunks.apply(function, w, x, sizes), weights)
    np.testing.assert_array_equal(jax.jit(pull)(dy)[0]['down_bias'][1], 300.0)


def test_what_is_kept_is_each_product_once():
    function, weights, x, _ = layer('swiglu')
    saved = jax.eval_shape(lambda w, x: jax.vjp(lambda w, x: grouped_chunks.apply(
        function, w, x, jnp.asarray(SIZES, jnp.int32)), w, x)[1], weights, x)
    assert sum(leaf.shape == (ROWS, F) for leaf in jax.tree.leaves(saved)) == 2


def test_gradients_as_an_exchange_asks_for_them(monkeypatch):
    function, weights, x, dy = layer('swiglu')
    sizes, found = jnp.asarray(SIZES, jnp.int32), {}
    for name in ('loop', 'native'):
        monkeypatch.setenv(target.VARIABLE, name)
        choice = grouped.choose(function, weights, len(x), x.dtype)
        found[name] = jax.jit(lambda w, x, dy, choice=choice: grouped.grouped_gradients(
            function, choice, w, x, sizes, dy))(weights, x, dy)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
                 found['native'], found['loop'])


@pytest.mark.parametrize('rows', [100, 4])
def test_statistics_equal_those_of_the_loop(rows, monkeypatch):
    """With tokens that do not count, an expert without tokens, and second moments."""
    monkeypatch.setattr(grouped_chunks, 'LEAST', 1)
    monkeypatch.setattr(grouped_chunks, 'CHUNK', rows * expert_sums.BESIDE * F)
    rng, count = np.random.default_rng(0), 6
    weights = {name: jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)
               for name, shape in {'gate': (D, F), 'up': (D, F), 'down': (F, D)}.items()}
    x = jnp.asarray(rng.normal(size=(29, D)), jnp.float32)
    ids = np.argsort(rng.random((29, count - 1)), axis=1)[:, :2].astype(np.int32)
    nothing = jnp.zeros((29, count))
    routing = Routing(jnp.asarray(ids), jnp.asarray(rng.random((29, 2)), jnp.float32), nothing,
                      nothing)
    used = jnp.asarray(rng.random((29, 2)) < 0.8)
    found = {}
    for name in ('loop', 'native'):
        monkeypatch.setenv(target.VARIABLE, name)
        found[name] = jax.jit(lambda *a: expert_sums.evaluate(
            ffn.Ffn(ffn.swiglu), *a, tuple(range(count)), grams=True))(weights, x, routing, used)
    assert found['native'][1].keys() == found['loop'][1].keys()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5),
                 found['native'], found['loop'])


def test_they_are_used_where_they_were_built(monkeypatch, tmp_path, caplog):
    assert trial.candidates() == ('native', 'loop') and native.usable()
    function, weights, x, _ = layer('gelu')
    choice = grouped.choose(function, weights, len(x), x.dtype)
    assert choice.name == 'native' and not grouped.at_once(choice)
    assert grouped.choose(function, weights, len(x), jnp.float16).name == 'loop'
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'new'))
    forget()
    with caplog.at_level(logging.INFO, 'moe_jax'):
        assert trial.candidates() == ('loop',)
    assert '`moe-jax build-kernels` makes it' in caplog.text and not (tmp_path / 'new').exists()
    assert not native.usable()


def test_what_passed_no_trial_is_not_used(monkeypatch, tmp_path, caplog):
    """Neither a library without a trial, nor another than the one that passed, nor a wrong one."""
    built = build.built()
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path))
    path = build.place()
    path.parent.mkdir()
    path.write_bytes(built.read_bytes())
    with caplog.at_level(logging.INFO, 'moe_jax'):
        assert trial.candidates() == ('loop',) and not native.usable()
    assert 'has passed no trial: `moe-jax build-kernels` tries it' in caplog.text
    monkeypatch.setattr(trial, 'trial', lambda *_: (0.5, 0.0))
    assert trial.try_native() == {'bfloat16': 0.5, 'float32': 0.5}
    forget()
    assert trial.candidates() == ('loop',)
    monkeypatch.setattr(trial, 'trial', lambda *_: (1e-6, 0.0))
    trial.try_native()
    forget()
    assert trial.candidates() == ('native', 'loop') and native.usable()
    path.write_bytes(built.read_bytes() + b'another')
    forget()
    assert trial.candidates() == ('loop',) and not native.usable()


def test_only_programs_for_cpu_use_them(monkeypatch):
    assert native.usable()
    with jax.sharding.use_abstract_mesh(mesh_of('tpu')):
        assert not native.usable() and trial.candidates() == ('blocks',)
    for name, usable in ('loop', False), ('native', True):
        monkeypatch.setenv(target.VARIABLE, name)
        assert native.usable() == usable


def test_no_compiler_and_one_that_refuses(monkeypatch, tmp_path):
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path))
    monkeypatch.setenv('CXX', f'{sys.executable} -c 1/0')
    with pytest.raises(RuntimeError, match=r'the compiler refused:\n.*(\n.*)*ZeroDivisionError'):
        build.build()
    assert not any((tmp_path / 'native').iterdir())
    monkeypatch.delenv('CXX')
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'none of c\+\+, g\+\+, clang\+\+ is installed'):
        build.build()


@pytest.mark.full
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='names instructions of x86-64')
@pytest.mark.parametrize('without', WITHOUT)
def test_processors_that_can_less(without, tmp_path):
    environment = os.environ | {
        'MOE_JAX_CACHE': str(tmp_path), 'CXX': f'{build.compiler()[0]} {without}'}
    run = 'from moe_jax.kernels import build; build.build(); import runpy, sys; ' \
          f'runpy.run_path({str(PROGRAM)!r}, run_name="__main__")'
    done = subprocess.run([sys.executable, '-c', run], env=environment, capture_output=True,
                          text=True, timeout=300, cwd=PROGRAM.parents[3])
    assert done.stdout == 'right\n', done.stderr


def test_kernels_of_linear_layers_get_their_gradients_by_it(monkeypatch):
    """In bfloat16 alone, and where no mesh is in force."""
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((50, 6), (50, 10)))
    exact = np.asarray(a, np.float64).T @ np.asarray(b, np.float64)
    asked, outer = [], native.outer
    monkeypatch.setattr(native, 'outer',
                        lambda *given: asked.append(given) or outer(*given))
    found = jax.jit(outer_product.summed_outer)(a, b)
    assert found.dtype == jnp.float32 and len(asked) == 1
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((5, 10, 6), (6, 10)))
    grad = jax.grad(lambda kernel: linear(x, kernel).astype(jnp.float32).sum())(kernel)
    wanted = np.asarray(x, np.float64).sum((0, 1))[:, None] * np.ones((1, 10))
    np.testing.assert_allclose(np.asarray(grad, np.float64), wanted, rtol=1e-2, atol=1e-2)
    assert len(asked) == 2
    for pair, count in ((a[:, :5], b), 3), ((a.astype(jnp.float32), b.astype(jnp.float32)), 3):
        wanted = np.asarray(pair[0], np.float64).T @ np.asarray(pair[1], np.float64)
        np.testing.assert_allclose(jax.jit(outer_product.summed_outer)(*pair), wanted, rtol=1e-5,
                                   atol=1e-5)
        assert len(asked) == count
