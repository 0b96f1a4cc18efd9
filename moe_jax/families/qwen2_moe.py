"""Qwen1.5-MoE and Qwen2-MoE (Qwen team 2024): raw softmax gates beside a gated shared expert."""

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family, Slot
from moe_jax.families.fields import EXPERTS, Fields


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    experts = common.every_step(f, f.integer(*EXPERTS))
    return common.decoder_config(
        f, experts=experts, hidden=f.integer('moe_intermediate_size'),
        gate=common.softmax_gate(f), qkv_bias=f.flag('qkv_bias', True), out_bias=False,
        shared_hidden=f.integer('shared_expert_intermediate_size'), shared_gate=True,
        windows=f.windows(len(experts), _windows(f, len(experts))),
    )


def _windows(f: Fields, layers: int) -> tuple[int, ...]:
    """Window of each layer: every other of the first max_window_layers, if windows are on."""
    if not f.flag('use_sliding_window', False):
        return ()
    window, last = f.integer('sliding_window'), f.integer('max_window_layers', default=28)
    return tuple(window if i % 2 == 0 and i < last else 0 for i in range(layers))


MLP = common.LAYER + 'mlp'
FAMILY = Family(
    model_type='qwen2_moe', architecture='Qwen2MoeForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.experts(MLP), *common.router(MLP + '.gate.weight'),
        *common.ffn('layer_{l}/moe/shared', MLP + '.shared_expert'),
        Slot('layer_{l}/moe/shared/score', MLP + '.shared_expert_gate.weight', transposed=True),
    ),
    expert_field='num_experts',
    models='Qwen1.5-MoE A2.7B, Qwen2 57B-A14B',
    notes='decoder_sparse_step and mlp_only_layers determine which layers have experts.',
    released={
        'model_type': 'qwen2_moe', 'vocab_size': 151936, 'hidden_size': 2048,
        'intermediate_size': 5632, 'moe_intermediate_size': 1408,
        'shared_expert_intermediate_size': 5632, 'num_hidden_layers': 24,
        'num_attention_heads': 16, 'num_key_value_heads': 16, 'max_position_embeddings': 8192,
        'rope_theta': 1e6, 'num_experts': 60, 'num_experts_per_tok': 4, 'norm_topk_prob': False,
        'torch_dtype': 'bfloat16',
    },
)
