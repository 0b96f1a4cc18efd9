"""Moments through a plan: by hand, and the laws that make them moments still."""

import jax.numpy as jnp
import numpy as np
import pytest

import prune
from moe_jax import Config
from prune import LayerPlan, Plan
from prune.plans.masks import pack

CFG = Config(vocab=8, positions=4, width=2, heads=1, mlp_hidden=4, expert_hidden=3, experts=(0, 3))
UP, DOWN, KERNEL = (f'layer_1/moe/{name}' for name in (
    'experts/up', 'experts/down', 'router/kernel'))


def plan_of(mix, **fields) -> Plan:
    mix = np.asarray(mix, np.float64)
    fields = {'router': mix} | fields
    return Plan(method='made up', experts=CFG.experts, width=2, expert_hidden=3,
                layers={1: LayerPlan(mix=mix, **fields)})


def moments(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {UP: (3, 2, 3), DOWN: (3, 3, 2), KERNEL: (3, 2), 'layer_0/mlp/up': (2, 4),
              'layer_1/moe/constants': (1, 2)}
    return {path: jnp.asarray(rng.exponential(size=shape), jnp.float32)
            for path, shape in shapes.items()}


def both(given, plan):
    return [prune.apply_moments(given, CFG, plan, order) for order in (1, 2)]


def test_kept_experts_take_their_moments_with_them_exactly():
    given = {path: np.asarray(leaf) for path, leaf in moments().items()}
    perms = np.array([[0, 1, 2], [0, 1, 2], [2, 0, 1]])
    for found in both(given, plan_of(np.eye(3)[[2, 0]], perms=perms)):
        np.testing.assert_array_equal(found[UP], np.stack(
            [given[UP][2][:, [2, 0, 1]], given[UP][0]]))
        np.testing.assert_array_equal(found[DOWN], np.stack(
            [given[DOWN][2][[2, 0, 1]], given[DOWN][0]]))
        np.testing.assert_array_equal(found[KERNEL], given[KERNEL][np.array([2, 0])])
        for path in ('layer_0/mlp/up', 'layer_1/moe/constants'):
            assert found[path] is given[path]


def test_merged_experts_by_hand():
    given = {KERNEL: jnp.asarray([[4.0, 1.0], [16.0, 9.0], [1.0, 1.0]])}
    first, second = both(given, plan_of([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(first[KERNEL], [[13.0, 7.0], [1.0, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(second[KERNEL], [[3.5**2, 2.5**2], [1.0, 1.0]], rtol=1e-6)


def test_equal_members_keep_what_they_had():
    same = {path: jnp.broadcast_to(leaf[:1], leaf.shape) for path, leaf in moments().items()}
    for found in both(same, plan_of([[0.2, 0.3, 0.5]])):
        np.testing.assert_allclose(found[UP], same[UP][:1], rtol=1e-5)


def test_the_second_bounds_the_square_of_the_first_whatever_the_members():
    """E[(sum w g)^2] of any gradients is at most what the plan makes of the E[g^2]."""
    rng = np.random.default_rng(1)
    share = np.array([0.5, -0.25, 0.75])
    for spread in (0.0, 1.0, 10.0):
        draws = rng.normal(1.0, spread, (50, 3, 2)) + rng.normal(size=(50, 1, 1))
        given = {KERNEL: jnp.asarray((draws**2).mean(axis=0), jnp.float32)}
        found = prune.apply_moments(given, CFG, plan_of([share], router=share[None]), 2)[KERNEL]
        truth = (np.einsum('e,ted->td', share, draws) ** 2).mean(axis=0)
        assert (np.asarray(found)[0] >= truth * 0.999).all()


def test_what_a_plan_makes_anew_starts_at_zero():
    given = moments()
    constants = np.ones((2, 2), np.float32)
    kept = np.ones((2, 2, 3), bool)
    kept[0, 1, 2] = False
    plan = plan_of(np.eye(3)[:2], router=None, fresh=1, constants=constants, alias=[0, 1, 2, 3],
                   masks={'up': pack(kept)})
    for found in both(given, plan):
        assert found[KERNEL].shape == (4, 2) and not np.any(found[KERNEL])
        assert found['layer_1/moe/constants'].shape == (2, 2)
        assert not np.any(found['layer_1/moe/constants'])
        np.testing.assert_array_equal(found[UP], np.where(kept, given[UP][:2], 0))
    only = plan_of(np.eye(3), router=None, masks={'up': pack(np.zeros((3, 2, 3), bool))})
    for found in both(given, only):
        assert found[KERNEL] is given[KERNEL] and not np.any(found[UP])


def test_trees_serve_as_well_and_misfits_are_refused():
    plan = plan_of(np.eye(3)[:2])
    tree = {'layer_1': {'moe': {'experts': {'up': moments()[UP]}}}}
    found = prune.apply_moments(tree, CFG, plan, 1)
    np.testing.assert_array_equal(found['layer_1']['moe']['experts']['up'], moments()[UP][:2])
    with pytest.raises(ValueError, match='order=3; 1 for means'):
        prune.apply_moments(tree, CFG, plan, 3)
    with pytest.raises(ValueError, match='experts/up has 2 rows and the plan is for 3'):
        prune.apply_moments({UP: jnp.ones((2, 2, 3))}, CFG, plan, 1)
    with pytest.raises(ValueError, match='this model has'):
        prune.apply_moments(tree, CFG.replace(width=4, heads=2), plan, 1)


def test_what_new_experts_stand_for():
    mix = [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    found = prune.stands_for(plan_of(mix))
    assert list(found) == [1]
    np.testing.assert_array_equal(found[1], np.asarray(mix, np.float32))
