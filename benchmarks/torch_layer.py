"""A MoE layer in torch, by its grouped matrix product: the rival of `gpu_layer.py`.

Letters: T tokens, D width, F hidden width, E experts, K experts per token, S = T K rows. Gate and
up are one matrix, as in transformers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def version() -> str:
    """Of torch."""
    return torch.__version__


def wait() -> None:
    """Until all that was asked for is done."""
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def dense(shape: tuple[int, int, int], gated: bool) -> Callable[[], Any]:
    """The products of one expert on all S rows."""
    s, d, f = shape
    sides = [((s, d), (d, f))] * (2 if gated else 1) + [((s, f), (f, d))]
    pairs = [(_random(a), _random(b)) for a, b in sides]
    return lambda: [a @ b for a, b in pairs]


def forward(ids: np.ndarray, gates: np.ndarray, experts: int, d: int, f: int, gated: bool
            ) -> Callable[[], Any]:
    """One layer on random tokens, without gradients."""
    run, _ = _layer(ids, gates, experts, d, f, gated)

    def without() -> Any:
        with torch.inference_mode():
            return run()

    return without


def both(ids: np.ndarray, gates: np.ndarray, experts: int, d: int, f: int, gated: bool
         ) -> Callable[[], Any]:
    """One layer and the gradients by tokens, gates and weights."""
    run, leaves = _layer(ids, gates, experts, d, f, gated)
    for leaf in leaves:
        leaf.requires_grad_()

    def gradients() -> Any:
        return torch.autograd.grad(run().float().square().mean(), leaves)

    return gradients


def _layer(ids, gates, experts, d, f, gated):
    t, k = ids.shape
    x = _random((t, d))
    first = _random((experts, f * (2 if gated else 1), d)) / d**0.5
    second = _random((experts, d, f)) / f**0.5
    ids, gates = torch.tensor(ids, device=DEVICE).long(), torch.tensor(gates, device=DEVICE)

    def run():
        flat = ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=experts).cumsum(0).to(torch.int32)
        rows = x[order // k]
        hidden = torch.nn.functional.grouped_mm(rows, first.transpose(1, 2), offs=ends)
        if gated:
            gate, up = hidden.chunk(2, dim=-1)
            hidden = torch.nn.functional.silu(gate) * up
        else:
            hidden = torch.nn.functional.gelu(hidden, approximate='tanh')
        y = torch.nn.functional.grouped_mm(hidden, second.transpose(1, 2), offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(t * k, device=DEVICE)
        return (y[back].view(t, k, d) * gates[:, :, None].to(y.dtype)).sum(dim=1)

    return run, [x, gates, first, second]


def _random(shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.float32).to(torch.bfloat16)
