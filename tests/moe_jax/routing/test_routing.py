import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.routing.alias import served, to_experts
from moe_jax.routing.designs.top_k import route
from moe_jax.routing.gates import GATE
from moe_jax.routing.losses import balance_loss, load, z_loss
from moe_jax.routing.routing import Routing
from tests.moe_jax import numpy_model

RNG = np.random.default_rng(0)
X = RNG.normal(size=(13, 6)).astype(np.float32)
KERNEL = RNG.normal(size=(5, 6)).astype(np.float32)
VALID = np.array([True] * 9 + [False] * 4)
ALL = jnp.ones(13, bool)


def routed(topk=2, gate='softmax_topk', **options):
    return route(X, {'kernel': KERNEL}, topk=topk, gate=gate, **options)


def from_probs(probs, topk=1):
    """A routing with given probabilities [N, R]."""
    probs = jnp.asarray(probs, jnp.float32)
    gates, ids = jax.lax.top_k(probs, topk)
    return Routing(ids, gates, jnp.log(probs), probs)


@pytest.mark.parametrize('gate', [gate for gate in GATE if 'softmax' in gate])
@pytest.mark.parametrize('topk', [1, 2, 5])
def test_softmax_topk_by_numpy(gate, topk):
    found = routed(topk, gate)
    logits = X.astype(np.float64) @ KERNEL.T
    probs = numpy_model.softmax(logits)
    ids = numpy_model.choose(probs, topk)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.probs, probs, rtol=1e-5)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.gates, numpy_model.gates_of(probs, ids, gate), rtol=1e-5)


