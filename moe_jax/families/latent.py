"""Multi-head latent attention in the config.json of the DeepSeek families."""

from typing import Any

from moe_jax.config import Latent
from moe_jax.families.fields import Fields


def attention(f: Fields, *, interleaved: bool) -> dict[str, Any]:
    """The Config fields of latent attention; both latents' norms have transformers' own 1e-6."""
    part = Latent(
        query=f.integer('q_lora_rank', default=0), kv=f.integer('kv_lora_rank'),
        plain=f.integer('qk_nope_head_dim', least=1),
        rotary=f.integer('qk_rope_head_dim', least=1),
        value=f.integer('v_head_dim'),
    )
    width = part.plain + part.rotary
    return {
        'latent': part, 'head_dim': width, 'kv_heads': f.integer('num_attention_heads'),
        'rope': f.rope(part.rotary, 10_000.0, interleaved=interleaved),
        'attention_scale': width**-0.5 * f.rope_temperature(),
    }
