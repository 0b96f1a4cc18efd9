"""Mixtral (Jiang et al. 2024): softmax routing, the chosen gates renormalized, in every layer."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    experts = common.everywhere(f, f.integer(*EXPERTS))
    window = f.integer('sliding_window', default=0)
    return common.decoder_config(
        f, experts=experts, hidden=f.integer('intermediate_size'), theta=1e6, eps=1e-5,
        gate='softmax_topk_renorm', qkv_bias=False, out_bias=False,
        jitter=f.get('router_jitter_noise', default=0.0),
        windows=(window,) * len(experts) if window else (),
    )


MOE = common.LAYER + 'block_sparse_moe'
FAMILY = Family(
    model_type='mixtral', architecture='MixtralForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.experts(MOE, 'w1', 'w3', 'w2', fused=common.LAYER + 'mlp'),
        *common.router(MOE + '.gate.weight'), *common.router(common.LAYER + 'mlp.gate.weight'),
    ),
    expert_field='num_local_experts',
    models='Mixtral 8x7B, 8x22B',
    notes='The sliding window, if the config has one, applies to every layer.',
    released={
        'model_type': 'mixtral', 'vocab_size': 32000, 'hidden_size': 4096,
        'intermediate_size': 14336, 'num_hidden_layers': 32, 'num_attention_heads': 32,
        'num_key_value_heads': 8, 'max_position_embeddings': 32768, 'rope_theta': 1e6,
        'num_local_experts': 8, 'num_experts_per_tok': 2, 'torch_dtype': 'bfloat16',
    },
)
