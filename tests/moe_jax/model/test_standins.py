"""Router rows that stand for constants, rows that are never chosen, and layers with few rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.base.tree import at, take
from moe_jax.calibration.observe import observe
from moe_jax.config import CLOSED, Config
from moe_jax.routing import routing
from moe_jax.routing.gates import GATE

LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(13, 5)), jnp.float32)


def test_a_closed_row_keeps_its_share_of_the_softmax():
    all_rows = routing.choose(LOGITS, topk=5, gate='softmax_topk')
    found = routing.choose(LOGITS, topk=2, gate='softmax_topk',
                           closed=(False, True, False, True, False))
    for n in range(13):
        left = [r for r in np.asarray(all_rows.ids)[n] if r not in (1, 3)][:2]
        assert found.ids[n].tolist() == left
        np.testing.assert_array_equal(found.gates[n], all_rows.probs[n, np.array(left)])


@pytest.mark.parametrize('sign', [1, -1])
def test_a_closed_row_is_never_chosen_whatever_its_logit(sign):
    logits = LOGITS.at[:, 2].set(sign * 80.0)
    for gate in GATE:
        found = routing.choose(logits, topk=4, gate=gate, closed=(0, 0, 1, 0, 0))
        assert 2 not in np.asarray(found.ids), gate


def test_constants_add_their_gate_times_their_vector(cfg, params, rows, run):
    """Equal to an expert with zero weights and that output bias, and it costs no evaluation."""
    vector = np.random.default_rng(1).normal(size=cfg.width).astype(np.float32)

    def constant_expert(e):
        e = {name: leaf.at[1].set(0) for name, leaf in e.items()}
        return e | {'down_bias': e['down_bias'].at[1].set(vector)}

    full = at(params, 'layer_0/moe/experts', constant_expert)
    wanted, out = run(cfg, full, *rows)
    less = at(params, 'layer_0/moe/experts', lambda e: take(e, [0, 2, 3]))
    less = at(less, 'layer_0/moe', lambda moe: {**moe, 'constants': jnp.asarray(vector)[None]})
    small = cfg.replace(experts=(3, 0, 4), aliases=((0, 3, 1, 2), None, None), constants=(1, 0, 0))
    assert small.fit(less) == small
    assert Config.from_json(small.to_json()) == small
    found, out_small = run(small, less, *rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert float(out_small['active'][0]) < float(out['active'][0]) == cfg.topk
    assert float(out_small['dropped'][0]) == 0
    seen = observe(small, less, [{'tokens': rows[0], 'segments': rows[1]}]).layer(0)
    assert seen['count'][1] > 0 == seen['moments'][0, 0, 1] and not seen['dropped'].any()


def test_clamped_layers_use_all_they_have(cfg, params, rows, run):
    """A layer of one expert under topk=2 equals the same layer under topk=1."""
    one = at(params, 'layer_0/moe', lambda moe: take(moe, [2]))
    one = at(one, 'layer_2/moe', lambda moe: take(moe, [1]))
    with pytest.raises(ValueError, match='clamp=True'):
        cfg.replace(experts=(1, 0, 1))
    clamped = cfg.replace(experts=(1, 0, 1), clamp=True)
    assert clamped.topk_in(0) == 1
    found = run(clamped, one, *rows)[0]
    np.testing.assert_array_equal(found, run(cfg.replace(experts=(1, 0, 1), topk=1), one, *rows)[0])


@pytest.mark.parametrize(('fields', 'message'), [
    ({'constants': (1, 0, 0)}, r'constants\[0\]=1: needs aliases\[0\]'),
    ({'constants': (1, 0)}, 'constants has 2 entries for 3 layers'),
    ({'aliases': ((0, 1, 2, 3, 4), None, None)}, r'aliases\[0\] must use each of the 4 experts'),
    ({'aliases': ((0, 1, 2, 3, -2), None, None)}, r'aliases\[0\]\[4\]=-2'),
    ({'aliases': ((0, 1, 2, 3, CLOSED), None, None), 'topk': 5}, 'at least topk=5'),
])
def test_stand_ins_that_make_no_model_are_refused(cfg, fields, message):
    with pytest.raises(ValueError, match=message):
        cfg.replace(**fields)
