"""DeepSeek-V2 (DeepSeek-AI 2024): latent attention, softmax gates, optionally by groups."""

from typing import Any

from moe_jax.config import Config
from moe_jax.families import common, latent
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json; norm_topk_prob is rejected, as transformers never reads it."""
    f.only('norm_topk_prob', False)
    f.only('mlp_bias', False)
    f.only('scoring_func', 'softmax')
    hidden = f.integer('moe_intermediate_size')
    return common.decoder_config(
        f, experts=common.dense_first(f, f.integer(*EXPERTS)), hidden=hidden, gate='softmax_topk',
        gate_scale=f.get('routed_scaling_factor', default=1.0),
        shared_hidden=hidden * f.integer('n_shared_experts', default=2), **_groups(f),
        **latent.attention(f, interleaved=True),
    )


def _groups(f: Fields) -> dict[str, Any]:
    f.only('topk_method', 'greedy', 'group_limited_greedy')
    if f.get('topk_method', default='greedy') == 'greedy':
        return {}
    return {'groups': f.integer('n_group'), 'groups_used': f.integer('topk_group')}


MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='deepseek_v2', architecture='DeepseekV2ForCausalLM', read=read,
    slots=(*common.LATENT, *common.DECODER, *common.experts(MLP), *common.SHARED_EXPERTS,
           *common.router(MLP + '.gate.weight')),
    expert_field='n_routed_experts',
    models='DeepSeek-V2, V2-Lite, Coder-V2',
    notes='The first layers are dense; a router group is ranked by its best expert.',
    released={
        'model_type': 'deepseek_v2', 'vocab_size': 102400, 'hidden_size': 2048,
        'intermediate_size': 10944, 'moe_intermediate_size': 1408, 'num_hidden_layers': 27,
        'num_attention_heads': 16, 'num_key_value_heads': 16, 'max_position_embeddings': 163840,
        'kv_lora_rank': 512, 'q_lora_rank': None, 'qk_nope_head_dim': 128,
        'qk_rope_head_dim': 64, 'v_head_dim': 128, 'n_routed_experts': 64, 'n_shared_experts': 2,
        'num_experts_per_tok': 6, 'first_k_dense_replace': 1, 'routed_scaling_factor': 1.0,
        'topk_method': 'greedy', 'norm_topk_prob': False, 'torch_dtype': 'bfloat16',
        'rope_scaling': {
            'type': 'yarn', 'factor': 40, 'beta_fast': 32, 'beta_slow': 1, 'mscale': 0.707,
            'mscale_all_dim': 0.707, 'original_max_position_embeddings': 4096,
        },
    },
)
