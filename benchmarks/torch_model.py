"""A decoder of GPT-2's form with experts in torch, a function of our parameters: a rival of ours.

Learned positions, layer norm, causal `scaled_dot_product_attention`, GELU, a tied head, no biases
but those of the norms; a token's gates are the softmax probabilities of the experts it chose.

Letters: B rows, T tokens, D width, H heads, V vocabulary, E experts, F hidden width.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks import torch_layer
from benchmarks.torch_layer import tensor
from moe_jax import Config
from moe_jax.base.tree import leaves_with_paths
from train.optim.adamw import NO_DECAY

Params = dict[str, Any]  # by path; experts as one array of all, or as a list
EXPERTS = re.compile(r'moe/experts/(up|down)$')


def parameters(way: str, params: Any) -> Params:
    """Our parameters as leaves that train; experts as a way of `torch_layer` wants them."""
    leaves: Params = {}
    for path, leaf in leaves_with_paths(params):
        value = tensor(leaf)
        if EXPERTS.search(path):
            value = value.transpose(1, 2).contiguous()
            if way == 'per expert':
                leaves[path] = [one.clone().requires_grad_() for one in value]
                continue
        leaves[path] = value.requires_grad_()
    return leaves


def loss(cfg: Config, way: str, params: Params, tokens: torch.Tensor) -> torch.Tensor:
    """Mean nats per predicted token of tokens [B, T]; computed in the dtype of the config."""
    kind = getattr(torch, cfg.dtype)

    def get(path: str) -> Any:
        value = params[path]
        return value.to(kind) if torch.is_tensor(value) else [one.to(kind) for one in value]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x.float(), (cfg.width,), params[f'{name}/scale'],
                                     params[f'{name}/bias'], cfg.norm_eps).to(kind)

    x = get('embed/tokens')[tokens] + get('embed/positions')[:tokens.shape[1]]
    for i in range(cfg.layers):
        x = x + _attention(cfg, f'layer_{i}/attn', get, norm(f'layer_{i}/norm_attn', x))
        h = norm(f'layer_{i}/norm_ffn', x)
        if cfg.experts[i]:
            x = x + _experts(cfg, way, params, f'layer_{i}/moe', get, h)
        else:
            hidden = functional.gelu(h @ get(f'layer_{i}/mlp/up'), approximate='tanh')
            x = x + hidden @ get(f'layer_{i}/mlp/down')
    logits = norm('norm_final', x)[:, :-1] @ get('embed/tokens').T
    return functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def make_step(cfg: Config, way: str, params: Params, tokens: torch.Tensor, rate: float,
              decay: float, betas: tuple[float, float], eps: float, clip: float
              ) -> Callable[[], torch.Tensor]:
    """A step of fused AdamW behind a clipped gradient; it gives the loss before the update."""
    decays, others = [], []
    for path, value in params.items():
        leaves = [value] if torch.is_tensor(value) else value
        matrix = not torch.is_tensor(value) or value.ndim > 1
        (decays if matrix and not NO_DECAY.search(path) else others).extend(leaves)
    optimizer = torch.optim.AdamW([{'params': decays, 'weight_decay': decay},
                                   {'params': others, 'weight_decay': 0.0}],
                                  lr=rate, betas=betas, eps=eps, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(cfg, way, params, tokens)
        value.backward()
        torch.nn.utils.clip_grad_norm_([*decays, *others], clip, foreach=True)
        optimizer.step()
        return value.detach()

    return step


def _attention(cfg, name, get, h):
    shape = (*h.shape[:2], cfg.heads, cfg.head_dim)
    q, k, v = ((h @ get(f'{name}/{part}')).view(shape).transpose(1, 2) for part in 'qkv')
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixed.transpose(1, 2).flatten(2) @ get(f'{name}/out')


def _experts(cfg, way, params, name, get, h):
    x = h.flatten(0, 1)
    probs = torch.softmax(x.float() @ params[f'{name}/router/kernel'].T, dim=-1)
    gates, ids = probs.topk(cfg.topk, dim=-1)
    y = torch_layer.mixed(way, x, ids, gates, get(f'{name}/experts/up'),
                          get(f'{name}/experts/down'), gated=False)
    return y.view(h.shape)
