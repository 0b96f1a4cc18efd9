"""DeepSeek-V3 (DeepSeek-AI 2024): latent attention, sigmoid routing in groups with correction."""

from moe_jax.config import Config
from moe_jax.families import common, latent
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    f.only('scoring_func', 'sigmoid')
    f.only('topk_method', 'noaux_tc')
    hidden = f.integer('moe_intermediate_size')
    return common.decoder_config(
        f, experts=common.dense_first(f, f.integer(*EXPERTS), default=3), hidden=hidden,
        shared_hidden=hidden * f.integer('n_shared_experts', default=1),
        **common.sigmoid_groups(f, renormalized=True, scale=2.5, groups=8, used=4),
        **latent.attention(f, interleaved=f.flag('rope_interleave', True)),
    )


MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='deepseek_v3', architecture='DeepseekV3ForCausalLM', read=read,
    slots=(
        *common.LATENT, *common.DECODER, *common.experts(MLP), *common.SHARED_EXPERTS,
        *common.router(MLP + '.gate.weight', correction=MLP + '.gate.e_score_correction_bias'),
    ),
    expert_field='n_routed_experts',
    models='DeepSeek-V3, R1, Moonlight',
    notes='The first layers are dense; a router group is ranked by its two best '
          'experts; the multi-token-prediction layer after the last is not loaded. The released V3 '
          'weights are 8-bit and must be dequantized first.',
    predicts_ahead=True,
    released={
        'model_type': 'deepseek_v3', 'vocab_size': 129280, 'hidden_size': 7168,
        'intermediate_size': 18432, 'moe_intermediate_size': 2048, 'num_hidden_layers': 61,
        'num_attention_heads': 128, 'num_key_value_heads': 128, 'max_position_embeddings': 163840,
        'kv_lora_rank': 512, 'q_lora_rank': 1536, 'qk_nope_head_dim': 128, 'qk_rope_head_dim': 64,
        'v_head_dim': 128, 'n_routed_experts': 256, 'n_shared_experts': 1,
        'num_experts_per_tok': 8, 'first_k_dense_replace': 3, 'norm_topk_prob': True,
        'routed_scaling_factor': 2.5, 'n_group': 8, 'topk_group': 4, 'torch_dtype': 'bfloat16',
        'rope_scaling': {
            'type': 'yarn', 'factor': 40, 'beta_fast': 32, 'beta_slow': 1, 'mscale': 1.0,
            'mscale_all_dim': 1.0, 'original_max_position_embeddings': 4096,
        },
    },
)
