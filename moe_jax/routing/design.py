"""What every router design says of itself, so that nobody has to compare names.

A design is one file in `routing/designs/`, ending in a frozen dataclass of its settings (a
`Router`). `Config.router` holds one such value; the model, the observer, pruning and export ask it
the questions below and know nothing else of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import jax

from moe_jax.routing.routing import LayerRows, RouterInput, Routing

Reads = Literal['tokens', 'key', 'batch']  # 'batch': tokens of other rows


class Leaf(NamedTuple):
    """A parameter under `moe/router`, float32; with router rows on axis 0 wherever it has any."""

    shape: tuple[int, ...]
    normal: bool = False  # initial values: normal with the model's standard deviation, else zero


class Traits(NamedTuple):
    """Properties of a router that others depend on."""

    topk: int  # experts that a token uses, or that it uses on average where rows choose
    groups: int = 1  # equal groups of rows, of which a token uses some
    group_best: int = 1  # best rows of a group whose sum ranks it: a group has at least as many
    groups_used: int = 1
    clamp: bool = False  # a layer with fewer rows than topk uses all of them
    causal: bool = True  # no output depends on a later token
    sliceable: bool = True  # row r serves expert r; without the row, tokens choose among the others
    renormalized: bool = False  # gates do not depend on rows that were not chosen
    rescales: bool = False  # deleting rows multiplies survivors' gates by 1/(1 - their share)
    usage: Literal['choices', 'mass'] = 'choices'  # 'mass': counts are equal by construction
    reads: frozenset[Reads] = frozenset()

    @property
    def group_least(self) -> int:
        """The fewest rows a group may have: K choices fit into `groups_used` of them."""
        best = self.group_best if self.groups > 1 else 1
        return max(best, -(-self.topk // self.groups_used))

    def nearest(self, rows: int) -> int:
        """The valid number of rows nearest to `rows`, where they fall into groups."""
        return max(self.group_least, round(rows / self.groups)) * self.groups


class Router(Protocol):
    """A router design with its settings: frozen, hashable, checked when it is made."""

    design: ClassVar[str]  # its name in config files and tables
    paper: ClassVar[str]

    @property
    def traits(self) -> Traits:
        """What others may depend on."""
        ...

    @property
    def coefficients(self) -> Mapping[str, float]:
        """What multiplies each of `losses` in training."""
        ...

    def places(self, rows: int) -> int:
        """K, the places of a token's choices in a layer of `rows` rows that can be chosen."""
        ...

    def among(self, rows: Sequence[int]) -> 'Router':
        """This router for layers that have so many rows to choose from, one number a layer."""
        ...

    def leaves(self, width: int, rows: int) -> Mapping[str, Leaf]:
        """Parameters of a layer's router: D wide, R rows."""
        ...

    def route(
        self, leaves: Mapping[str, jax.Array], given: RouterInput, rows: LayerRows
    ) -> Routing:
        """The choices of every token."""
        ...

    def losses(self, routing: Routing, valid_N: jax.Array) -> Mapping[str, jax.Array]:
        """Scalars of one layer, means over the valid tokens; the names of `coefficients`."""
        ...

    def replace(self, **fields: Any) -> 'Router':
        """A copy with some settings changed."""
        ...
