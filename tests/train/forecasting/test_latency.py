"""The model of a forward pass's latency against counting by hand, and its laws."""

import json

import pytest

from moe_jax import Config
from moe_jax.cli.latency import latency
from moe_jax.model import cost
from train.forecasting.latency import START, forward_latency

CFG = Config(vocab=64, positions=32, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(8,), topk=2, capacity_train=None, capacity_eval=None)
PEAKS = '1e9,1e9,1e6,1e5'  # FLOP/s, bytes, bytes/s of memory, bytes/s sent


def test_by_hand_on_one_device_and_over_four():
    one = forward_latency(CFG, (4, 8), {}, PEAKS, efficiency=0.5)
    assert one.arithmetic == pytest.approx(32 * cost.count(CFG, 8).flops / 0.5e9)
    assert one.sending == 0
    expert = 4 * (16 * 24 * 2 + 24 + 16)
    touched = 1 - (7 / 8) ** (32 * 2)
    attention = 4 * 4 * (16 * 16 + 16)
    rest = attention + 4 * (64 * 16 + 8 * 16) + 4 * 3 * 2 * 16  # the tied head, router, three norms
    assert one.moving == pytest.approx((8 * touched * expert + rest) / 0.5e6)
    four = forward_latency(CFG, (4, 8), {'expert': 4}, PEAKS, efficiency=0.5)
    # 8 tokens on each device, 16 choices: 1.25 * 16 / 4 = 5 slots, in eights, of [16] float32
    # twice and an id once, to three others; two exchanges.
    assert four.sending == pytest.approx(3 * 8 * (2 * 16 * 4 + 4) / 0.5e5 + 2 * START)
    assert four.arithmetic == pytest.approx(one.arithmetic / 4)
    assert four.moving == pytest.approx((2 * touched * expert + rest) / 0.5e6)


def test_more_experts_cost_reading_and_more_devices_divide_it():
    few, many = (forward_latency(CFG.with_experts(n), (4, 8), {}, PEAKS) for n in (8, 64))
    assert many.moving > 2 * few.moving and many.arithmetic < 1.3 * few.arithmetic  # router rows
    spread = forward_latency(CFG.with_experts(64), (4, 8), {'expert': 8}, PEAKS)
    assert spread.moving < many.moving / 3


@pytest.mark.full
def test_the_command_measures_models_and_records(tmp_path, capsys):
    out = tmp_path / 'latency.jsonl'
    latency('tiny', experts=(2, 4), parallel=(1, 2), rows=2, length=8, peaks=('h100',),
            measure=True, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line['experts'] for line in lines] == [2, 4]
    for line in lines:
        assert len(line['modelled']['h100']) == 2 and set(line['measured']) == {'1', '2'}
        assert all(time > 0 for times in line['measured'].values() for time in times)
    said = capsys.readouterr().out
    assert 'here, measured' in said and 'h100, modelled' in said


def test_an_unknown_device_or_axis_is_refused():
    with pytest.raises(ValueError, match='no device'):
        forward_latency(CFG, (4, 8), {}, 'z80')
    with pytest.raises(ValueError, match='valid axes'):
        forward_latency(CFG, (4, 8), {'pipeline': 2})
