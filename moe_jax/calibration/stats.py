"""The outcome of one calibration pass: mergeable statistics per layer and group, for every method.

R router rows (experts), D width, F hidden width of an expert, K experts per token, S tokens of the
reservoir. The table STATISTICS says what each is; g is the gate applied, y = f_r(x) the output of a
row's expert, and "evaluated" is chosen and not dropped for lack of capacity.
"""

import dataclasses
import operator
from collections.abc import Collection
from pathlib import Path
from typing import Self

import numpy as np

from moe_jax.calibration import stats_file
from moe_jax.calibration.table import WRAP, Sums, merge, merge_layers, wanted
from moe_jax.model.fingerprint import same_model


@dataclasses.dataclass(frozen=True)
class Stats:
    """Statistics: group name -> layer index -> statistic name -> array (`STATISTICS`).

    `a + b` merges shards, batches, hosts or runs of the same model; the order does not matter for
    counts, maxima, tallies and reservoirs, and only in the last digits for sums. `fingerprint` is
    the model's, `tokenizer` the tokenizer's ('' if unknown), `data` a sum over the tokens seen (the
    same for the same tokens in any order and batch size), `reservoir` the tokens kept per group.
    """

    fingerprint: str
    groups: dict[str, dict[int, Sums]]
    tokenizer: str = ''
    data: str = '0' * 16
    reservoir: int = 0

    def __add__(self, other: Self) -> Self:
        for what, mine, theirs, same in (
                ('models', self.fingerprint, other.fingerprint, same_model),
                ('tokenizers', self.tokenizer, other.tokenizer, operator.eq)):
            if not same(mine, theirs):
                raise ValueError(f'statistics of two {what} cannot be added: {mine} and {theirs}; '
                                 'observe both data sets with one model')
        groups, size = dict(self.groups), min(self.reservoir, other.reservoir)
        for name, layers in other.groups.items():
            groups[name] = merge_layers(groups[name], layers, size) if name in groups else layers
        data = f'{(int(self.data, 16) + int(other.data, 16)) % WRAP:016x}'
        return dataclasses.replace(self, groups=groups, data=data, reservoir=size)

    def layer(self, index: int, group: str | None = None, names: Collection[str] | None = None
              ) -> Sums:
        """Statistics of one layer, of one group or merged over all; only `names`, if given."""
        if group is not None and group not in self.groups:
            raise KeyError(f'no group {group!r} in these statistics; there are '
                           f'{sorted(self.groups)}')
        if index not in self.layers:
            raise KeyError(f'no layer {index} in these statistics; there are {self.layers}')
        parts = [self.groups[name][index] for name in (sorted(self.groups) if group is None
                                                       else [group])]
        if names is not None:
            parts = [wanted(part, names) for part in parts]
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part, self.reservoir)
        return total

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers that were observed."""
        return tuple(sorted(next(iter(self.groups.values()))))

    @property
    def unused(self) -> dict[int, np.ndarray]:
        """Router rows of each layer that no token chose: their statistics are zero."""
        return {i: np.flatnonzero(self.layer(i, names=('count',))['count'] == 0)
                for i in self.layers}

    def save(self, path: str | Path) -> None:
        """Write an .npz without pickles, complete or not at all."""
        stats_file.write(path, self.groups,
                         {name: getattr(self, name) for name in stats_file.HEADER})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; ValueError for anything else, FileNotFoundError for nothing."""
        groups, fields = stats_file.read(path)
        return cls(groups=groups, **fields)
