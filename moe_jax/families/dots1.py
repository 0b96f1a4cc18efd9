"""dots.llm1 (rednote-hilab 2025): sigmoid routing with correction, q and k normed head by head."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    hidden = f.integer('moe_intermediate_size')
    experts = common.dense_first(f, f.integer(*EXPERTS))
    return common.decoder_config(
        f, experts=experts, hidden=hidden, qk_norm='head',
        shared_hidden=hidden * f.integer('n_shared_experts'),
        windows=f.windows(len(experts), _windows(f, len(experts))),
        **common.sigmoid_groups(f, renormalized=False, scale=1.0, groups=1, used=1),
    )


def _windows(f: Fields, layers: int) -> tuple[int, ...]:
    """Window of each layer: sliding_window, if given, in layers from max_window_layers on."""
    window = f.integer('sliding_window', default=0)
    first = f.integer('max_window_layers', default=62)
    return tuple(window if i >= first else 0 for i in range(layers))


MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='dots1', architecture='Dots1ForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.experts(MLP), *common.SHARED_EXPERTS,
        *common.router(MLP + '.gate.weight', correction=MLP + '.gate.e_score_correction_bias'),
    ),
    expert_field='n_routed_experts',
    models='dots.llm1',
    notes='The first layers are dense.',
    released={
        'model_type': 'dots1', 'vocab_size': 152064, 'hidden_size': 4096,
        'intermediate_size': 10944, 'moe_intermediate_size': 1408, 'num_hidden_layers': 62,
        'num_attention_heads': 32, 'num_key_value_heads': 32, 'max_position_embeddings': 32768,
        'rope_theta': 1e7, 'n_routed_experts': 128, 'n_shared_experts': 2,
        'num_experts_per_tok': 6, 'first_k_dense_replace': 1, 'norm_topk_prob': True,
        'routed_scaling_factor': 2.5, 'n_group': 1, 'topk_group': 1, 'torch_dtype': 'bfloat16',
    },
)
