"""config.json in the names of transformers 4 and 5, and the sizes its authors publish."""

import re

import pytest

from moe_jax.families import FAMILIES
from moe_jax.families.fields import Fields
from moe_jax.model import cost
from tests.moe_jax.hf import tiny

TOTAL = {  # billions, as published
    'mixtral': 46.7, 'olmoe': 6.92, 'qwen2_moe': 14.3, 'qwen3_moe': 30.5, 'granitemoe': 1.335,
    'glm4_moe': 106.85, 'dots1': 142.8, 'minimax_m2': 228.7, 'deepseek_v2': 15.7,
    'deepseek_v3': 671.0, 'gpt_oss': 20.9,
}
ACTIVE = {'mixtral': 12.9, 'deepseek_v3': 37.5, 'qwen3_moe': 3.35}
YARN = {'factor': 4.0, 'original_max_position_embeddings': 12, 'beta_fast': 8, 'beta_slow': 1}
LLAMA3 = {'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0}


def config(family='mixtral', drop=(), **fields):
    """The Config of a family's first tiny config.json, some fields dropped, then some set."""
    raw = tiny.config(family, next(iter(tiny.VARIANTS[family])))
    raw = {name: value for name, value in raw.items() if name not in drop}
    return FAMILIES[family].config(raw | fields)


@pytest.mark.parametrize('family', FAMILIES)
def test_released_configs_have_the_published_sizes(family):
    released = FAMILIES[family]
    found = cost.count(released.config(released.released))
    assert found.total / 1e9 == pytest.approx(TOTAL[family], rel=0.005)
    if family in ACTIVE:
        assert found.active / 1e9 == pytest.approx(ACTIVE[family], rel=0.015)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_config_names_its_own_family(family):
    assert FAMILIES[family].released['model_type'] == family == FAMILIES[family].model_type
    assert re.fullmatch(r'\w+ForCausalLM', FAMILIES[family].architecture)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('kind', ['default', 'linear', 'yarn', 'llama3'])
def test_both_ways_to_write_rope_are_one(family, kind):
    own = {'default': {}, 'linear': {'factor': 2.0}, 'yarn': YARN, 'llama3': LLAMA3}[kind]
    four = {'rope_theta': 700.0, 'rope_scaling': {'type': kind} | own}
    five = {'rope_parameters': {'rope_type': kind, 'rope_theta': 700.0} | own}
    later_four = {'rope_theta': 700.0, 'rope_scaling': {'rope_type': kind} | own}
    drop = {*four, *five}
    found = {config(family, drop, **fields) for fields in (four, later_four, five)}
    assert len(found) == 1 and found.pop().rope.theta == 700.0
    assert config(family, drop, **four, **five) == config(family, drop, **five)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16', 'torch.bfloat16'])
def test_both_names_of_the_dtype_are_one(family, dtype):
    old = config(family, ['dtype'], torch_dtype=dtype)
    assert old == config(family, ['torch_dtype'], dtype=dtype)
    assert old == config(family, torch_dtype=dtype, dtype=dtype)
    assert old.dtype == dtype.removeprefix('torch.')


NAMES = ('num_experts', 'num_local_experts', 'n_routed_experts', 'moe_num_experts')


@pytest.mark.parametrize('family', FAMILIES)
def test_all_names_of_the_number_of_experts_are_one(family):
    found = {config(family, NAMES, **{name: 8}) for name in NAMES}
    assert found == {config(family, **dict.fromkeys(NAMES, 8))} and max(found.pop().experts) == 8


def test_all_names_of_the_experts_per_token_are_one():
    names = ('num_experts_per_tok', 'num_experts_per_token', 'moe_topk', 'moe_k')
    found = {config(drop=names, **{name: 3}) for name in names}
    assert len(found) == 1 and found.pop().topk == 3


@pytest.mark.parametrize(('fields', 'message'), [
    ({'num_local_experts': 4, 'num_experts': 5}, 'num_experts=5 and num_local_experts=4 disagree'),
    ({'num_experts': None, 'n_routed_experts': 6},
     'num_local_experts=4 and n_routed_experts=6 disagree'),
    ({'moe_k': 3}, 'num_experts_per_tok=2 and moe_k=3 disagree'),
    ({'dtype': 'bfloat16'}, "dtype='bfloat16' and torch_dtype='float32' disagree"),
    ({'rope_parameters': {'rope_theta': 7.0}},
     r'rope_parameters\.rope_theta=7\.0 and rope_theta=500\.0 disagree'),
    ({'rope_parameters': {'rope_type': 'linear', 'factor': 2.0},
      'rope_scaling': {'type': 'linear', 'factor': 3.0}},
     r'rope_parameters\.factor=2\.0 and rope_scaling\.factor=3\.0 disagree'),
    ({'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}, 'rope_scaling': {'type': 'yarn'}},
     r"rope_parameters\.rope_type='linear' and rope_scaling\.type='yarn' disagree"),
])
def test_two_names_that_disagree_are_both_told(fields, message):
    with pytest.raises(ValueError, match=rf'config\.json: {message}; keep the one that is right'):
        config(**fields)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "rope_type='dynamic' is not supported"),
    ({'rope_scaling': {'rope_type': 'longrope'}}, "rope_type='longrope' is not supported; valid:"),
    ({'rope_scaling': {'rope_type': 'yam'}}, "did you mean 'yarn'"),
    ({'rope_scaling': {'rope_type': ['yarn']}}, 'rope_type='),
    ({'rope_scaling': 2.0}, r'rope_scaling=2\.0: must be one set of numbers'),
    ({'rope_parameters': {'full_attention': {'rope_theta': 1.0}}}, 'rope_parameters={.*one set'),
    ({'rope_scaling': {'type': 'linear', 'factor': 'two'}}, "factor='two': must be a finite"),
    ({'rope_scaling': {'type': 'linear', 'factor': -2.0}}, r'factor=-2\.0: must be a finite'),
    ({'rope_scaling': {'type': 'linear', 'factor': 0}}, 'factor and scale must be above 0'),
    ({'rope_scaling': {'type': 'llama3', 'factor': 2.0}}, 'low_freq_factor is missing'),
    ({'rope_scaling': {'type': 'llama3'} | LLAMA3 | {'low_freq_factor': 4.0}},
     r'low_freq=4\.0: must be below high_freq=4\.0'),
    ({'rope_scaling': {'type': 'yarn', 'factor': float('inf')}}, 'factor=inf'),
    ({'rope_scaling': {'type': 'yarn'} | YARN | {'beta_fast': []}}, r'beta_fast=\[\]'),
    ({'rope_scaling': {'type': 'yarn'} | YARN | {'truncate': 'no'}}, "truncate='no'"),
    ({'rope_scaling': {'type': 'yarn'} | YARN | {'mscale': 'x'}}, "mscale='x'"),
    ({'rope_scaling': {'type': 'yarn', 'original_max_position_embeddings': 0}},
     'original_max_position_embeddings=0'),
    ({'rope_theta': 1, 'rope_scaling': {'type': 'yarn'} | YARN}, 'needs theta above 1'),
    ({'rope_theta': 0}, 'theta, factor and scale must be above 0'),
    ({'rope_theta': '1e6'}, "rope_theta='1e6'"), ({'rope_theta': [1.0]}, r'rope_theta=\[1\.0\]'),
    ({'rope_theta': float('nan')}, 'rope_theta=nan'), ({'rope_theta': 10**400}, 'rope_theta=1000'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' is not supported .*only 'silu', 'swish'"),
    ({'torch_dtype': 'float46'}, "dtype='float46'; did you mean 'float"),
    ({'torch_dtype': 'int8'}, "dtype='int8'; .*valid: float32, bfloat16, float16"),
    ({'torch_dtype': ['float32']}, 'dtype='),
    ({'vocab_size': None}, 'vocab_size is missing'),
    ({'num_local_experts': 0}, 'num_local_experts=0: must be an integer, at least 1'),
    ({'num_local_experts': None},
     'num_experts or num_local_experts or n_routed_experts or moe_num_experts is missing'),
])
def test_what_is_not_supported_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(('family', 'fields', 'message'), [
    ('gpt_oss', {'layer_types': ['full_attention']}, 'layer_types=.*must be 2 times'),
    ('gpt_oss', {'layer_types': ['full_attention', 'chunked_attention']}, 'layer_types='),
    ('gpt_oss', {'layer_types': [['full_attention'], {}]}, 'layer_types='),
    ('gpt_oss', {'layer_types': 'full_attention'}, "layer_types='full_attention'"),
    ('dots1', {'layer_types': ['sliding_attention'] * 2}, 'sliding_window is missing'),
    ('dots1', {'layer_types': ['sliding_attention'] * 2, 'sliding_window': '3'},
     "sliding_window='3'"),
    ('qwen2_moe', {'use_sliding_window': True}, 'sliding_window is missing'),
    ('qwen2_moe', {'use_sliding_window': 1}, 'use_sliding_window=1: must be true or false'),
    ('qwen3_moe', {'hidden_act': 'gelu_new'}, "hidden_act='gelu_new'"),
    ('deepseek_v2', {'norm_topk_prob': True}, 'norm_topk_prob=True is not supported'),
    ('deepseek_v2', {'topk_method': 'noaux_tc'}, "topk_method='noaux_tc'.*'group_limited_greedy'"),
    ('deepseek_v3', {'scoring_func': 'softmax'}, "scoring_func='softmax'.*only 'sigmoid'"),
    ('deepseek_v3', {'rope_scaling': {'type': 'yarn', 'mscale_all_dim': 1.0}}, 'factor is missing'),
    ('deepseek_v3', {'rope_scaling': {'type': 'yarn'} | YARN | {'mscale_all_dim': 1e300}},
     'attention_scale=inf'),
    ('minimax_m2', {'rotary_dim': 24}, 'rope: 2 times .*rotary_dim'),
    ('granitemoe', {'logits_scaling': 0}, 'logits_scaling=0.0: must be above 0'),
])
def test_what_a_family_does_not_have_is_refused_by_field(family, fields, message):
    with pytest.raises(ValueError, match=message):
        config(family, **fields)


def test_layer_types_say_which_layers_look_back():
    kinds = ['full_attention', 'sliding_attention']
    assert config('dots1', sliding_window=3, layer_types=kinds).windows == (0, 3)
    assert config('gpt_oss', layer_types=kinds[:1] * 2).windows == ()
    assert config('gpt_oss').windows == (3, 0)


def test_null_counts_as_absent_and_messages_say_where():
    fields = Fields({'a': None, 'b': 2}, 'x/config.json')
    assert fields.get('a', 'b') == fields.integer('a', 'b') == 2
    assert fields.get('a', default=5) == fields.integer('a', default=5) == 5
    assert fields.number('a', default=1) == 1.0 and isinstance(fields.number('b'), float)
    with pytest.raises(ValueError, match=r'^x/config\.json: a or c is missing$'):
        fields.get('a', 'c')
    with pytest.raises(ValueError, match=r'^x/config\.json: b=2: must be an integer, at least'):
        fields.integer('a', 'b', least=3)
