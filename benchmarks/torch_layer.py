"""A MoE layer in torch, by its grouped matrix product or a loop over experts: the rival of ours.

Letters: T tokens, D width, F hidden width, E experts, K experts per token, S = T K rows. Gate and
up are one matrix, as in transformers. 'grouped_mm' has the weights of all experts in one array,
'per expert' an array for each, so that a gradient is never of the size of all.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.layer_case import Arrays, Case, sides
from benchmarks.measured import cores

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
Rows = Callable[[torch.Tensor, Any, Any, torch.Tensor, bool], torch.Tensor]


def version() -> str:
    """Of torch."""
    return torch.__version__


def use_all_cores() -> None:
    """As many threads as this process may use cores, unless OMP_NUM_THREADS says."""
    if 'OMP_NUM_THREADS' not in os.environ:
        torch.set_num_threads(cores())


def wait() -> None:
    """Until all that was asked for is done."""
    if DEVICE == 'cuda':
        torch.cuda.synchronize()


def tensor(array: Any) -> torch.Tensor:
    """A copy of an array of numpy or jax on the device, in its dtype."""
    array = np.array(array)
    if array.dtype.name == 'bfloat16':
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(DEVICE)
    return torch.from_numpy(array).to(DEVICE)


def numpy(value: Any) -> np.ndarray:
    """A tensor, or those of all experts as one array; bfloat16 as float32."""
    if not isinstance(value, torch.Tensor):
        value = torch.stack(list(value))
    return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()


def dense(case: Case) -> Callable[[], Any]:
    """The products of one expert on all S rows."""
    pairs = [[torch.randn(*shape, device=DEVICE).to(getattr(torch, case.dtype)) for shape in side]
             for side in sides(case)]

    def run() -> Any:
        with torch.inference_mode():
            return [a @ b for a, b in pairs]

    return run


def forward(way: str, case: Case, arrays: Arrays) -> Callable[[], torch.Tensor]:
    """The layer on the tokens and weights of `layer_case.inputs`, without gradients."""
    run, _ = _layer(way, case, arrays)

    def without() -> torch.Tensor:
        with torch.inference_mode():
            return run()

    return without


def both(way: str, case: Case, arrays: Arrays) -> Callable[[], Any]:
    """Gradients of the output's mean square by tokens, gates, and both matrices of all experts."""
    run, leaves = _layer(way, case, arrays)
    flat = [one for leaf in leaves for one in ([leaf] if torch.is_tensor(leaf) else leaf)]
    for leaf in flat:
        leaf.requires_grad_()

    def gradients() -> Any:
        gradients = iter(torch.autograd.grad(run().float().square().mean(), flat,
                                         materialize_grads=True))
        return [next(gradients) if torch.is_tensor(leaf) else [next(gradients) for _ in leaf]
                for leaf in leaves]

    return gradients


def as_ours(case: Case, grads: Any) -> Any:
    """Gradients in the form of `layer_case.both`, as numpy."""
    x, gates, first, second = map(numpy, grads)
    parts = np.split(first, 2, axis=1) if case.gated else [first]
    names = ('gate', 'up') if case.gated else ('up',)
    weights = {name: part.swapaxes(1, 2) for name, part in zip(names, parts, strict=True)}
    return weights | {'down': second.swapaxes(1, 2)}, x, gates


def mixed(way: str, x: torch.Tensor, ids: torch.Tensor, gates: torch.Tensor, first: Any,
          second: Any, gated: bool) -> torch.Tensor:
    """The layer's output [T, D]: tokens sorted by expert, evaluated, and brought back.

    first: [E, F or 2F, D], second: [E, D, F], or a list of such matrices.
    """
    t, k = ids.shape
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    sizes = torch.bincount(flat, minlength=len(first))
    y = WAYS[way](x.index_select(0, order // k), first, second, sizes, gated)
    back = torch.empty_like(order)
    back[order] = torch.arange(t * k, device=x.device)
    return (y.index_select(0, back).view(t, k, -1) * gates[:, :, None].to(y.dtype)).sum(dim=1)


def _layer(way, case, arrays):
    weights, x, ids, gates = arrays
    turned = {name: tensor(leaf).transpose(1, 2) for name, leaf in weights.items()}
    first = torch.cat([turned['gate'], turned['up']], 1) if case.gated else turned['up']
    first, second = first.contiguous(), turned['down'].contiguous()
    if way == 'per expert':
        first, second = ([one.clone() for one in stack] for stack in (first, second))
    x, ids, gates = tensor(x), tensor(ids).long(), tensor(gates)
    return (lambda: mixed(way, x, ids, gates, first, second, case.gated)), [x, gates, first, second]


def _grouped_mm(rows, first, second, sizes, gated):
    ends = sizes.cumsum(0).to(torch.int32)
    grouped = torch.nn.functional.grouped_mm
    hidden = _activated(grouped(rows, first.transpose(1, 2), offs=ends), gated)
    return grouped(hidden, second.transpose(1, 2), offs=ends)


def _per_expert(rows, first, second, sizes, gated):
    linear = torch.nn.functional.linear
    parts = zip(rows.split(sizes.tolist()), first, second, strict=True)
    return torch.cat([linear(_activated(linear(part, one), gated), two)
                      for part, one, two in parts if len(part)])


def _activated(hidden, gated):
    if not gated:
        return torch.nn.functional.gelu(hidden, approximate='tanh')
    gate, up = hidden.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


WAYS: dict[str, Rows] = {'grouped_mm': _grouped_mm, 'per expert': _per_expert}
