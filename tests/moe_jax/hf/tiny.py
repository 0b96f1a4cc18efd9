"""Tiny checkpoints of every family, in odd shapes, made of our own random numbers.

The folders hold what is on the hub for these families: config.json and safetensors with the names
and layouts of the released models. Every tensor is random, norms, biases and corrections too, so
that forgetting one shows. No torch is needed to make them; transformers opens them.
"""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from moe_jax.families import FAMILIES
from moe_jax.hf import layout

BASE = {
    'vocab_size': 64, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'max_position_embeddings': 48, 'intermediate_size': 20,
    'rms_norm_eps': 1e-4, 'num_experts_per_tok': 2,
}
OLD = {'torch_dtype': 'float32', 'rope_theta': 500.0}  # as transformers 4 wrote them
NEW = {'dtype': 'float32', 'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}
YARN = {'factor': 4.0, 'original_max_position_embeddings': 12, 'beta_fast': 8, 'beta_slow': 1}
SPARSE = {'moe_intermediate_size': 12}
LATENT = {'num_key_value_heads': 4, 'kv_lora_rank': 8, 'qk_nope_head_dim': 6,
          'qk_rope_head_dim': 4, 'v_head_dim': 7}
EIGHT = {'n_routed_experts': 8, 'n_group': 4, 'topk_group': 2, 'n_shared_experts': 1}

VARIANTS = {
    'mixtral': {
        'grouped': OLD | {'num_local_experts': 4},
        'window': NEW | {'num_local_experts': 5, 'num_experts_per_tok': 1, 'sliding_window': 3,
                         'num_key_value_heads': 1},
        'tied': {'dtype': 'float32', 'num_experts': 4, 'head_dim': 8, 'tie_word_embeddings': True,
                 'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 500.0, 'factor': 4.0,
                                     'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                                     'original_max_position_embeddings': 12}},
    },
    'olmoe': {
        'raw': OLD | {'num_experts': 6, 'num_key_value_heads': 4},
        'clipped': {'dtype': 'float32', 'num_local_experts': 4, 'norm_topk_prob': True,
                    'clip_qkv': 0.4,
                    'rope_parameters': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 500.0}},
    },
    'qwen2_moe': {
        'every second': OLD | SPARSE | {'num_experts': 4, 'decoder_sparse_step': 2,
                                        'shared_expert_intermediate_size': 10},
        'window': NEW | SPARSE | {
            'num_experts': 5, 'mlp_only_layers': [1], 'shared_expert_intermediate_size': 16,
            'norm_topk_prob': True, 'use_sliding_window': True, 'sliding_window': 3,
            'max_window_layers': 1, 'qkv_bias': False},
    },
    'qwen3_moe': {
        'wide heads': OLD | SPARSE | {'num_experts': 4, 'head_dim': 10, 'norm_topk_prob': True},
        'dense first': NEW | SPARSE | {
            'num_local_experts': 6, 'num_experts_per_tok': 3, 'mlp_only_layers': [0],
            'tie_word_embeddings': True, 'attention_bias': True, 'head_dim': 8,
            'use_sliding_window': True, 'sliding_window': 4},
    },
    'granitemoe': {
        'multipliers': OLD | {
            'num_local_experts': 4, 'embedding_multiplier': 3.0, 'logits_scaling': 2.0,
            'residual_multiplier': 0.3, 'attention_multiplier': 0.2},
        'tied': NEW | {'num_local_experts': 5, 'num_key_value_heads': 4, 'attention_bias': True,
                       'tie_word_embeddings': True, 'attention_multiplier': 0.4},
    },
    'glm4_moe': {
        'groups': OLD | SPARSE | EIGHT | {
            'first_k_dense_replace': 1, 'head_dim': 12, 'use_qk_norm': True,
            'attention_bias': True, 'partial_rotary_factor': 0.5, 'norm_topk_prob': True,
            'routed_scaling_factor': 1.7, 'num_nextn_predict_layers': 0},
        'raw': {'dtype': 'float32', 'n_routed_experts': 5, 'n_group': 1, 'topk_group': 1,
                'first_k_dense_replace': 0, 'n_shared_experts': 2, 'norm_topk_prob': False,
                'head_dim': 16, 'num_mtp_layers': 0,
                'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0,
                                    'partial_rotary_factor': 0.25}} | SPARSE,
    },
    'dots1': {
        'two shared': OLD | SPARSE | {
            'n_routed_experts': 4, 'n_shared_experts': 2, 'first_k_dense_replace': 1,
            'norm_topk_prob': True, 'routed_scaling_factor': 2.5, 'sliding_window': None},
        'window': NEW | SPARSE | EIGHT | {'max_window_layers': 1, 'sliding_window': 3,
                                          'head_dim': 8},
    },
    'minimax_m2': {
        'half turning': OLD | {'num_local_experts': 4, 'head_dim': 12, 'rotary_dim': 6},
        'all turning': NEW | {'num_local_experts': 5, 'num_experts_per_tok': 3, 'head_dim': 8,
                              'num_key_value_heads': 1},
    },
    'deepseek_v2': {
        'groups': {'torch_dtype': 'float32', 'rope_theta': 500.0, 'q_lora_rank': 10,
                   'topk_method': 'group_limited_greedy', 'first_k_dense_replace': 1,
                   'routed_scaling_factor': 1.5,
                   'rope_scaling': YARN | {'type': 'yarn', 'mscale': 0.7, 'mscale_all_dim': 0.9}
                   } | SPARSE | EIGHT | LATENT,
        'greedy': NEW | SPARSE | LATENT | {'q_lora_rank': None, 'n_routed_experts': 5,
                                           'n_shared_experts': 2, 'attention_bias': True},
    },
    'deepseek_v3': {
        'groups': {'torch_dtype': 'float32', 'rope_theta': 500.0, 'q_lora_rank': 10,
                   'first_k_dense_replace': 1, 'num_nextn_predict_layers': 0,
                   'rope_scaling': YARN | {'type': 'yarn', 'mscale': 1.0, 'mscale_all_dim': 1.0}
                   } | SPARSE | EIGHT | LATENT,
        'halves': NEW | SPARSE | LATENT | {
            'q_lora_rank': None, 'n_routed_experts': 6, 'n_group': 2, 'topk_group': 1,
            'n_shared_experts': 2, 'first_k_dense_replace': 0, 'rope_interleave': False,
            'norm_topk_prob': False, 'num_nextn_predict_layers': 0},
    },
    'gpt_oss': {
        'alternating': {'torch_dtype': 'float32', 'num_local_experts': 4, 'head_dim': 8,
                        'sliding_window': 3, 'rope_theta': 500.0,
                        'rope_scaling': YARN | {'rope_type': 'yarn', 'truncate': False}},
        'full': NEW | {'num_local_experts': 6, 'num_experts_per_tok': 3, 'head_dim': 6,
                       'layer_types': ['full_attention'] * 2, 'swiglu_limit': 0.3,
                       'swiglu_alpha': 1.2},
    },
}
CASES = [(family, variant) for family, variants in VARIANTS.items() for variant in variants]
# One variant of each family, for what runs with every change.
FIRST = [(family, next(iter(variants))) for family, variants in VARIANTS.items()]
TOKENS = np.random.default_rng(5).integers(0, 64, (4, 11))
# Row 1 and 3 are padded on the left, row 2 on the right.
MASK = np.array([[1] * 11, [0] * 4 + [1] * 7, [1] * 8 + [0] * 3, [0] * 9 + [1] * 2])


