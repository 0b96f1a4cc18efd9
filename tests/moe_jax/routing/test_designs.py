"""The contract of router designs: what holds for each, or a property says otherwise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from moe_jax.base.tree import leaves_with_paths, map_with_path
from moe_jax.calibration.expert_sums import ExpertSums
from moe_jax.layers import ffn
from moe_jax.model.moe import SparseMoe
from moe_jax.model.network import rows_in
from moe_jax.routing.designs import design
from moe_jax.routing.designs.top_k import TopK
from tests.matrix import rows as rows_of
from tests.moe_jax.routing.cases import ROUTERS, config, rows

TOKENS, SEGMENTS = rows()
BATCHES = [{'tokens': TOKENS, 'segments': SEGMENTS}]
run = jax.jit(moe_jax.forward, static_argnums=0, static_argnames=('watch', 'train', 'observer'))


# The others have tests of their own that run with every change.
QUICK = ('top_k',)


@pytest.fixture(scope='module', params=rows_of(ROUTERS, quick=QUICK),
                ids=lambda name: name.replace(' ', '-'))
def case(request):
    """A config and float32 parameters of one design."""
    cfg = config(ROUTERS[request.param])
    return cfg, moe_jax.init(cfg, jax.random.key(0))


def loop(cfg: Config, params, record, layer: int) -> np.ndarray:
    """Output [N, D] of the chosen experts, one choice of one token after another."""
    experts = params[f'layer_{layer}']['moe']['experts']
    y = np.zeros(record.inputs.shape, np.float64)
    for n, (ids, gates, kept) in enumerate(zip(record.ids, record.gates, record.kept, strict=True)):
        for e, gate, used in zip(ids, gates, kept, strict=True):
            if used:
                one = {name: leaf[int(e)] for name, leaf in experts.items()}
                out = ffn.of(cfg)(one, record.inputs[n][None])[0]
                y[n] += float(gate) * np.asarray(out, np.float64)
    return y


def test_the_output_is_that_of_a_loop_over_choices(case):
    cfg, params = case
    _, plain = run(cfg, params, TOKENS, SEGMENTS, watch=('routing', 'stream'))
    record = plain['routing'][2]
    moe = SparseMoe(cfg, 2, False)
    x = jnp.asarray(record.inputs).reshape(*TOKENS.shape, -1)
    y = jax.jit(lambda x: moe.apply({'params': params['layer_2']['moe']}, x, rows_in(
        cfg, jnp.asarray(SEGMENTS), tokens=jnp.asarray(TOKENS))[0]))(x)
    valid = SEGMENTS.ravel() > 0
    wanted = loop(cfg, params, jax.tree.map(np.asarray, record), 2)
    np.testing.assert_allclose(np.asarray(y).reshape(wanted.shape)[valid], wanted[valid],
                               rtol=1e-5, atol=1e-6)
    assert not np.asarray(record.kept)[~valid].any()


def test_observed_or_not_the_model_computes_the_same(case):
    cfg, params = case
    plain, out = run(cfg, params, TOKENS, SEGMENTS)
    seen, more = run(cfg, params, TOKENS, SEGMENTS, watch=('routing',), observer=ExpertSums())
    np.testing.assert_allclose(plain, seen, rtol=1e-5, atol=1e-5)
    for i in cfg.moe_layers:
        record = more['routing'][i]
        count = np.bincount(np.asarray(record.ids)[np.asarray(record.kept)], minlength=5)
        np.testing.assert_array_equal(out['hits'][i], count)


def test_padding_and_other_rows_change_nothing(case):
    cfg, params = case
    if 'batch' in cfg.traits.reads:
        pytest.skip('its tokens compete with those of other rows')
    whole, _ = run(cfg, params, TOKENS, SEGMENTS)
    alone, _ = run(cfg, params, TOKENS[1:2], SEGMENTS[1:2])
    np.testing.assert_allclose(alone[0], whole[1], rtol=1e-5, atol=1e-5)
    changed = np.where(SEGMENTS > 0, TOKENS, 7)
    other, _ = run(cfg, params, changed, SEGMENTS)
    np.testing.assert_allclose(other[SEGMENTS > 0], whole[SEGMENTS > 0], rtol=1e-5, atol=1e-5)


def test_causal_is_what_it_says(case):
    cfg, params = case
    later = TOKENS.copy()
    later[:, 9:] = (later[:, 9:] + 5) % cfg.vocab
    segments = np.ones_like(SEGMENTS)
    before, after = (run(cfg, params, tokens, segments)[0][:, :9] for tokens in (TOKENS, later))
    same = np.allclose(before, after, rtol=1e-5, atol=1e-5)
    assert same == cfg.traits.causal


def test_generation_is_the_forward_pass_or_refused(case):
    cfg, params = case
    prompt = [3, 1, 4, 1, 5]
    if not cfg.traits.causal:
        with pytest.raises(ValueError, match='depends on later tokens'):
            moe_jax.generate(cfg, params, [prompt], max_new=3)
        with pytest.warns(UserWarning, match='not those of a causal model'):
            moe_jax.score(cfg, params, TOKENS, SEGMENTS)
        return
    text = list(prompt)
    for _ in range(4):
        logits = moe_jax.apply(cfg, params, np.asarray([text], np.int32))
        text.append(int(np.argmax(logits[0, -1])))
    assert moe_jax.generate(cfg, params, [prompt], max_new=4) == [text[len(prompt):]]


def test_gradients_are_finite_and_those_of_differences(case):
    cfg, params = case

    def loss(params):
        logits, out = moe_jax.forward(cfg, params, TOKENS, SEGMENTS, train=True)
        return jnp.square(logits).mean() + sum(out['losses'].values(), jnp.zeros(()))

    value = jax.jit(loss)
    slope = jax.jit(jax.grad(loss))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    rng = np.random.default_rng(0)
    toward = map_with_path(
        lambda path, leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
        if path.startswith('layer_2/moe/experts') else jnp.zeros_like(leaf), params)
    step = 1e-2  # of the last layer: behind another, choices change by steps
    ends = [float(value(jax.tree.map(lambda p, t, s=s: p + s * t, params, toward)))
            for s in (step, -step)]
    inner = sum(float((a * b).sum()) for a, b in zip(
        jax.tree.leaves(slope), jax.tree.leaves(toward), strict=True))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(inner, rel=2e-2, abs=1e-4)


def test_half_precision_routes_in_float32(case):
    cfg, params = case
    half = cfg.replace(dtype='bfloat16')
    narrow = map_with_path(
        lambda path, leaf: leaf if '/router/' in path else leaf.astype(jnp.bfloat16), params)
    logits, out = run(half, narrow, TOKENS, SEGMENTS, watch=('routing',))
    record = out['routing'][0]
    assert np.isfinite(logits).all()
    assert {a.dtype for a in (record.gates, record.logits, record.probs)} == {np.dtype('float32')}


def test_configs_are_saved_and_refused_by_name(case, tmp_path):
    cfg, params = case
    assert Config.from_json(cfg.to_json()) == cfg and len({cfg, cfg.replace()}) == 1
    moe_jax.save(tmp_path / 'model', cfg, params)
    again_cfg, again = moe_jax.load(tmp_path / 'model')
    assert again_cfg == cfg
    assert dict(leaves_with_paths(again)).keys() == dict(leaves_with_paths(params)).keys()
    assert design(cfg.router.design) is type(cfg.router)
    with pytest.raises(ValueError, match='did you mean'):
        design(cfg.router.design + 'x')
    first = dataclasses.fields(cfg.router)[0].name
    with pytest.raises(ValueError, match=rf'Config\.(router\.)?{first}='):
        cfg.router.replace(**{first: -1})


def test_settings_by_name_are_those_of_the_top_k_router():
    short = Config(vocab=8, positions=8, width=8, heads=1, mlp_hidden=8, expert_hidden=8,
                   experts=(4,), topk=2, gate_scale=2.0, router_bias=True)
    router = TopK(topk=2, scale=2.0, bias=True)
    assert short.router == router and short == short.replace(router=router)
    assert short.replace(topk=3).router == router.replace(topk=3)
    assert (short.gate, short.gate_scale) == (router.gate, 2.0)
    with pytest.raises(ValueError, match='settings of the top-k router'):
        config(ROUTERS['hash'], gate_scale=2.0)
    with pytest.raises(ValueError, match='no field'):
        config(ROUTERS['hash']).replace(gate_scale=2.0)
    with pytest.raises(AttributeError, match='gate_scale'):
        _ = config(ROUTERS['hash']).gate_scale


@pytest.mark.full
def test_what_is_dropped_or_merged_runs_or_is_refused_with_the_reason(case):
    """Every method that one pass serves makes a model that runs, or says why it cannot."""
    cfg, params = case
    stats = moe_jax.observe(cfg, params, BATCHES, **prune.observe_options('hc_smoe', 'reap'))
    made, refused = set(), {}
    for row in prune.methods():
        if row.cost in ('two checkpoints', 'one pass, reservoir', 'one pass, gradients'):
            continue
        options = {'router_init': 'alias'} if (
            not cfg.traits.sliceable and 'router_init' in prune.options(row.name)) else {}
        try:
            plan = prune.plan(row.name, stats, params, cfg, experts=3, **options)
        except (ValueError, KeyError) as error:
            refused[row.name] = str(error)
            continue
        small, small_cfg = prune.apply(params, cfg, plan)
        assert sum(small_cfg.experts) == 6 and small_cfg.router == cfg.router
        assert np.isfinite(run(small_cfg, small, TOKENS, SEGMENTS)[0]).all()
        made.add(row.name)
    assert {'reap', 'aimer'} <= made
    if cfg.router.design == 'top_k':
        assert not {name: text for name, text in refused.items() if 'observe' not in text}
    if cfg.traits.usage == 'mass':
        assert 'the same number of tokens' in refused['frequency']
    assert all('router' in text or 'observe' in text for text in refused.values()), refused
