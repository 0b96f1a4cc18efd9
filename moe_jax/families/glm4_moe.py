"""GLM-4.5 and later (Zhipu AI 2025): sigmoid routing with correction, half-rotary heads."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    hidden = f.integer('moe_intermediate_size')
    head_dim = f.integer('head_dim', default=f.integer('hidden_size') // max(
        1, f.integer('num_attention_heads')))
    return common.decoder_config(
        f, experts=common.dense_first(f, f.integer(*EXPERTS), default=1), hidden=hidden, eps=1e-5,
        rope=f.rope(head_dim, 10_000.0, fraction=0.5), out_bias=False,
        qk_norm='head' if f.flag('use_qk_norm', False) else 'none',
        shared_hidden=hidden * f.integer('n_shared_experts', default=1),
        **common.sigmoid_groups(f, renormalized=True, scale=1.0, groups=1, used=1),
    )


MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='glm4_moe', architecture='Glm4MoeForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.experts(MLP), *common.SHARED_EXPERTS,
        *common.router(MLP + '.gate.weight', correction=MLP + '.gate.e_score_correction_bias'),
    ),
    expert_field='n_routed_experts',
    models='GLM-4.5, 4.5-Air, 4.6',
    notes='The first layers are dense; a multi-token-prediction layer after the last is not '
          'loaded.',
    predicts_ahead=True,
    released={
        'model_type': 'glm4_moe', 'vocab_size': 151552, 'hidden_size': 4096,
        'intermediate_size': 10944, 'moe_intermediate_size': 1408, 'num_hidden_layers': 46,
        'num_attention_heads': 96, 'num_key_value_heads': 8, 'head_dim': 128,
        'max_position_embeddings': 131072, 'rope_theta': 1e6, 'partial_rotary_factor': 0.5,
        'attention_bias': True, 'use_qk_norm': False, 'n_routed_experts': 128,
        'n_shared_experts': 1, 'num_experts_per_tok': 8, 'first_k_dense_replace': 1,
        'norm_topk_prob': True, 'routed_scaling_factor': 1.0, 'n_group': 1, 'topk_group': 1,
        'torch_dtype': 'bfloat16',
    },
)
