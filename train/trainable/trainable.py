"""The choice of what trains: whole leaves, some experts, low-rank adapters of matrices.

`resolved.resolve` finds once which leaves of a model that means.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

# Expressions for paths that are asked for often; any other serves as well.
TRAINABLE: dict[str, str] = {
    'all': r'',
    'routers': r'moe/router',
    'experts': r'moe/(experts/|constants$)',
    'shared': r'moe/shared/',
    'dense': r'(^|/)mlp/',
    'attention': r'(^|/)attn/',
    'norms': r'(^|/)(norm_\w+|[qk]v?_norm)/',
    'biases': r'(^|/|_)bias$',
    'embeddings': r'^(embed|head)/',
}

Canonical = tuple[tuple[int, tuple[int, ...]], ...]
Experts = Mapping[int, Sequence[int] | np.ndarray] | Canonical  # a `Trainable` holds the latter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """What trains, where an expression for whole leaves does not say it.

    leaves: expression searched in paths; these leaves train whole (None: none).
    experts: {layer: ids}, experts all of whose weights train (expert-specialized fine-tuning, Wang
      et al. 2024; `prune.select_experts` chooses them); the others of the layer stay as they are.
    rank: of low-rank adapters (Hu et al. 2021) on the matrices in whose paths `on` is found, stacks
      of experts [E, D, F] included; alpha: their scale is alpha / rank (None: 1). They are merged
      into the weights that a run returns.

    The three may be combined as long as no leaf falls under two of them. Raises ValueError for what
    trains nothing or cannot be.
    """

    leaves: str | None = None
    experts: Experts = ()
    rank: int = 0
    alpha: float | None = None
    on: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'experts', _canonical(self.experts))
        for name in ('leaves', 'on'):
            check_expression(f'Trainable.{name}', getattr(self, name))
        if not isinstance(self.rank, int) or self.rank < 0 or (self.rank > 0) != bool(self.on):
            raise ValueError(f'Trainable.rank={self.rank!r}, on={self.on!r}: adapters need a rank '
                             "of at least 1 and the paths of their matrices, e.g. on='attn/'")
        if self.alpha is not None and not (self.rank and math.isfinite(self.alpha)
                                           and self.alpha > 0):
            raise ValueError(f'Trainable.alpha={self.alpha!r}: must be positive, with a rank')
        if self.leaves is None and not self.experts and not self.rank:
            raise ValueError('Trainable: nothing trains; give leaves, experts, or rank and on')

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


Chosen = str | Trainable | None


def rule_of(trainable: Chosen) -> Trainable:
    """The `Trainable` of an expression, or of None: all leaves."""
    if isinstance(trainable, Trainable):
        return trainable
    return Trainable(leaves=trainable or '')


def check_expression(name: str, expression: str | None) -> None:
    """Refuse, with ValueError, what is no regular expression; None is fine."""
    if expression is None:
        return
    try:
        re.compile(expression)
    except (re.error, TypeError) as error:
        raise ValueError(
            f'{name}={expression!r} is not a regular expression: {error}') from None


def _canonical(experts: Experts) -> Canonical:
    """Selected experts as sorted tuples, which can be hashed; layers without any are left out."""
    by_layer = dict(experts)
    canonical = []
    for layer in sorted(by_layer):
        array = np.asarray(by_layer[layer])
        ids = array.astype(int).tolist()
        whole = array.dtype.kind in 'iu' or not ids  # a mask of booleans is no list of ids
        if not whole or int(layer) < 0 or len(set(ids)) < len(ids) or min(ids, default=0) < 0:
            raise ValueError(f'Trainable.experts: layer {layer} has {array.tolist()}; give '
                             'distinct ids of experts, counted from 0')
        if ids:
            canonical.append((int(layer), tuple(sorted(ids))))
    return tuple(canonical)