@pytest.mark.parametrize('groups', [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize('gate', ['sigmoid_topk', 'sigmoid_topk_renorm'])
def test_sigmoid_routing_with_groups_and_correction_by_numpy(gate, groups):
    rng = np.random.default_rng(3)
    router = {'kernel': rng.normal(size=(12, 6)), 'bias': rng.normal(size=12),
              'correction': rng.normal(size=12)}
    router = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in router.items()}
    found = route(X, router, topk=3, gate=gate, scale=2.5, groups=groups[0],
                          groups_used=groups[1])
    exact = {name: np.asarray(leaf, np.float64) for name, leaf in router.items()}
    logits = X.astype(np.float64) @ exact['kernel'].T + exact['bias']
    ids, gates = numpy_model.sigmoid_route(
        logits, exact['correction'], 3, *groups, gate.endswith('renorm'), 2.5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.ids, ids)
    np.testing.assert_allclose(found.gates, gates, rtol=1e-4)
    np.testing.assert_allclose(found.probs.sum(axis=1), np.ones(13), rtol=1e-5)


def test_softmax_groups_are_ranked_by_their_best_row():
    logits = jnp.log(jnp.array([[0.30, 0.01, 0.20, 0.19, 0.25, 0.05]]))
    found = route(jnp.ones((1, 1)), {'kernel': logits.T}, topk=3, gate='softmax_topk',
                          groups=3, groups_used=2, scale=2.0)
    np.testing.assert_array_equal(found.ids, [[0, 4, 5]])  # rows 2 and 3 are in the third group
    np.testing.assert_allclose(found.gates, [[0.6, 0.5, 0.1]], rtol=1e-5)


def test_a_row_with_an_infinite_bias_is_never_chosen_and_nothing_is_nan():
    router = {'kernel': KERNEL, 'bias': jnp.array([0.0, -jnp.inf, 0.0, 0.0, 0.0])}
    for gate in GATE:
        found = route(X, router, topk=4, gate=gate)
        assert not (np.asarray(found.ids) == 1).any()
        assert np.isfinite(found.gates).all() and np.isfinite(found.probs).all()


def test_ties_go_to_the_lowest_row():
    kernel = np.repeat(KERNEL[:1], 5, axis=0)
    found = route(X, {'kernel': kernel}, topk=3, gate='softmax_topk')
    np.testing.assert_array_equal(found.ids, np.tile([0, 1, 2], (13, 1)))


def test_bfloat16_inputs_are_routed_in_float32():
    x = jnp.asarray(X, jnp.bfloat16)
    found = route(x, {'kernel': KERNEL}, topk=1, gate='softmax_topk')
    assert found.ids.dtype == jnp.int32
    assert {a.dtype for a in (found.gates, found.logits, found.probs)} == {jnp.dtype('float32')}
    exact = np.asarray(x, np.float64) @ KERNEL.astype(np.float64).T
    np.testing.assert_allclose(found.logits, exact, rtol=1e-5, atol=1e-6)


def test_jitter_needs_a_key_and_stays_in_its_bounds():
    still = routed(jitter=0.1)
    np.testing.assert_array_equal(still.logits, routed().logits)
    noisy = route(jnp.ones((4000, 1)), {'kernel': jnp.ones((1, 1))}, topk=1,
                          gate='softmax_topk', jitter=0.1, key=jax.random.key(0)).logits
    assert 0.9 <= noisy.min() < 0.901 and 1.099 < noisy.max() <= 1.1
    np.testing.assert_array_equal(routed(key=jax.random.key(0)).logits, still.logits)


@pytest.mark.parametrize('topk', [1, 2])
@pytest.mark.parametrize('valid', [VALID, np.ones(13, bool)])
def test_balance_loss_by_numpy(topk, valid):
    found = routed(topk)
    probs, ids = np.asarray(found.probs, np.float64)[valid], np.asarray(found.ids)[valid]
    share = np.array([(ids == r).sum() for r in range(5)]) / ids.size
    np.testing.assert_allclose(
        balance_loss(found, valid), 5 * (share * probs.mean(axis=0)).sum(), rtol=1e-5)


def test_balance_is_one_when_perfect_with_finite_gradient():
    probs = jnp.full((8, 4), 0.25)
    even = Routing(jnp.arange(8, dtype=jnp.int32)[:, None] % 4, probs[:, :1], jnp.log(probs), probs)

    def loss(probs):
        return balance_loss(even._replace(probs=probs), jnp.ones(8, bool))

    value, gradient = jax.value_and_grad(loss)(probs)
    assert float(value) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(gradient, np.full((8, 4), 4 * 0.25 / 8), rtol=1e-6)


def test_balance_is_the_number_of_rows_at_collapse():
    collapsed = from_probs(np.tile([1 - 3e-7, 1e-7, 1e-7, 1e-7], (6, 1)))
    assert float(balance_loss(collapsed, jnp.ones(6, bool))) == pytest.approx(4, rel=1e-5)


def test_balance_gradient_goes_through_probabilities_alone():
    """Against finite differences of the formula in float64 with the counts frozen."""
    def loss(kernel):
        found = route(X, {'kernel': kernel}, topk=2, gate='softmax_topk')
        return balance_loss(found, jnp.asarray(VALID))

    ids = numpy_model.choose(numpy_model.softmax(X @ KERNEL.T), 2)[VALID]
    share = np.array([(ids == r).sum() for r in range(5)]) / ids.size

    def frozen(kernel):
        probs = numpy_model.softmax(X.astype(np.float64) @ kernel.T)[VALID]
        return 5 * (share * probs.mean(axis=0)).sum()

    slope = np.zeros((5, 6))
    for place in np.ndindex(5, 6):
        step = np.zeros((5, 6))
        step[place] = 1e-6
        slope[place] = (frozen(KERNEL + step) - frozen(KERNEL - step)) / 2e-6
    np.testing.assert_allclose(jax.grad(loss)(KERNEL), slope, rtol=1e-3, atol=1e-6)


def test_z_loss_by_numpy():
    found = routed()
    lse = np.log(np.exp(X.astype(np.float64) @ KERNEL.T).sum(axis=1))
    np.testing.assert_allclose(z_loss(found, VALID), (lse[VALID] ** 2).mean(), rtol=1e-5)


def test_losses_of_padding_alone_are_zero():
    none = np.zeros(13, bool)
    assert float(balance_loss(routed(), none)) == 0
    assert float(z_loss(routed(), none)) == 0


def test_load_counts_valid_choices():
    ids = jnp.array([[0, 2], [2, 1], [2, 0]], jnp.int32)
    valid = jnp.array([True, True, False])
    np.testing.assert_array_equal(load(ids, valid, 4), [1, 1, 2, 0])


def every(valid, topk=2):
    return jnp.broadcast_to(jnp.asarray(valid)[:, None], (len(valid), topk))


def test_padding_gets_no_expert():
    ids, gates = to_experts(routed(), every(VALID), None, 5)
    np.testing.assert_array_equal(ids[~VALID], np.full((4, 2), 5))
    np.testing.assert_array_equal(gates[~VALID], np.zeros((4, 2)))
    np.testing.assert_array_equal(ids[VALID], routed().ids[VALID])
    np.testing.assert_array_equal(gates[VALID], routed().gates[VALID])


@pytest.mark.parametrize('topk', [1, 2, 4])
def test_rows_that_share_an_expert_are_summed_into_one_choice(topk):
    alias = (1, 0, 1, 1, 0)
    found = routed(topk)
    ids, gates = (np.asarray(a) for a in to_experts(found, every(ALL, topk), alias, 2))
    for n in range(13):
        mass = {}
        for r, g in zip(np.asarray(found.ids)[n], np.asarray(found.gates)[n], strict=True):
            mass[alias[r]] = mass.get(alias[r], 0.0) + float(g)
        used = [int(e) for e in ids[n] if e < 2]
        assert used == list(mass)  # once each, in order of first choice
        for k, e in enumerate(ids[n]):
            assert gates[n, k] == pytest.approx(mass[e] if e < 2 else 0.0, rel=1e-6)
    np.testing.assert_allclose(gates.sum(axis=1), found.gates.sum(axis=1), rtol=1e-6)


def test_a_repeat_is_served_when_its_expert_is():
    found = Routing(jnp.array([[0, 2, 1], [1, 3, 0]], jnp.int32), None, None, None)
    kept = jnp.array([[True, False, False], [False, False, True]])
    np.testing.assert_array_equal(
        served(found, kept, (0, 1, 0, 1), 2), [[True, True, False], [False, False, True]])
    assert served(found, kept, None, 4) is kept
