"""Granite MoE (IBM 2024): softmax over the chosen logits, four multipliers, fused experts."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    scaling = f.number('logits_scaling', default=1.0)
    if not scaling > 0:
        raise ValueError(f'{f.where}: logits_scaling={scaling}: must be above 0')
    return common.decoder_config(
        f, experts=common.everywhere(f, f.integer(*EXPERTS)),
        hidden=f.integer('intermediate_size'), gate='topk_softmax',
        attention_scale=f.get('attention_multiplier', default=1.0),
        embed_scale=f.get('embedding_multiplier', default=1.0),
        residual_scale=f.get('residual_multiplier', default=1.0), logit_scale=1.0 / scaling,
    )


MOE = common.LAYER + 'block_sparse_moe'
FAMILY = Family(
    model_type='granitemoe', architecture='GraniteMoeForCausalLM', read=read,
    slots=(
        *common.LLAMA,
        *common.fused_experts(MOE + '.input_linear.weight', MOE + '.output_linear.weight'),
        *common.fused_experts(MOE + '.experts.gate_up_proj', MOE + '.experts.down_proj'),
        *common.router(MOE + '.router.layer.weight'), *common.router(MOE + '.router.weight'),
    ),
    expert_field='num_local_experts',
    models='Granite 3.0 and 3.1 1B-A400M, 3B-A800M',
    notes='The attention scale is a field of the config, not head_dim^-0.5.',
    released={
        'model_type': 'granitemoe', 'vocab_size': 49155, 'hidden_size': 1024,
        'intermediate_size': 512, 'num_hidden_layers': 24, 'num_attention_heads': 16,
        'num_key_value_heads': 8, 'max_position_embeddings': 4096, 'num_local_experts': 32,
        'num_experts_per_tok': 8, 'tie_word_embeddings': True, 'embedding_multiplier': 12.0,
        'logits_scaling': 6.0, 'residual_multiplier': 0.22, 'attention_multiplier': 0.015625,
        'torch_dtype': 'bfloat16',
    },
)
