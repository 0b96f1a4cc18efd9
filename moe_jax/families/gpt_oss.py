"""gpt-oss (OpenAI 2025): biased router, softmax over the chosen logits, sinks, clamped SwiGLU."""

from typing import Any

from moe_jax.config import Config
from moe_jax.families import common
from moe_jax.families.family import Family, Part, Slot
from moe_jax.families.fields import EXPERTS, Fields

YARN = {'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0,
        'truncate': False, 'original_max_position_embeddings': 4096}


def read(f: Fields) -> Config:
    """The Config of a config.json."""
    experts = common.everywhere(f, f.integer(*EXPERTS))
    bias = f.flag('attention_bias', True)
    return common.decoder_config(
        f, experts=experts, hidden=f.integer('intermediate_size'), eps=1e-5, default_head_dim=64,
        gate='topk_softmax', router_bias=True, ffn='swiglu_clamped', ffn_bias=True,
        ffn_limit=f.get('swiglu_limit', default=7.0),
        ffn_alpha=f.get('swiglu_alpha', default=1.702), sinks=True, qkv_bias=bias, out_bias=bias,
        windows=f.windows(len(experts), _windows(f, len(experts))), rope=_rope(f),
    )


def _windows(f: Fields, layers: int) -> tuple[int, ...]:
    """Window of each layer: sliding in every other layer, beginning with the first."""
    window = f.integer('sliding_window', default=128)
    return tuple(window if i % 2 == 0 else 0 for i in range(layers))


def _rope(f: Fields) -> Any:
    """YaRN, with the family's own numbers for those that config.json lacks."""
    has_rope = any(f.raw.get(name) for name in ('rope_parameters', 'rope_scaling'))
    fields = f if has_rope else Fields({**f.raw, 'rope_parameters': YARN}, f.where)
    return fields.rope(f.integer('head_dim', default=64), 150_000.0)


MLP = common.LAYER + 'mlp'
EXPERT = 'layer_{l}/moe/experts/'


def _interleaved(path: str, name: str, axis: int) -> tuple[Slot, ...]:
    """Slots of gate and up in one tensor with alternating columns."""
    return tuple(Slot(f'{EXPERT}{ours}{path}', name, part=Part(axis, i, 2, strided=True))
                 for i, ours in enumerate(common.INPUTS))


FAMILY = Family(
    model_type='gpt_oss', architecture='GptOssForCausalLM', read=read,
    slots=(
        *common.LLAMA, *common.router(MLP + '.router.weight', MLP + '.router.bias'),
        *_interleaved('', MLP + '.experts.gate_up_proj', 2),
        *_interleaved('_bias', MLP + '.experts.gate_up_proj_bias', 1),
        Slot(EXPERT + 'down', MLP + '.experts.down_proj'),
        Slot(EXPERT + 'down_bias', MLP + '.experts.down_proj_bias'),
    ),
    expert_field='num_local_experts',
    models='gpt-oss 20B, 120B',
    notes='Expert tensors are [in, out], with alternating columns of gate and up; every other '
          'layer has a sliding window. The released weights are 4-bit blocks (MXFP4) and must be '
          'dequantized first.',
    released={
        'model_type': 'gpt_oss', 'vocab_size': 201088, 'hidden_size': 2880,
        'intermediate_size': 2880, 'num_hidden_layers': 24, 'num_attention_heads': 64,
        'num_key_value_heads': 8, 'head_dim': 64, 'max_position_embeddings': 131072,
        'sliding_window': 128, 'rope_theta': 150000, 'num_local_experts': 32,
        'num_experts_per_tok': 4, 'attention_bias': True, 'torch_dtype': 'bfloat16',
        'rope_scaling': {
            'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0,
            'truncate': False, 'original_max_position_embeddings': 4096,
        },
    },
)
