"""A config.json that makes no model, or not the one on disk: refused by field, nothing allocated.
"""

import json
import time
import tracemalloc

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import moe_jax
from moe_jax.families import FAMILIES
from moe_jax.hf.load import open_folder
from tests.moe_jax.hf import tiny

MOE = 'model.layers.0.block_sparse_moe.'


@pytest.fixture
def folder(tmp_path):
    return tiny.write(tmp_path, 'mixtral', 'grouped')


def changed(folder, **fields):
    """Change fields of a folder's config.json; None removes one."""
    raw = json.loads((folder / 'config.json').read_text()) | fields
    (folder / 'config.json').write_text(json.dumps(
        {name: value for name, value in raw.items() if value is not None}))
    return folder


@pytest.mark.parametrize('text', [
    '', '{', 'null', '[]', '"mixtral"', '7', '[' * 100_000, '{"a":' * 100_000, '{"a": 1} x', '\0',
    '{"a": "\xff"}',
], ids=lambda text: text[:8])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / 'config.json').write_bytes(text.encode('latin1'))
    for opener in (open_folder, moe_jax.load):
        with pytest.raises(ValueError, match=r'config\.json: (not JSON|holds \w+, not an object)'):
            opener(folder)


def test_a_config_beyond_all_size_is_not_read(folder):
    with (folder / 'config.json').open('r+b') as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r'config\.json: not JSON: larger than'):
        open_folder(folder)


@pytest.mark.parametrize('kind', ['llama', 'Mixtral', None, 7])
def test_an_unknown_model_type_lists_what_is_supported(folder, kind):
    changed(folder, model_type=kind)
    with pytest.raises(ValueError, match=f'model_type={kind!r} is not supported') as told:
        open_folder(folder)
    assert ', '.join(FAMILIES) in str(told.value)
    assert 'see moe_jax/families/__init__.py for how to add one' in str(told.value)


GROUPS, LATENT = 'glm4_moe/groups', 'deepseek_v3/groups'


@pytest.mark.parametrize(('model', 'fields', 'message'), [
    ('mixtral/grouped', {'hidden_size': 2**40}, 'hidden_size=1099511627776'),
    ('mixtral/grouped', {'hidden_size': 0}, 'hidden_size=0'),
    ('mixtral/grouped', {'hidden_size': '24'}, "hidden_size='24'"),
    ('mixtral/grouped', {'hidden_size': 24.0}, 'hidden_size=24.0'),
    ('mixtral/grouped', {'hidden_size': True}, 'hidden_size=True'),
    ('mixtral/grouped', {'hidden_size': None}, 'hidden_size is missing'),
    ('mixtral/grouped', {'hidden_size': float('nan')}, 'hidden_size=nan'),
    ('mixtral/grouped', {'hidden_size': 10**400}, 'hidden_size=1000'),
    ('mixtral/grouped', {'num_hidden_layers': 10**9}, 'num_hidden_layers=1000000000'),
    ('mixtral/grouped', {'num_hidden_layers': 5000}, 'num_hidden_layers=5000: must be 1 to 4096'),
    ('mixtral/grouped', {'num_hidden_layers': 0}, 'num_hidden_layers=0'),
    ('mixtral/grouped', {'num_hidden_layers': 4096}, 'have 2 layers, config.json says 4096'),
    ('mixtral/grouped', {'vocab_size': -1}, 'vocab_size=-1'),
    ('mixtral/grouped', {'vocab_size': 2**24 - 1}, r'says \[16777215, 24\]'),
    ('mixtral/grouped', {'max_position_embeddings': 2**40}, 'max_position_embeddings=109'),
    ('mixtral/grouped', {'num_attention_heads': 0}, 'num_attention_heads=0'),
    ('mixtral/grouped', {'num_attention_heads': 5}, 'hidden_size=24 .* num_attention_heads=5'),
    ('mixtral/grouped', {'num_key_value_heads': 0}, 'num_key_value_heads=0'),
    ('mixtral/grouped', {'num_key_value_heads': 3}, 'heads=4 is not divisible by kv_heads=3'),
    ('mixtral/grouped', {'head_dim': 0}, 'head_dim=0'),
    ('mixtral/grouped', {'head_dim': 7}, r'rope\.dim=7: must be even'),
    ('mixtral/grouped', {'head_dim': 2**20}, r'says \[24, 4194304\]'),
    ('mixtral/grouped', {'num_experts_per_tok': 5}, 'experts.*=4: .* needs at least topk=5'),
    ('mixtral/grouped', {'num_experts_per_tok': 0}, 'topk=0'),
    ('mixtral/grouped', {'num_local_experts': 0}, 'num_local_experts=0'),
    ('mixtral/grouped', {'num_local_experts': 2**20}, 'experts=1048576 in a layer'),
    ('mixtral/grouped', {'num_local_experts': 2**40}, 'num_local_experts=109'),
    ('mixtral/grouped', {'num_local_experts': 2**16, 'num_hidden_layers': 4096},
     'experts=268435456 in all layers'),
    ('mixtral/grouped', {'sliding_window': -3}, 'sliding_window=-3'),
    ('mixtral/grouped', {'rms_norm_eps': float('nan')}, 'norm_eps=nan'),
    ('mixtral/grouped', {'rms_norm_eps': '1e-5'}, "norm_eps='1e-5'"),
    ('mixtral/grouped', {'rms_norm_eps': 10**400}, 'norm_eps=1000'),
    ('mixtral/grouped', {'tie_word_embeddings': 'no'}, "tie_word_embeddings='no'"),
    ('qwen2_moe/every second', {'num_experts': 0}, 'num_experts=0'),
    ('qwen2_moe/every second', {'decoder_sparse_step': 0}, 'decoder_sparse_step=0'),
    ('qwen2_moe/every second', {'mlp_only_layers': 1}, 'mlp_only_layers=1'),
    ('qwen2_moe/every second', {'mlp_only_layers': ['1']}, r"mlp_only_layers=\['1'\]"),
    (GROUPS, {'n_group': 3}, r'experts\[1\]=8: 3 groups .*; nearest: 9'),
    (GROUPS, {'n_group': 0}, 'groups=0'),
    (GROUPS, {'topk_group': 5}, 'groups_used=5: there are groups=4'),
    (GROUPS, {'n_shared_experts': 2**23}, 'shared_hidden=100663296'),
    (GROUPS, {'partial_rotary_factor': 1.5}, 'partial_rotary_factor'),
    (GROUPS, {'partial_rotary_factor': float('inf')}, 'partial_rotary_factor=inf'),
    (LATENT, {'kv_lora_rank': 0}, r'latent\.kv=0'),
    (LATENT, {'q_lora_rank': 2**40}, 'q_lora_rank=109'),
    (LATENT, {'qk_rope_head_dim': 0}, r'qk_rope_head_dim=0'),
])
def test_absurd_sizes_are_refused_by_field(folder_of, tmp_path, model, fields, message):
    folder = folder_of(*model.split('/'))
    (tmp_path / 'config.json').write_bytes((folder / 'config.json').read_bytes())
    (tmp_path / 'model.safetensors').hardlink_to(folder / 'model.safetensors')
    changed(tmp_path, **fields)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6 and time.perf_counter() - begin < 5


