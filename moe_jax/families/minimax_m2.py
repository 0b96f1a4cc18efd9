"""MiniMax-M2 (MiniMax 2025): sigmoid routing with correction, norms over all heads' q and k."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json; released files give the rotary channels in `rotary_dim`."""
    head_dim = f.integer('head_dim', default=128)
    fraction = f.integer('rotary_dim', default=head_dim) / max(1, head_dim)
    return common.decoder_config(
        f, experts=common.everywhere(f, f.integer(*EXPERTS)),
        hidden=f.integer('intermediate_size'), default_head_dim=128, qk_norm='full',
        rope=f.rope(head_dim, 5e6, fraction=fraction), gate='sigmoid_topk_renorm', correction=True,
        qkv_bias=False, out_bias=False, jitter=f.get('router_jitter_noise', default=0.0),
    )


MOE = common.LAYER + 'block_sparse_moe'
MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='minimax_m2', architecture='MiniMaxM2ForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.experts(MOE, 'w1', 'w3', 'w2', fused=MLP),
        *common.router(MOE + '.gate.weight', correction=MOE + '.e_score_correction_bias'),
        *common.router(MLP + '.gate.weight', correction=MLP + '.e_score_correction_bias'),
    ),
    expert_field='num_local_experts',
    models='MiniMax-M2',
    notes='The correction bias is stored beside the gate, not in it; multi-token-prediction layers '
          'are not loaded.',
    predicts_ahead=True,
    released={
        'model_type': 'minimax_m2', 'vocab_size': 200064, 'hidden_size': 3072,
        'intermediate_size': 1536, 'num_hidden_layers': 62, 'num_attention_heads': 48,
        'num_key_value_heads': 8, 'head_dim': 128, 'rotary_dim': 64,
        'max_position_embeddings': 196608, 'rope_theta': 5e6, 'num_local_experts': 256,
        'num_experts_per_tok': 8, 'torch_dtype': 'bfloat16',
    },
)
