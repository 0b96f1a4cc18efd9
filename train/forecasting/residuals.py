"""Bytes that automatic differentiation keeps from the forward pass for the backward pass.

Nothing is computed: the passes are traced with shapes alone. XLA does not store what it can compute
again on the spot from what it has stored: `AGAIN` are the operations for which it does so. Found by
comparison with what XLA:CPU allocates; compilers for accelerators fuse more and so store less.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, Literal

# Values made by these share the memory of what they are made from.
SAME = frozenset(('reshape', 'squeeze', 'expand_dims', 'transpose', 'optimization_barrier', 'copy',
                  'stop_gradient'))
# Elementwise and cheap: computed again in the backward pass.
AGAIN = frozenset((
    'abs', 'add', 'add_any', 'and', 'broadcast_in_dim', 'ceil', 'clamp', 'convert_element_type',
    'eq', 'floor', 'ge', 'gt', 'integer_pow', 'iota', 'is_finite', 'le', 'lt', 'max', 'min', 'mul',
    'ne', 'neg', 'not', 'or', 'rem', 'select_n', 'sign', 'slice', 'square', 'sub', 'xor',
))
CALLS = {'jit': 'jaxpr', 'pjit': 'jaxpr', 'closed_call': 'call_jaxpr',
         'custom_jvp_call': 'call_jaxpr', 'custom_vjp_call': 'call_jaxpr'}


def kept_bytes(function: Callable[..., Any], leaves: Any, *rest: Any) -> int:
    """Bytes that the gradient of function(leaves, *rest) by `leaves` keeps from the forward pass.

    leaves, rest: trees of `jax.ShapeDtypeStruct`. The arguments themselves are not counted, nor
    anything twice.
    """
    def kept(leaves: Any, *rest: Any) -> list[jax.Array]:
        return jax.tree.leaves(jax.vjp(lambda p: function(p, *rest), leaves)[1])

    traced = jax.make_jaxpr(kept)(leaves, *rest).jaxpr
    graph = _Graph([], [], [])
    return _stored(graph, _inline(graph, traced, [None] * len(traced.invars)))


@dataclasses.dataclass(frozen=True)
class _Graph:
    """Values by number: their bytes, the primitive that made them, and from what. They grow.

    None stands for an argument, a constant, or a value that shares the memory of one.
    """

    bytes: list[int]
    made_by: list[str]
    made_from: list[tuple[int | None, ...]]

    def add(self, aval: Any, name: str, inputs: Sequence[int | None]) -> int:
        size = getattr(aval, 'shape', ())
        width = getattr(getattr(aval, 'dtype', None), 'itemsize', 8)
        self.bytes.append(math.prod(size) * width)
        self.made_by.append(name)
        self.made_from.append(tuple(inputs))
        return len(self.bytes) - 1


def _inline(graph: _Graph, jaxpr: Jaxpr, arguments: Sequence[int | None]) -> list[int | None]:
    """Put a jaxpr's values into the graph, functions it calls included; returns its outputs."""
    known: dict[Any, int | None] = dict(zip(jaxpr.invars, arguments, strict=True))

    def number(value: Any) -> int | None:
        return None if isinstance(value, Literal) else known.get(value)

    for eqn in jaxpr.eqns:
        name, inputs = eqn.primitive.name, [number(value) for value in eqn.invars]
        called = eqn.params.get(CALLS.get(name, ''))
        if called is not None:
            made = _inline(graph, getattr(called, 'jaxpr', called), inputs)
        elif name in SAME:
            made = inputs[:len(eqn.outvars)]
        else:
            made = [graph.add(value.aval, name, inputs) for value in eqn.outvars]
        known |= zip(eqn.outvars, made, strict=True)
    return [number(value) for value in jaxpr.outvars]


def _stored(graph: _Graph, outputs: Sequence[int | None]) -> int:
    """Bytes of the outputs that have to be stored, in the order in which they are made."""
    operands = {value for name, inputs in zip(graph.made_by, graph.made_from, strict=True)
                if name == 'dot_general' for value in inputs}
    kept: set[int] = set()
    total = 0

    def at_hand(value: int | None) -> bool:
        if value is None or value in kept:
            return True
        return graph.made_by[value] in AGAIN and all(map(at_hand, graph.made_from[value]))

    for value in sorted({value for value in outputs if value is not None}):
        if value not in operands and at_hand(value):
            continue
        kept.add(value)
        total += graph.bytes[value] + _divisor(graph, value)
    return total


def _divisor(graph: _Graph, value: int) -> int:
    """Bytes of a quotient's divisor (or of a cast of it), which XLA stores in the same shape."""
    while (graph.made_by[value] == 'convert_element_type'
           and (source := graph.made_from[value][0]) is not None):
        value = source
    if graph.made_by[value] != 'div' or (by := graph.made_from[value][1]) is None:
        return 0
    return graph.bytes[value] if graph.bytes[by] < graph.bytes[value] else 0
