"""What transformers in torch makes of a folder; the peer that ours is held to."""

from functools import lru_cache

import numpy as np

from tests.moe_jax.hf import tiny


def logits(folder, dtype=None, tokens=None, mask=None):
    """Logits [B, T, V] of tiny.TOKENS, float32, and the experts each layer chose [N, K].

    Fails unless transformers knew every tensor of the folder and missed none.
    """
    import torch

    model = open_model(folder, dtype)
    chosen = []
    hooks = [module.register_forward_hook(lambda _, __, out: chosen.append(out[2].numpy()))
             for name, module in model.named_modules()
             if name.endswith(('mlp.gate', 'mlp.router', 'block_sparse_moe.router',
                               'block_sparse_moe.gate'))]
    tokens = tiny.TOKENS if tokens is None else tokens
    mask = np.ones_like(tokens) if mask is None else mask
    with torch.no_grad():
        out = model(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
    for hook in hooks:
        hook.remove()
    return out.float().numpy(), chosen


@lru_cache(maxsize=32)
def open_model(folder, dtype=None):
    """A folder that does not change any more, opened once."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation='eager', experts_implementation='eager',
        dtype=dtype or 'auto', output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()
