"""How many weights go and from where: what `prune.sparsify` and `moe-jax sparsify` take."""

import dataclasses
from collections.abc import Collection

from prune.inputs.method import Scope

Pattern = tuple[int, int]  # (N, M): of M consecutive inputs of an output, N stay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros:
    """How many weights go and from where, with what `None` stands for.

    Attributes:
        sparsity: the share of weights that become zero, from 0 to below 1 (default: 0.5).
        scope: within what weights are compared, and that share is exact: every output of a matrix,
            every expert's matrix, all of a layer, or all (global) (default: the method's own).
        pattern: N:M, such as 2:4: of every M consecutive inputs of an output, N stay; instead of
            sparsity and scope.
        leaves: some of gate, up and down (default: all).
    """

    sparsity: float | None = None
    scope: Scope | None = None
    pattern: Pattern | None = None
    leaves: Collection[str] | None = None
