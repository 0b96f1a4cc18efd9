"""`jax.custom_vjp` whose functions keep their signature, and work inside a caller's `shard_map`."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import jax

from moe_jax.base.varying import alike, axes_of

Given = ParamSpec('Given')
Gives_co = TypeVar('Gives_co', covariant=True)


class WithGradient(Protocol[Given, Gives_co]):
    """A function that has, or will have, a gradient of its own."""

    def __call__(self, *args: Given.args, **kwargs: Given.kwargs) -> Gives_co: ...

    def defvjp(self, fwd: Callable[..., tuple[Any, Any]], bwd: Callable[..., Any]) -> None:
        """Set what is computed forward, with what the gradient needs, and the gradient."""
        ...


def custom_vjp(
    *static: int,
) -> Callable[[Callable[Given, Gives_co]], WithGradient[Given, Gives_co]]:
    """The decorator `jax.custom_vjp`; static: `nondiff_argnums`, places of no arrays.

    Inside a caller's shard_map all arrays are first made to vary over the same axes, so that the
    gradient of one that is the same on all devices is summed over them.
    """
    def decorate(function: Callable[..., Any]) -> Any:
        known = jax.custom_vjp(function, nondiff_argnums=static)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            arrays = {i: a for i, a in enumerate(args) if i not in static}
            if axes_of(arrays, named):
                arrays, named = alike((arrays, named))
                args = tuple(arrays.get(i, a) for i, a in enumerate(args))
            return known(*args, **named)

        cast(Any, call).defvjp = known.defvjp
        return call

    return cast(Any, decorate)
