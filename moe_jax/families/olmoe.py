"""OLMoE (Muennighoff et al. 2024): raw softmax gates, norms over all heads' q and k at once."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    return common.decoder_config(
        f, experts=common.everywhere(f, f.integer(*EXPERTS)),
        hidden=f.integer('intermediate_size'), eps=1e-5, gate=common.softmax_gate(f),
        qk_norm='full', clip_qkv=f.get('clip_qkv', default=None),
        balance=f.get('router_aux_loss_coef', default=0.01),
    )


FAMILY = Family(
    model_type='olmoe', architecture='OlmoeForCausalLM', read=read,
    slots=(*common.LLAMA, *common.experts(common.LAYER + 'mlp'),
           *common.router(common.LAYER + 'mlp.gate.weight')),
    expert_field='num_experts',
    models='OLMoE 1B-7B',
    released={
        'model_type': 'olmoe', 'vocab_size': 50304, 'hidden_size': 2048, 'intermediate_size': 1024,
        'num_hidden_layers': 16, 'num_attention_heads': 16, 'num_key_value_heads': 16,
        'max_position_embeddings': 4096, 'num_experts': 64, 'num_experts_per_tok': 8,
        'norm_topk_prob': False, 'torch_dtype': 'bfloat16',
    },
)
