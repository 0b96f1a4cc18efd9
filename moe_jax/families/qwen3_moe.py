"""Qwen3-MoE (Qwen team 2025): renormalized softmax gates, q and k normed head by head."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    experts = common.every_step(f, f.integer(*EXPERTS))
    sliding = f.flag('use_sliding_window', False)
    return common.decoder_config(
        f, experts=experts, hidden=f.integer('moe_intermediate_size'),
        gate=common.softmax_gate(f), qk_norm='head',
        windows=(f.integer('sliding_window'),) * len(experts) if sliding else (),
    )


FAMILY = Family(
    model_type='qwen3_moe', architecture='Qwen3MoeForCausalLM', read=read,
    slots=(*common.LLAMA, *common.experts(common.LAYER + 'mlp'),
           *common.router(common.LAYER + 'mlp.gate.weight')),
    expert_field='num_experts',
    models='Qwen3 30B-A3B, 235B-A22B, Coder 480B-A35B',
    notes='decoder_sparse_step and mlp_only_layers determine which layers have experts; head_dim '
          'is not width / heads.',
    released={
        'model_type': 'qwen3_moe', 'vocab_size': 151936, 'hidden_size': 2048,
        'intermediate_size': 6144, 'moe_intermediate_size': 768, 'num_hidden_layers': 48,
        'num_attention_heads': 32, 'num_key_value_heads': 4, 'head_dim': 128,
        'max_position_embeddings': 40960, 'rope_theta': 1e6, 'num_experts': 128,
        'num_experts_per_tok': 8, 'norm_topk_prob': True, 'torch_dtype': 'bfloat16',
    },
)
