"""Optimizer state through surgery, and runs that go on from a state."""

import dataclasses
import signal

import jax
import numpy as np
import pytest

import prune
from moe_jax.base.tree import at
from prune import LayerPlan, Plan
from tests.train.train_tiny import DROPLESS, OPTIONS, batch, equal, params, stream, stream_until
from train import Interrupted, Trainable, carry, fit, init_state, last_state, make_step
from train.optim.adamw import moments

CFG = DROPLESS.replace(experts=(4,), topk=2, router_bias=True)
LIVE = np.eye(4)[[0, 2, 3]]
TOLD = dataclasses.replace(OPTIONS, trainable='moe/', peak_lr=0.01)
PLAN = Plan(method='made up', experts=CFG.experts, width=16, expert_hidden=24,
            layers={0: LayerPlan(mix=LIVE, router=LIVE)})


def closed():
    """A model that never chooses expert 1."""
    return at(params(CFG), 'layer_0/moe/router/bias', lambda bias: bias.at[1].set(-1e9))


def stepped(cfg, state, *indices):
    for index in indices:
        state, _ = make_step(cfg, TOLD)(state, jax.tree.map(lambda x: x[None], batch(index)))
    return state


def move(order, leaves):
    return prune.apply_moments(leaves, CFG, PLAN, order)


def leaves_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@pytest.mark.full
def test_taking_then_stepping_equals_stepping_then_taking():
    state = stepped(CFG, init_state(closed(), TOLD), 0, 1)
    small, cfg = prune.apply(state.params, CFG, PLAN)
    first = stepped(cfg, carry(state, small, TOLD, move), 2, 3)
    assert int(first.step) == 4 and int(moments(first.opt_state).count) == 4
    late = stepped(CFG, state, 2, 3)
    last = carry(late, prune.apply(late.params, CFG, PLAN)[0], TOLD, move)
    leaves_close(first.params, last.params)
    leaves_close(first.opt_state, last.opt_state)
    assert any(np.any(leaf) for leaf in moments(last.opt_state).mu.values())


def test_moments_that_are_not_moved_start_again():
    state = stepped(CFG, init_state(closed(), TOLD), 0)
    small, _ = prune.apply(state.params, CFG, PLAN)
    fresh = carry(state, small, TOLD)
    adam = moments(fresh.opt_state)
    assert int(fresh.step) == 1 and int(adam.count) == 0
    assert not any(np.any(leaf) for leaf in (*adam.mu.values(), *adam.nu.values()))
    assert adam.mu['layer_0/moe/experts/up'].shape == (3, 16, 24)
    # What a move leaves out starts at zero, and the rest comes along.
    part = carry(state, state.params, TOLD, lambda order, leaves: {
        path: leaf for path, leaf in leaves.items() if 'router' in path})
    ours, theirs = moments(part.opt_state), moments(state.opt_state)
    assert equal(ours.nu['layer_0/moe/router/kernel'], theirs.nu['layer_0/moe/router/kernel'])
    assert not np.any(ours.mu['layer_0/moe/experts/up'])


def test_moments_that_do_not_fit_are_refused():
    state = init_state(closed(), TOLD)
    small, _ = prune.apply(state.params, CFG, PLAN)
    with pytest.raises(ValueError, match=r'move\(1, ...\) gives layer_0/moe/experts/.*the shape'):
        carry(state, small, TOLD, lambda order, leaves: leaves)
    slices = dataclasses.replace(TOLD, trainable=Trainable(experts={0: [0]}))
    with pytest.raises(ValueError, match='trains in part or by an adapter'):
        carry(init_state(closed(), slices), closed(), slices, lambda order, leaves: leaves)


def test_a_run_goes_on_from_a_state(tmp_path):
    whole, history = fit(CFG, closed(), stream, TOLD)
    stopped = stream_until(2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match='after step 3'):
        fit(CFG, closed(), stopped, TOLD, out=tmp_path / 'run')
    state = last_state(tmp_path / 'run', closed(), TOLD)
    assert int(state.step) == 3
    again, rest = fit(CFG, closed(), stream, TOLD, start=state, out=tmp_path / 'second')
    assert equal(whole, again) and rest == [line for line in history if line['step'] > 3]
    assert int(state.step) == 3 and not state.step.is_deleted()  # the caller's own is left alone
    with pytest.raises(ValueError, match='from was step 3 and is now None'):
        fit(CFG, closed(), stream, TOLD, out=tmp_path / 'second')
    with pytest.raises(ValueError, match='has 3 steps behind it'):
        fit(CFG, closed(), stream, dataclasses.replace(TOLD, steps=2), start=state)
    with pytest.raises(ValueError, match=r'start: .* has shape .*train\.carry'):
        fit(CFG, closed(), stream, dataclasses.replace(TOLD, trainable=None), start=state)
    with pytest.raises(FileNotFoundError, match='not the folder of a run'):
        last_state(tmp_path / 'elsewhere', closed(), TOLD)