@pytest.mark.parametrize(('fields', 'messages'), [
    ({'hidden_size': 32}, [
        'of another shape: ', 'model.embed_tokens.weight is [64, 24], config.json says [64, 32]']),
    ({'num_local_experts': 6}, [
        f'missing: {MOE}experts.4.', f'{MOE}gate.weight is [4, 24], config.json says [6, 24]']),
    ({'num_local_experts': 3}, [
        f'{MOE}gate.weight is [4, 24], config.json says [3, 24]',
        f'not known for mixtral: {MOE}experts.3.w1.weight']),
    ({'num_hidden_layers': 1}, ['the tensors have 2 layers, config.json says 1']),
    ({'num_hidden_layers': 3}, ['the tensors have 2 layers, config.json says 3']),
    ({'tie_word_embeddings': True, 'vocab_size': 65}, [
        'embed_tokens.weight is [64, 24], config.json says [65, 24]',
        '(likewise 1 more: lm_head.weight)']),
])
def test_a_config_of_another_model_is_told_by_tensors(folder, fields, messages):
    changed(folder, **fields)
    with pytest.raises(ValueError, match='config') as told:
        moe_jax.load(folder)
    assert all(message in str(told.value) for message in messages), told.value


def test_missing_misshapen_and_unknown_tensors_are_told_at_once(folder):
    raw = tiny.tensors(tiny.config('mixtral', 'grouped'))
    del raw['model.norm.weight']
    raw |= {'vision.weight': np.ones(3), MOE + 'experts.1.w2.weight': np.ones((24, 9))}
    save_file({name: value.astype('float32') for name, value in raw.items()},
              folder / 'model.safetensors')
    with pytest.raises(ValueError) as told:
        moe_jax.load(folder)
    assert str(told.value) == (
        f'{folder}: tensors do not fit config.json: missing: model.norm.weight; of another shape: '
        f'{MOE}experts.1.w2.weight is [24, 9], config.json says [24, 20]; not known for mixtral: '
        'vision.weight')


@pytest.mark.parametrize('layers', [1, 3])
def test_a_layer_too_many_is_no_module_for_prediction(tmp_path, layers):
    folder = changed(tiny.write(tmp_path, 'deepseek_v3', 'groups'), num_hidden_layers=layers)
    with pytest.raises(ValueError, match=f'have 2 layers, config.json says {layers}'):
        moe_jax.load(folder)


def test_a_module_for_prediction_is_left_out(tmp_path):
    folder = tiny.write(tmp_path, 'deepseek_v3', 'groups')
    cfg, params = moe_jax.load(folder)
    ahead = {f'model.layers.2.{name}.weight': np.ones((24, 24), 'float32')
             for name in ('eh_proj', 'enorm', 'self_attn.o_proj', 'shared_head.norm')}
    save_file(tiny.tensors(tiny.config('deepseek_v3', 'groups')) | ahead,
              folder / 'model.safetensors')
    same_cfg, same = moe_jax.load(folder)
    assert cfg == same_cfg
    jax.tree.map(np.testing.assert_array_equal, params, same)
