"""Forecasts against numbers by hand and laws; test_forecast_xla.py holds them against XLA."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

import train
from moe_jax import Config, preset
from moe_jax.base.tree import count_params, leaves_with_paths
from moe_jax.experts.parallel import _layout
from moe_jax.layers import ffn
from moe_jax.model import decoder
from train.forecasting import memory
from train.forecasting import mesh as spread
from train.forecasting.peaks import peaks_of
from train.forecasting.residuals import kept_bytes
from train.recipes import run

CONFIGS = Path(__file__).parents[3] / 'configs/train'
# D = 8, F = 12, E = 4, V = 40, P = 16: sizes that two devices of any axis divide.
CFG = Config(vocab=40, positions=16, width=8, heads=2, mlp_hidden=12, expert_hidden=12,
             experts=(4, 0))
OPTIONS = train.TrainOptions(steps=10, warmup=1, batch=8, length=16)
EXPERTS = 4 * 4 * (8 * 12 + 12 + 12 * 8 + 8)  # bytes of the four experts, biases included
TOTAL = 4 * count_params(decoder.shapes(CFG))


def forecast(axes=None, cfg=CFG, options=OPTIONS, **fields):
    return train.forecast(cfg, dataclasses.replace(options, **fields), axes, 'h100')


def test_parameters_gradients_and_moments_of_one_device():
    embeddings, norms, attention = (40 + 16) * 8, 5 * 2 * 8, 2 * (4 * 8 * 8 + 4 * 8)
    dense, router = 8 * 12 + 12 + 12 * 8 + 8, 4 * 8
    assert 4 * (embeddings + norms + attention + dense + router) + EXPERTS == TOTAL
    needs = forecast().memory
    assert (needs.params, needs.gradients, needs.moments) == (TOTAL, TOTAL, 2 * TOTAL)
    assert needs.gathered == needs.copies == 0
    assert needs.peak == 3 * TOTAL + max(TOTAL, needs.activations)


def test_gradients_and_moments_exist_for_what_trains_alone():
    routers = forecast(trainable=train.TRAINABLE['routers']).memory
    assert (routers.params, routers.gradients, routers.moments) == (TOTAL, 4 * 32, 2 * 4 * 32)
    low = forecast(trainable=train.Trainable(rank=2, on='attn/out$')).memory
    adapters = 4 * 2 * (8 * 2 + 2 * 8)  # two layers
    assert (low.params, low.gradients) == (TOTAL + adapters, adapters)
    some = forecast(trainable=train.Trainable(experts={0: (1, 3)})).memory
    assert some.gradients == EXPERTS // 2


@pytest.mark.parametrize('axes', [
    {'data': 4}, {'expert': 2}, {'expert': 4}, {'fsdp': 2}, {'model': 2}, {'expert': 2, 'model': 2},
    {'data': 2, 'fsdp': 2, 'expert': 2},
])
def test_what_all_devices_hold_is_each_split_leaf_once_and_each_whole_leaf_everywhere(axes):
    devices, wanted = spread.devices(axes), 0
    for path, leaf in leaves_with_paths(decoder.shapes(CFG)):
        copies = devices // spread.parts(axes, spread.split_by(axes, path, leaf.shape))
        wanted += copies * 4 * leaf.size
    assert devices * forecast(axes).memory.params == wanted
    assert spread.parts(axes, spread.split_by(axes, 'layer_0/moe/experts/up', (4, 8, 12))) == (
        devices // axes.get('data', 1))


def test_gradients_are_summed_over_the_axes_that_split_rows_and_not_the_leaf():
    sent = forecast({'data': 4}).traffic
    assert sent == (0, 0, 0, 2 * 3 / 4 * TOTAL)
    assert forecast({'data': 4}, accumulate=3, batch=4).traffic.all_reduce == 3 * sent.all_reduce
    routers = forecast({'data': 4}, trainable=train.TRAINABLE['routers']).traffic
    assert routers.all_reduce == 2 * 3 / 4 * 128
    both = forecast({'data': 2, 'expert': 2}).traffic
    assert both.all_reduce == 2 * 3 / 4 * (TOTAL - EXPERTS) + 2 * 1 / 2 * EXPERTS / 2


def test_an_exchange_sends_its_rows_twice_forward_and_three_times_backward():
    sent = forecast({'expert': 2}).traffic
    slots = 40  # 1.25 * 4 rows * 16 tokens / 2 devices
    assert sent.all_to_all == slots * (5 * 8 * 4 + 2 * 4)  # to one other device
    assert sent.all_gather == sent.reduce_scatter == 0


def test_with_many_choices_per_token_the_tokens_are_gathered_instead():
    sent = forecast({'expert': 2}, cfg=CFG.replace(topk=2)).traffic
    tokens = 4 * 16
    assert sent.all_to_all == 0
    assert sent.all_gather == tokens * (8 * (4 + 4) + 2 * 2 * 4)
    assert sent.reduce_scatter == tokens * (8 * (4 + 4) + 2 * 4)


def test_parameters_split_by_fsdp_are_gathered_and_their_gradients_scattered():
    found = forecast({'fsdp': 2})
    split = 4 * (40 * 8 + 2 * 4 * 64 + 2 * 8 * 12) + 4 * 4 * 2 * 8 * 12  # all matrices but these:
    whole = TOTAL - split  # positions, router, biases, norms
    assert found.memory.params == split // 2 + whole
    assert found.memory.gathered == split + 4 * 4 * 2 * 8 * 12
    assert found.traffic == (0, split // 2, split // 2, 2 * 1 / 2 * whole)


@pytest.mark.parametrize('axes', [
    {'data': 2, 'expert': 4}, {'expert': 2, 'model': 2}, {'expert': 3, 'data': 2}, {'data': 8},
    {'expert': 2}, {'expert': 5},
])
@pytest.mark.parametrize('topk', [1, 2])
def test_the_form_of_a_layer_is_that_of_expert_parallel(axes, topk):
    cfg = CFG.replace(topk=topk)
    weights = {name: jax.ShapeDtypeStruct((4, *shape), jnp.float32)
               for name, shape in ffn.shapes(cfg, 12).items()}
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))
    assert spread.form(cfg, axes, 0) == _layout(mesh, weights, True, topk, None).form


def test_layers_of_a_kind_are_traced_once_and_counted_as_often_as_they_are():
    cfg = CFG.replace(experts=(4, 0, 4, 0), windows=(0, 4, 0, 0))
    assert memory.kept(cfg, None, 3, 16) == memory._kept(cfg, None, 3, 16)


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(('function', 'wanted'), [
    (lambda w, x: x @ w, 0),  # the arguments are there anyhow
    (lambda w, x: jnp.tanh(x @ w), 4 * 6 * 5),
    (lambda w, x: 3.0 * (x @ w) + 1.0, 0),
    (lambda w, x: (x @ w).reshape(5, 6).T, 0),
    (lambda w, x: jnp.tanh(x @ w) @ jnp.ones((5, 2)), 4 * (6 * 5 + 5 * 2)),
    (lambda w, x: jnp.square(x @ w), 4 * 6 * 5),
    (lambda w, x: jax.jit(jnp.sin)(x @ w), 4 * 6 * 5),  # its cosine
])
def test_what_the_backward_pass_needs(function, wanted):
    assert kept_bytes(function, shape(4, 5), shape(6, 4)) == wanted


def test_time_is_work_over_what_a_device_does():
    found = train.forecast(CFG, OPTIONS, {'data': 4}, '1e9,1e9,1e9,1e6', efficiency=0.5)
    assert found.arithmetic == found.flops / 4 / 0.5e9
    assert found.sending == found.traffic.total / 0.5e6
    best, worst = found.seconds
    assert best == max(found.arithmetic, found.moving, found.sending)
    assert worst == max(found.arithmetic, found.moving) + found.sending
    assert found.tokens_per_second == (8 * 16 / worst, 8 * 16 / best)
    whole = train.forecast(CFG, OPTIONS, {'data': 4}, '1e9,1e9,1e9,1e6', efficiency=1.0)
    assert whole.seconds[0] == pytest.approx(best / 2)


def test_a_run_fits_where_the_peak_leaves_a_tenth_of_the_memory():
    peak = forecast().memory.peak
    assert train.forecast(CFG, OPTIONS, {}, f'1e9,{peak / 0.9 + 1},1e9,1e9').fits
    assert not train.forecast(CFG, OPTIONS, {}, f'1e9,{peak / 0.9 - 1},1e9,1e9').fits


@pytest.mark.full
def test_more_devices_for_rows_or_experts_need_less_memory_on_each():
    cfg = preset('cpu_small', experts=128)
    options = train.TrainOptions(steps=1, warmup=0, batch=64, length=128)
    peaks = [train.forecast(cfg, options, axes, 'h200').memory.peak
             for axes in ({}, {'data': 8}, {'expert': 8}, {'expert': 8, 'data': 8})]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize(('axes', 'peaks', 'efficiency', 'says'), [
    ({'rows': 2}, 'h100', 0.4, "mesh axis 'rows': valid axes are data, fsdp, expert, model"),
    ({'data': 3}, 'h100', 0.4, 'batch=8: .* 3 parts; give a multiple of 3'),
    ({}, 'h10', 0.4, "no device 'h10'; did you mean"),
    ({}, '1e9,1e9', 0.4, 'four positive numbers'),
    ({}, 'h100', 0.0, r'efficiency=0.0: .* in \(0, 1\]'),
])
def test_what_cannot_be_is_refused(axes, peaks, efficiency, says):
    with pytest.raises(ValueError, match=says):
        train.forecast(CFG, OPTIONS, axes, peaks, efficiency=efficiency)


def test_devices_by_name_and_by_numbers():
    assert peaks_of('v5e') is train.PEAKS['v5e']
    own = peaks_of('1e15,8e10,3e12,4e11')
    assert (own.flops, own.memory, own.bandwidth, own.link) == (1e15, 8e10, 3e12, 4e11)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda path: path.stem)
def test_every_shipped_run_loads_and_its_forecast_is_finite(path):
    names = re.findall(r'^def (\w+)\(\)', path.read_text(), re.MULTILINE)
    assert 'config' in names
    for name in names:
        found = run.load(path, name)
        # Sizes in a folder; and models that differ in their number of experts alone take seconds.
        if found.model is None or name in ('experts_32', 'experts_64'):
            continue
        told = train.forecast(found.model, found.options, found.axes)
        assert 0 < told.memory.peak < 1e12 and 0 < told.seconds[0] <= told.seconds[1] < 1e4
        assert told.table().row_count > 10


RUN = train.Run(name='r', model=CFG, options=OPTIONS)


@pytest.mark.parametrize(('fields', 'says'), [
    ({'start': 'folder'}, 'either a model, .* or start'),
    ({'model': None}, 'either a model, .* or start'),
    ({'name': 'a/b'}, 'valid folder name'),
    ({'domains': {'code': 0.0}}, r'share 0.0 of code: must be positive'),
    ({'domains': {'code': 1.0}, 'tasks': {'code': 1.0}}, 'listed more than once'),
    ({'heldout_tokens': 0}, 'heldout_tokens=0: must be an integer, at least 1'),
    ({'mesh': {'data': 3}}, 'run r: batch=8'),
    ({'options': dataclasses.replace(OPTIONS, length=17)}, 'length=17 tokens; .* 16 positions'),
])
def test_a_run_that_cannot_be_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        RUN.replace(**fields)
