import dataclasses
import json

import numpy as np
import pytest

from moe_jax import Config

PLAIN = {'vocab': 11, 'positions': 8, 'width': 8, 'heads': 2, 'mlp_hidden': 8,
         'expert_hidden': 4}


def config(**fields):
    return Config(**{**PLAIN, 'experts': (4, 0, 4), **fields})


def tree(*layers):
    """Parameters as `fit` reads them: (experts, rows) of each layer, None for a dense one."""
    return {
        f'layer_{i}': {'mlp': {}} if layer is None else {'moe': {
            'experts': {'up': np.zeros((layer[0], 8, 4))},
            'router': {'kernel': np.zeros((layer[1], 8))},
        }} for i, layer in enumerate(layers)
    }


@pytest.mark.parametrize('name', ['vocab', 'positions', 'width', 'heads', 'mlp_hidden',
                                  'expert_hidden', 'topk'])
@pytest.mark.parametrize('value', [0, -1, 2**40, 2.0, True, '8', None, float('nan')])
def test_sizes_that_make_no_model_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf'Config\.{name}='):
        config(**{name: value})


@pytest.mark.parametrize('name', ['capacity_train', 'capacity_eval', 'balance', 'zloss', 'jitter'])
@pytest.mark.parametrize('value', [-0.1, float('nan'), float('inf'), '1', True])
def test_rates_that_make_no_model_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf'Config\.{name}='):
        config(**{name: value})


@pytest.mark.parametrize(('fields', 'message'), [
    ({'heads': 3}, r'width=8 is not divisible by heads=3'),
    ({'experts': ()}, 'has 0 layers'),
    ({'experts': (4, -1)}, r'experts\[1\]=-1'),
    ({'experts': (4, 2.5)}, r'experts\[1\]=2.5'),
    ({'experts': '88'}, "experts='88'"),
    ({'experts': 8}, 'experts=8'),
    ({'experts': (1,) * 5000}, '5000 layers'),
    ({'experts': (4, 1), 'topk': 2}, r'experts\[1\]=1: a layer needs at least topk=2'),
    ({'capacity_eval': 0}, 'capacity_eval=0: must be positive, or None'),
    ({'min_capacity': -1}, 'min_capacity=-1'),
    ({'jitter': 1.0}, 'jitter=1.0: must be below 1'),
    ({'gate': 'softmax_topk_renom'}, "did you mean 'softmax_topk_renorm'"),
    ({'gate': 3}, 'gate=3'),
    ({'dtype': 'bf16'}, "did you mean 'bfloat16'"),
    ({'dtype': 'float64'}, 'valid: float32, bfloat16'),
    ({'aliases': ((0, 1, 2, 3),)}, '1 entries for 3 layers'),
    ({'aliases': (None, (0,), None)}, r'aliases\[1\]'),
    ({'aliases': ((0, 1, 2, 2), None, None)}, r'aliases\[0\] must use each of the 4 experts'),
    ({'aliases': ((0, 1, 2, 3, 4), None, None)}, r'aliases\[0\] must use'),
    ({'aliases': ((), None, None)}, r'experts\[0\]=4|aliases\[0\]'),
    ({'aliases': ((0, 'a'), None, None)}, r"aliases\[0\]\[1\]='a'"),
])
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(ValueError, match="no field 'expert'; did you mean 'experts'"):
        config().replace(expert=3)


def test_it_is_frozen_and_hashable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().topk = 2
    assert len({config(), config(), config(topk=2)}) == 2


def test_equal_configs_have_one_text_and_one_digest():
    loose = config(vocab=np.int64(11), capacity_eval=1, experts=[4, 0, 4], balance=0)
    strict = config(balance=0.0)
    assert loose == strict and loose.to_json() == strict.to_json()
    assert loose.digest() == strict.digest() and len(loose.digest()) == 16
    assert config(topk=2).digest() != config().digest()


@pytest.mark.parametrize('fields', [
    {}, {'capacity_eval': None, 'dtype': 'bfloat16', 'topk': 2},
    {'experts': (2, 0, 3), 'aliases': ((0, 1, 1, 0), None, None)},
])
def test_json_round_trip(fields):
    cfg = config(**fields)
    assert Config.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(('change', 'message'), [
    (lambda raw: raw | {'topK': 1}, "unknown field 'topK'; did you mean 'topk'"),
    (lambda raw: {k: v for k, v in raw.items() if k != 'width'}, "field 'width' is missing"),
    (lambda raw: raw | {'width': '8'}, "width='8'"),
    (lambda raw: raw | {'experts': None}, 'experts=None'),
    (lambda raw: raw | {'balance': float('nan')}, 'balance=nan'),
    (lambda raw: [raw], 'holds list'),
])
def test_a_file_that_is_no_config_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_json(json.dumps(change(json.loads(config().to_json()))))


def test_text_that_is_no_json_is_a_value_error():
    with pytest.raises(ValueError, match='Expecting'):
        Config.from_json('{')


def test_layers_rows_and_counts():
    cfg = config(experts=(2, 0, 3), aliases=((0, 1, 1, 0), None, None))
    assert cfg.layers == 3 and cfg.moe_layers == (0, 2)
    assert (cfg.router_rows(0), cfg.router_rows(2)) == (4, 3)
    assert cfg.alias(0) == (0, 1, 1, 0) and cfg.alias(2) is None
    assert cfg.with_experts(5).experts == (5, 0, 5) and cfg.with_experts(5).aliases == ()
    with pytest.raises(ValueError, match='at least 1'):
        cfg.with_experts(0)


def test_topk_counts_router_rows_where_experts_are_shared():
    assert config(experts=(1, 0, 4), topk=2, aliases=((0, 0), None, None)).router_rows(0) == 2


def test_fit_rereads_each_layer():
    cfg = config()
    assert cfg.fit(tree((4, 4), None, (4, 4))) == cfg
    assert cfg.fit(tree((2, 2), None, (3, 3))).experts == (2, 0, 3)
    assert cfg.fit(tree(None, None, (3, 3))).experts == (0, 0, 3)


def test_fit_keeps_an_alias_that_still_holds_and_drops_one_that_does_not():
    cfg = config(experts=(2, 0, 4), aliases=((0, 1, 1, 0), None, None))
    assert cfg.fit(tree((2, 4), None, (4, 4))).aliases == ((0, 1, 1, 0), None, None)
    assert cfg.fit(tree((2, 2), None, (4, 4))).aliases == ()
    assert cfg.fit(tree((4, 4), None, (4, 4))).aliases == ()


@pytest.mark.parametrize(('params', 'message'), [
    (tree((2, 4), None, (4, 4)), 'layer_0/moe: router has 4 rows and there are 2 experts'),
    (tree((4, 4), None), 'no layer_2'),
])
def test_fit_refuses_what_it_cannot_explain(params, message):
    with pytest.raises(ValueError, match=message):
        config().fit(params)


def test_fit_refuses_fewer_experts_than_topk():
    with pytest.raises(ValueError, match='at least topk=2'):
        config(topk=2).fit(tree((1, 1), None, (4, 4)))