def config(family: str, variant: str) -> dict:
    """config.json as it would lie on the hub."""
    own = VARIANTS[family][variant]
    raw = {'model_type': family, 'architectures': [FAMILIES[family].architecture]}
    return raw | BASE | own


def tensors(raw: dict, seed: int = 0, dtype: str = 'float32') -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint, by its name on disk; from raw bits, the same everywhere."""
    family = FAMILIES[raw['model_type']]
    found = {}
    for leaf in layout.leaves(family.config(raw), family):
        shape = leaf.slot.disk_shape(leaf.shape)
        for name in leaf.names:
            if name not in found:
                found[name] = random(name, shape, seed).astype(dtype)
    return found


def random(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform numbers: norms about 1, matrices that keep the size of what they multiply."""
    rng = np.random.default_rng([seed, *name.encode()])
    value = 2 * (rng.integers(0, 2**24, shape) / 2**24) - 1
    if 'norm' in name:
        return 1 + 0.4 * value
    if len(shape) == 1 or name.endswith('bias'):
        return 0.3 * value
    return value * 1.2 / math.sqrt(min(shape[-2:]))


def write(folder: Path, family: str, variant: str, *, seed: int = 0, dtype: str = 'float32',
          shards: int = 1) -> Path:
    """A Hugging Face checkpoint, in one file or several with an index."""
    raw = config(family, variant)
    if dtype != 'float32':
        raw = {**raw, **{key: dtype for key in ('dtype', 'torch_dtype') if key in raw}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(raw, indent=1))
    write_tensors(folder, tensors(raw, seed, dtype), shards)
    return folder


def write_tensors(folder: Path, found: dict[str, np.ndarray], shards: int = 1) -> None:
    """The safetensors files of a folder."""
    if shards == 1:
        save_file(found, folder / 'model.safetensors', metadata={'format': 'pt'})
        return
    names = sorted(found)
    weights = {}
    for i in range(shards):
        file = f'model-{i + 1:05}-of-{shards:05}.safetensors'
        part = {name: found[name] for name in names[i::shards]}
        save_file(part, folder / file, metadata={'format': 'pt'})
        weights |= dict.fromkeys(part, file)
    index = {'metadata': {}, 'weight_map': weights}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
