"""Every backend of the grouped matmul against numpy; and the choice among them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts import evaluate, grouped
from moe_jax.kernels import blocks, gather, grouped_matmul, mosaic, table, target, trial, triton
from moe_jax.layers import ffn

D, F = 32, 48
SIZES = {
    'spread': [7, 20, 1, 33], 'empty groups': [0, 40, 0, 21], 'one takes all': [0, 0, 61, 0],
    'whole blocks': [16, 0, 32, 16], 'rows past the end': [5, 9, 0, 17], 'no rows': [0, 0, 0, 0],
}
ROWS = 64
ALIGN = jax.jit(grouped_matmul.align, static_argnums=(1, 2))
ANYWHERE = ('blocks', 'ragged', 'loop')  # what runs on CPU without an interpreter


def numpy_products(lhs, rhs, sizes, dy):
    """lhs @ rhs by group and the gradients of its product with dy, in float64."""
    lhs, rhs, dy = (np.asarray(a, np.float64) for a in (lhs, rhs, dy))
    y, dlhs, drhs = np.zeros_like(dy), np.zeros_like(lhs), np.zeros_like(rhs)
    for e, (first, size) in enumerate(zip(np.cumsum(sizes) - sizes, sizes, strict=True)):
        for row in range(first, first + size):
            y[row] = lhs[row] @ rhs[e]
            dlhs[row] = rhs[e] @ dy[row]
            drhs[e] += np.outer(lhs[row], dy[row])
    return y, dlhs, drhs


def factors(d=D, f=F, count=4, rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (rows, d), (count, d, f), (rows, f)
    return tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)


@partial(jax.jit, static_argnames='name')
def value_and_gradients(lhs, rhs, sizes, dy, *, name):
    y, pull = jax.vjp(lambda a, b: grouped_matmul.grouped_matmul(a, b, sizes, names=(name,)),
                      lhs, rhs)
    return y, *pull(dy.astype(y.dtype))


@pytest.mark.parametrize('case', SIZES)
@pytest.mark.parametrize('name', ANYWHERE)
def test_equals_numpy_in_value_and_gradients(name, case):
    lhs, rhs, dy = factors()
    sizes = np.asarray(SIZES[case], np.int32)
    found = value_and_gradients(lhs, rhs, sizes, dy, name=name)
    for one, exact in zip(found, numpy_products(lhs, rhs, sizes, dy), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('name', ANYWHERE)
def test_bfloat16_sums_in_float32_and_keeps_the_dtypes(name):
    lhs, rhs, dy = factors()
    sizes = np.asarray(SIZES['spread'], np.int32)
    lhs, dy = lhs.astype(jnp.bfloat16), dy.astype(jnp.bfloat16)
    y, dlhs, drhs = value_and_gradients(lhs, rhs, sizes, dy, name=name)
    assert (y.dtype, dlhs.dtype, drhs.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    exact = numpy_products(lhs, rhs.astype(jnp.bfloat16), sizes, dy)
    for one, wanted, limit in zip((y, dlhs, drhs), exact, (4e-3, 4e-3, 1e-5), strict=True):
        error = np.linalg.norm(np.asarray(one, np.float64) - wanted) / np.linalg.norm(wanted)
        assert error < (limit if name != 'loop' else 4e-3)


@pytest.mark.parametrize('block', [1, 4, 16])
@pytest.mark.parametrize('sizes', [
    [3, 0, 4, 1], [0, 0, 8, 0], [1, 1, 1, 1], [0, 0, 0, 0], [2, 2, 2, 2]], ids=str)
def test_align_gives_each_row_a_place_of_its_own_expert(sizes, block):
    rows = 8
    to = ALIGN(jnp.asarray(sizes, jnp.int32), rows, block)
    total = grouped_matmul.aligned_rows(rows, len(sizes), block)
    assert to.source.shape == (total,) and total % block == 0 and int(to.sizes.sum()) <= total
    owner = np.repeat(np.arange(len(sizes)), np.asarray(to.sizes))
    wanted = np.repeat(np.arange(len(sizes)), sizes)
    for row, place in enumerate(np.asarray(to.place)):
        if row < len(wanted):
            assert owner[place] == wanted[row] and to.source[place] == row
        else:
            assert place == total
    assert sorted(int(s) for s in to.source if s < rows) == list(range(len(wanted)))


def test_aligned_rows_is_the_least_that_is_always_enough():
    for rows, count, block in ((5, 3, 4), (4, 9, 8), (1, 1, 16), (12, 2, 4)):
        worst = max(sum(-(-s // block) * block for s in sizes)
                    for sizes in itertools.product(range(rows + 1), repeat=min(count, rows))
                    if sum(sizes) == rows) if rows <= 5 else None
        found = grouped_matmul.aligned_rows(rows, count, block)
        assert worst is None or found == worst
        assert found % block == 0


def test_triton_kernels_by_interpreter():
    lhs, rhs, dy = factors()
    sizes = np.asarray(SIZES['whole blocks'], np.int32)

    @jax.jit
    def run(lhs, rhs, dy, sizes):
        here = {'interpret': True}
        return (triton.matmul(lhs, rhs, sizes, 16, transposed=False, **here),
                triton.matmul(dy, rhs, sizes, 16, transposed=True, **here),
                triton.outer(lhs, dy, sizes, 16, jnp.float32, **here))

    exact = numpy_products(lhs, rhs, sizes, dy)
    for one, wanted in zip(run(lhs, rhs, dy, sizes), exact, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-4)


def test_rows_copied_by_a_kernel():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, 48)), jnp.float32)
    for index in ([0, 9, 10, 3, 500, 2**31 - 1, 1, 1], [9, 10, 2]):
        index = jnp.asarray(index, jnp.int32)
        np.testing.assert_array_equal(
            jax.jit(partial(triton.take, interpret=True))(x, index), gather.take(x, index))


def test_mosaic_kernel_by_interpreter(monkeypatch):
    """Of the three products the one whose factors both lie as they are: all that it interprets."""
    interpreting = pytest.importorskip('jax._src.pallas.mosaic_gpu.interpret.params')
    monkeypatch.setattr(mosaic, 'MULTIPROCESSORS', 1)
    lhs, rhs, dy = (a.astype(jnp.bfloat16) for a in factors(64, 128, 2, 128))
    sizes = np.asarray([0, 64], np.int32)
    with interpreting.force_gpu_interpret_mode():
        y = mosaic.matmul(lhs, rhs, jnp.asarray(sizes), 64, transposed=False)
    exact, _, _ = numpy_products(lhs, rhs, sizes, dy)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=1e-2, atol=1e-2)


def test_kernels_are_lowered_for_a_gpu_without_one():
    lhs, rhs, dy = (jax.ShapeDtypeStruct(s, jnp.bfloat16)
                    for s in ((512, 128), (3, 128, 256), (512, 256)))
    sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
    for name in ('mosaic', 'triton'):
        tried = table.backend(name)
        for block in (64, 128):
            assert tried.fits(block, 128, 256, jnp.bfloat16)

            def run(lhs, rhs, dy, sizes, tried=tried, block=block):
                return (tried.matmul(lhs, rhs, sizes, block, transposed=False),
                        tried.matmul(dy, rhs, sizes, block, transposed=True),
                        tried.outer(lhs, dy, sizes, block, jnp.float32))

            traced = jax.jit(run).trace(lhs, rhs, dy, sizes)
            try:
                lowered = traced.lower(lowering_platforms=('cuda',))
            except RuntimeError as reason:  # newer jax asks which card it is for
                pytest.skip(str(reason))
            assert lowered.as_text().count('stablehlo.custom_call') >= 3


@pytest.fixture
def forced(monkeypatch):
    """Set MOE_JAX_GROUPED for one test."""
    def force(name):
        monkeypatch.setenv(target.VARIABLE, name)

    return force


def test_the_loop_on_cpu_where_nothing_was_compiled(monkeypatch, tmp_path):
    monkeypatch.delenv(target.VARIABLE, raising=False)
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path))
    trial._candidates.cache_clear()
    assert trial.candidates() == ('loop',)
    weights, x, _, _ = layer('spread')
    choice = grouped.choose(ffn.Ffn(ffn.gelu), weights, len(x), x.dtype)
    assert choice.name == 'loop' and not grouped.at_once(choice)
    trial._candidates.cache_clear()


def test_a_backend_can_be_forced_and_a_wrong_one_is_an_error(forced):
    forced('blocks')
    assert trial.candidates() == ('blocks',)
    forced('blokcs')
    with pytest.raises(ValueError, match=r'MOE_JAX_GROUPED=blokcs: .* use one of mosaic, triton'):
        trial.candidates()


def test_a_forced_backend_that_does_not_fit_says_so(forced):
    forced('mosaic')
    lhs, rhs, _ = factors()
    with pytest.raises(ValueError, match=r'\[64, 32\] @ \[4, 32, 48\] in float32 does not fit '
                                         r'mosaic; MOE_JAX_GROUPED=blocks takes any'):
        grouped_matmul.grouped_matmul(lhs, rhs, jnp.asarray([64, 0, 0, 0], jnp.int32))


def test_trial_finds_what_is_right_and_what_is_dense():
    error, flops = trial.trial(table.backend('blocks'))
    assert error < 5e-3 and flops < trial.DENSE
    error, flops = trial.trial(table.backend('ragged'))
    assert error < 5e-3 and flops > 4  # on CPU, with 8 experts
    wrong = table.backend('blocks')
    wrong = wrong._replace(outer=lambda *args: 1.1 * blocks.outer(*args))
    assert trial.trial(wrong)[0] > trial.TOLERANCE['bfloat16']
    assert not trial._works('mosaic', jax.devices('cpu')[0])  # no such card


def test_the_choice_names_the_first_backend_that_fits_its_block_and_how_rows_are_copied():
    few, many = (trial.choose(rows, 4, 128, 256, jnp.bfloat16, ('mosaic', 'triton', 'blocks'))
                 for rows in (100, 4096))
    assert few == ('mosaic', 64, triton.take) and many == ('mosaic', 128, triton.take)
    single = trial.choose(4096, 4, 128, 256, jnp.float32, ('mosaic', 'triton', 'blocks'))
    assert single == ('triton', 128, triton.take)
    odd = trial.choose(4096, 4, 130, 256, jnp.bfloat16, ('mosaic', 'triton', 'blocks'))
    assert odd == ('blocks', 128, gather.take)
    assert grouped.choose(lambda w, x: x, {}, 3, jnp.float32) == grouped.LOOP


def layer(kind, count=4, seed=0):
    """(weights, x [29, D], ids [29, 2], gates), an id of `count` marking a place not used."""
    rng = np.random.default_rng(seed)
    cfg_shapes = {'gate': (D, F), 'up': (D, F), 'down': (F, D),
                  'gate_bias': (F,), 'up_bias': (F,), 'down_bias': (D,)}
    weights = {k: jnp.asarray(0.3 * rng.normal(size=(count, *s)), jnp.float32)
               for k, s in cfg_shapes.items()}
    ids = np.argsort(rng.random((29, count)), axis=1)[:, :2]
    if kind == 'padded':
        ids = np.where(rng.random((29, 1)) < 0.4, count, ids)
    if kind == 'two of four':
        ids = np.tile([3, 1], (29, 1))
    return (weights, jnp.asarray(rng.normal(size=(29, D)), jnp.float32),
            jnp.asarray(ids, jnp.int32), jnp.asarray(rng.random((29, 2)) + 0.1, jnp.float32))


def loss(form, function, weights, x, gates, ids):
    y, kept = form(function, weights, x, ids, gates)
    direction = jax.random.normal(jax.random.key(0), y.shape)
    return (y * direction).sum(), (y, kept)


@pytest.mark.parametrize(('name', 'function'), [
    ('blocks', ffn.Ffn(ffn.gelu)), ('ragged', ffn.Ffn(ffn.swiglu)),
    ('blocks', ffn.Ffn(partial(ffn.swiglu_clamped, limit=7.0, alpha=1.7))),
], ids=['gelu', 'swiglu', 'clamped'])
def test_a_layer_at_once_equals_every_expert_on_every_token(name, function, forced):
    forced(name)
    run, dense = (jax.jit(jax.grad(partial(loss, form, function), argnums=(0, 1, 2), has_aux=True))
                  for form in (evaluate.dropless, evaluate.dense))
    for kind in ('spread', 'padded', 'two of four'):
        weights, x, ids, gates = layer(kind)
        found, (y, kept) = run(weights, x, gates, ids)
        exact, (y0, kept0) = dense(weights, x, gates, ids)
        np.testing.assert_allclose(y, y0, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(kept, kept0)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), found, exact)


def test_rows_that_are_already_sorted(forced):
    """`grouped_apply` and `grouped_gradients` as the exchange calls them, by either form."""
    weights, x, _, _ = layer('spread')
    sizes, function = jnp.asarray([3, 0, 17, 4], jnp.int32), ffn.Ffn(ffn.swiglu)
    dy = jax.random.normal(jax.random.key(1), x.shape)
    found = {}
    for name in ('loop', 'blocks'):
        forced(name)
        choice = grouped.choose(function, weights, len(x), x.dtype)

        @partial(jax.jit, static_argnames='choice')
        def run(weights, x, sizes, dy, choice):
            return (grouped.grouped_apply(function, choice, weights, x, sizes),
                    *grouped.grouped_gradients(function, choice, weights, x, sizes, dy))

        found[name] = run(weights, x, sizes, dy, choice)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
                 found['blocks'], found['loop'])
