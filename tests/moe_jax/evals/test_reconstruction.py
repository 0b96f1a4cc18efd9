"""Layer errors of a smaller model: a numpy recomputation from recorded streams, and identities."""

import numpy as np
import pytest

import moe_jax
from moe_jax.base.tree import at, take
from moe_jax.config import Skip
from moe_jax.model.network import MoeLM


@pytest.fixture
def smaller(cfg, params):
    """The model without the experts 1 and 3 of its last layer."""
    small = at(params, 'layer_2/moe', lambda moe: take(moe, [0, 2]))
    return cfg.replace(experts=(4, 0, 2)), small


def batch(rows, group='all'):
    return {'tokens': rows[0], 'segments': rows[1], 'group': group}


def after(cfg, params, rows, layers):
    """The stream behind the first layers, as the model without its last ones has it."""
    few = cfg.replace(experts=cfg.experts[:layers])
    kept = {k: v for k, v in params.items()
            if not k.startswith('layer_') or int(k[6:]) < layers}
    # The final norm is undone by one that does nothing but scale: read the stream before it.
    _, state = MoeLM(few).apply(
        {'params': kept}, *rows, capture_intermediates=lambda m, _: m.name == f'layer_{layers - 1}',
        mutable=['intermediates', 'aux'])
    return np.asarray(state['intermediates'][f'layer_{layers - 1}']['__call__'][0][0], np.float64)


def test_stream_and_local_errors_equal_numpy(cfg, params, smaller, rows):
    found = moe_jax.reconstruction(cfg, params, *smaller, [batch(rows)])['all']
    live = rows[1] > 0
    x, y, before = after(cfg, params, rows, 3), after(*smaller, rows, 3), after(cfg, params, rows,
                                                                              2)
    gap, scale = ((v[live] ** 2).sum() for v in (y - x, x))
    assert found[2].stream == pytest.approx(gap / scale, rel=1e-4)
    # Nothing changed before the last layer, so its own error is on the original's stream.
    assert found[2].local == pytest.approx(gap / ((x - before)[live] ** 2).sum(), rel=1e-4)
    assert found[0] == found[1] == (0, 0)


def test_a_change_in_the_first_layer_runs_on_but_is_local_to_it(cfg, params, rows):
    small = at(params, 'layer_0/moe', lambda moe: take(moe, [0, 2]))
    found = moe_jax.reconstruction(cfg, params, cfg.replace(experts=(2, 0, 4)), small,
                                   [batch(rows)])['all']
    assert found[0].local > 0 and found[1].local == found[2].local == 0
    assert min(found[i].stream for i in range(3)) > 0


def test_padding_batches_and_groups_do_not_matter(cfg, params, smaller, rows):
    tokens, segments = rows
    other = np.where(segments > 0, tokens, 3)
    wanted = moe_jax.reconstruction(cfg, params, *smaller, [batch(rows)])['all']
    found = moe_jax.reconstruction(cfg, params, *smaller, [
        batch((other[:1], segments[:1]), 'a'), batch((other[1:], segments[1:]), 'a'),
        batch((other, 0 * segments), 'b')])
    assert list(found) == ['a']
    np.testing.assert_allclose(found['a'][2], wanted[2], rtol=1e-5)


def test_skipping_counts_as_a_change(cfg, params, rows):
    skip = cfg.replace(skip=Skip(kind='ratio', thresholds=((1.0,), (), (0.0,))))
    found = moe_jax.reconstruction(cfg, params, skip, params, [batch(rows)])['all']
    assert found[0].local > 0 and found[2].local == 0
    same = moe_jax.reconstruction(skip, params, skip, params, [batch(rows)])['all']
    assert all(error == (0, 0) for error in same.values())


def test_other_models_and_no_tokens_are_refused(cfg, params, draw, rows):
    deep = cfg.replace(experts=(4, 0, 4, 0))
    with pytest.raises(ValueError, match='3 and 4 layers'):
        moe_jax.reconstruction(cfg, params, deep, draw(deep), [batch(rows)])
    with pytest.raises(ValueError, match='no valid token'):
        moe_jax.reconstruction(cfg, params, cfg, params, [batch((rows[0], 0 * rows[1]))])
    broken = at(params, 'layer_0/norm_ffn/scale', lambda leaf: leaf * np.nan)
    for pair in ((params, broken), (broken, params)):
        with pytest.raises(ValueError, match='not finite'):
            moe_jax.reconstruction(cfg, pair[0], cfg, pair[1], [batch(rows)])
