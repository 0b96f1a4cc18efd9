"""Hash routing: the id alone decides, evenly over rows, and only a dropped expert's ids move."""

import jax
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.routing.designs.hash import Hash, hashes
from moe_jax.routing.routing import LayerRows, RouterInput
from tests.moe_jax.routing.cases import config, rows


def murmur(word: int) -> int:
    word = ((word ^ word >> 16) * 0x85EBCA6B) % 2**32
    word = ((word ^ word >> 13) * 0xC2B2AE35) % 2**32
    return word ^ word >> 16


def test_the_hash_is_that_of_whole_numbers_in_python():
    tokens, seed = np.asarray([0, 1, 5, 50_000, 2**31 - 1], np.int32), 7
    wanted = [[murmur(murmur((t * 2654435761 + seed) % 2**32)
                      ^ murmur((r * 2246822519 + 1) % 2**32)) for r in range(3)]
              for t in tokens.tolist()]
    np.testing.assert_array_equal(np.asarray(hashes(tokens, 3, seed)), wanted)


def routed(tokens, count=8, topk=2, seed=0, **more):
    given = RouterInput(np.zeros((len(tokens), 4), np.float32), np.ones(len(tokens), np.int32),
                        tokens=np.asarray(tokens, np.int32))
    return Hash(topk=topk, seed=seed).route({}, given, LayerRows(count, topk, **more))


def test_an_id_has_its_rows_for_ever_and_ids_spread_evenly():
    ids = np.asarray(routed(np.arange(50_000)).ids)
    assert (ids[:, 0] != ids[:, 1]).all()
    np.testing.assert_array_equal(np.asarray(routed([7, 7, 3]).ids), ids[[7, 7, 3]])
    share = np.bincount(ids.ravel(), minlength=8) / ids.size
    # 100,000 draws of probability 1/8 have a standard deviation of 0.001.
    assert np.abs(share - 1 / 8).max() < 0.005
    assert (np.asarray(routed(np.arange(100), seed=1).ids) != ids[:100]).any()


def test_gates_and_shares():
    found = routed([1, 2, 3], topk=4)
    np.testing.assert_array_equal(np.asarray(found.gates), np.full((3, 4), 0.25))
    np.testing.assert_allclose(np.asarray(found.probs).sum(axis=1), 1, rtol=1e-6)
    closed = tuple(r < 4 for r in range(8))
    assert np.asarray(routed(np.arange(500), topk=4, closed=closed).ids).min() >= 4


def test_a_dropped_experts_ids_alone_move():
    cfg = config(Hash(topk=1, seed=5))
    params = moe_jax.init(cfg, jax.random.key(0))
    tokens, segments = rows(batch=8)
    stats = moe_jax.observe(cfg, params, [{'tokens': tokens, 'segments': segments}])
    plan = prune.plan('frequency', stats, params, cfg, experts=3)
    small, small_cfg = prune.apply(params, cfg, plan)
    for i, layer in plan.layers.items():
        stay = np.argmax(layer.mix, axis=1)
        count = stats.layer(i)['count']
        assert set(stay) == set(np.argsort(-count, kind='stable')[:3])
        np.testing.assert_array_equal(layer.alias[stay], np.arange(3))
        lost = np.setdiff1d(np.arange(5), stay)
        # The most used of the lost rows goes to the survivor with the fewest tokens.
        first = lost[np.argmax(count[lost])]
        assert layer.alias[first] == np.argmin(count[stay])
    assert small_cfg.router_rows(0) == 5 and small_cfg.fit(small) == small_cfg
    kept = ('layer_0', 'moe')
    assert 'router' not in small[kept[0]][kept[1]]
    # A model whose tokens go to surviving experts alone computes what it did.
    names = np.asarray(routed(np.arange(cfg.vocab), count=5, topk=1, seed=5).ids)[:, 0]
    safe = np.flatnonzero(np.isin(names, np.intersect1d(
        *(np.argmax(layer.mix, axis=1) for layer in plan.layers.values()))))
    text = np.resize(safe, (2, 9)).astype(np.int32)
    np.testing.assert_allclose(moe_jax.apply(small_cfg, small, text),
                               moe_jax.apply(cfg, params, text), rtol=1e-5, atol=1e-5)


def test_a_merge_keeps_the_rows_or_is_refused():
    cfg = config(Hash(topk=1))
    params = moe_jax.init(cfg, jax.random.key(0))
    tokens, segments = rows()
    stats = moe_jax.observe(cfg, params, [{'tokens': tokens, 'segments': segments}],
                            **prune.observe_options('hc_smoe'))
    plan = prune.plan('hc_smoe', stats, params, cfg, experts=2, router_init='alias')
    small, small_cfg = prune.apply(params, cfg, plan)
    assert small_cfg.experts == (2, 0, 2) and small_cfg.router_rows(0) == 5
    assert np.isfinite(moe_jax.apply(small_cfg, small, tokens, segments)).all()
    with pytest.raises(ValueError, match="router_init='alias'"):
        prune.plan('hc_smoe', stats, params, cfg, experts=2, router_init='mean')


def test_token_ids_are_needed():
    cfg = config(Hash())
    params = moe_jax.init(cfg, jax.random.key(0))
    tokens, segments = rows()
    batches = [{'tokens': tokens, 'segments': segments}]
    x = np.zeros((4, cfg.width), np.float32)
    with pytest.raises(ValueError, match="has no 'tokens'"):
        moe_jax.observe_inputs(cfg, params, [{0: x, 2: x}])
    with pytest.raises(ValueError, match='routes by token ids'):
        Hash().route({}, RouterInput(x, np.ones(4, np.int32)), LayerRows(5, 1))
    stats = moe_jax.observe(cfg, params, batches, reservoir=8)
    with pytest.raises(ValueError, match=r'top-k router.*design'):
        prune.sensitivity('reap', stats, params, cfg)
