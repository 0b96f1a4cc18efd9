"""`jax.custom_vjp` whose functions keep their signature for a type checker."""

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import jax

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
    """The decorator `jax.custom_vjp`; static: `nondiff_argnums`, places of no arrays."""
    return cast(Any, partial(jax.custom_vjp, nondiff_argnums=static))
