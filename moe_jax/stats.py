"""What one calibration pass leaves: mergeable statistics per layer and group, for every method.

R router rows (experts), D width, F hidden width of an expert, K experts per token, S tokens of the
reservoir. The table STATISTICS says what each is; g is the gate applied, y = f_r(x) the output of a
row's expert, and "evaluated" is chosen and not dropped for lack of capacity.
"""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

BINS = 1000
Sums = dict[str, np.ndarray]


class Statistic(NamedTuple):
    """How a statistic merges ('count', 'sum', 'max', 'tally', 'sample'), its shape and meaning.

    Shapes in letters of the module, B for BINS, k for K - 1; `asked` is the option of `observe`
    that it needs ('' for the default set).
    """

    kind: str
    shape: tuple[str | int, ...]
    what: str
    asked: str = ''


STATISTICS: dict[str, Statistic] = {
    'tokens': Statistic('count', (), 'tokens'),
    'count': Statistic('count', ('R',), 'tokens that chose r'),
    'count_top1': Statistic('count', ('R',), 'tokens whose first choice is r'),
    'dropped': Statistic('count', ('R',), 'tokens that chose r while its expert was full'),
    'together': Statistic('count', ('R', 'R'), 'tokens that chose both'),
    'entropy_hist': Statistic('count', ('B',), 'router entropy over log R, in bins of [0, 1]'),
    'ratio_hist': Statistic('count', ('k', 'B'), 'gate of slot 2, 3, ... over the largest, binned'),
    'vocab': Statistic('tally', ('n', 3), 'token id, row, tokens with that id and first choice'),
    'gate_sum': Statistic('sum', ('R',), 'g'),
    'prob_sum': Statistic('sum', ('R',), 'probability of r, chosen or not'),
    'chosen_prob_sum': Statistic('sum', ('R',), 'probability of r where chosen'),
    'top1_gate_sum': Statistic('sum', ('R',), 'g where r is the first choice'),
    'logit_sum': Statistic('sum', ('R',), 'router logit z'),
    'logit_gram': Statistic('sum', ('R', 'R'), 'z z^T'),
    'prob_gram': Statistic('sum', ('R', 'R'), 'p p^T of the probabilities'),
    'input_sum': Statistic('sum', ('D',), 'router input x'),
    'entropy_sum': Statistic('sum', (), 'router entropy, nats'),
    'stream_cosine': Statistic('sum', (), 'cosine of the residual stream before and after'),
    'moments': Statistic('sum', (3, 3, 'R'), 'g^a |y|^c for a, c of 0, 1, 2, where evaluated'),
    'norm_max': Statistic('max', ('R',), 'largest |y|'),
    'element_max': Statistic('max', ('R',), 'largest |y_d|'),
    'output_sum': Statistic('sum', ('R', 'D'), 'y'),
    'output_square': Statistic('sum', ('R', 'D'), 'y^2'),
    'gated_output_sum': Statistic('sum', ('R', 'D'), 'g y'),
    'input_square': Statistic('sum', ('R', 'D'), 'x^2 of evaluated choices'),
    'gated_input_square': Statistic('sum', ('R', 'D'), '(g x)^2'),
    'hidden_sum': Statistic('sum', ('R', 'F'), 'hidden layer h'),
    'hidden_square': Statistic('sum', ('R', 'F'), 'h^2'),
    'gated_hidden_square': Statistic('sum', ('R', 'F'), '(g h)^2'),
    'output_cosine': Statistic('sum', ('R', 'R'), 'cos(y_i, y_j) of tokens that chose both'),
    'dense_output_sum': Statistic('sum', ('R', 'D'), 'y of every token', 'dense'),
    'dense_cosine': Statistic('sum', ('R', 'R'), 'cos(y_i, y_j) of every token', 'dense'),
    'input_gram': Statistic('sum', ('R', 'D', 'D'), 'x x^T of evaluated choices', 'grams'),
    'hidden_gram': Statistic('sum', ('R', 'F', 'F'), 'h h^T', 'grams'),
    'sample_key': Statistic('sample', ('S',), 'hash that ranks the token', 'reservoir'),
    'sample_input': Statistic('sample', ('S', 'D'), 'x', 'reservoir'),
    'sample_logits': Statistic('sample', ('S', 'R'), 'z', 'reservoir'),
    'sample_gates': Statistic('sample', ('S', 'R'), 'g, 0 where not chosen', 'reservoir'),
    'sample_gram': Statistic('sample', ('S', 'R', 'R'), '<y_i, y_j>', 'reservoir'),
    'sample_cross': Statistic('sample', ('S', 'R'), '<y_i, sum g y>', 'reservoir'),
    'sample_square': Statistic('sample', ('S',), '|sum g y|^2', 'reservoir'),
    'sample_output': Statistic('sample', ('S', 'R', 'D'), 'y', "outputs='all'"),
}
# Of the language-model loss, one of each for every leaf of the experts: grad_abs/up and so on.
GRADIENTS = {
    'grad_abs': 'sum over rows of |dW|', 'grad_square': 'sum over rows of dW^2',
    'grad_weight': 'sum over rows of |W dW|',
}
WRAP = 2**64


def statistic(name: str) -> Statistic:
    """The entry of a statistic; `grad_*/leaf` have the shape of the leaf."""
    stem, _, leaf = name.partition('/')
    if leaf and stem in GRADIENTS:
        return Statistic('sum', ('R', '...'), GRADIENTS[stem], 'gradients')
    return STATISTICS[name]


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
        for what, mine, theirs in (('models', self.fingerprint, other.fingerprint),
                                   ('tokenizers', self.tokenizer, other.tokenizer)):
            if mine != theirs:
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
        from moe_jax import stats_file

        stats_file.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; ValueError for anything else, FileNotFoundError for nothing."""
        from moe_jax import stats_file

        return stats_file.load(path)


def wanted(layer: Sums, names: Collection[str]) -> Sums:
    """The named statistics of a layer; of a reservoir, its keys too, which merging needs."""
    keep = set(names)
    if any(name.startswith('sample_') for name in keep):
        keep.add('sample_key')
    return {name: value for name, value in layer.items() if name in keep}


def merge_layers(a: Mapping[int, Sums], b: Mapping[int, Sums], reservoir: int) -> dict[int, Sums]:
    """The statistics of two parts of the data, layer by layer."""
    if set(a) != set(b):
        raise ValueError(f'statistics of layers {sorted(a)} and {sorted(b)} cannot be added')
    return {i: merge(a[i], b[i], reservoir) for i in a}


def merge(a: Sums, b: Sums, reservoir: int) -> Sums:
    """One layer's statistics of two parts of the data; neither is changed."""
    if different := sorted(set(a) ^ set(b)):
        raise ValueError(f'statistics cannot be added: only one part has {", ".join(different)}; '
                         'observe both with the same options')
    out = {name: MERGE[kind](a[name], b[name]) for name in a
           if (kind := statistic(name).kind) != 'sample'}
    if 'sample_key' in a:
        keys = np.concatenate([a['sample_key'], b['sample_key']])
        best = np.argsort(keys, kind='stable')[:reservoir]
        out |= {name: np.concatenate([a[name], b[name]])[best] for name in a
                if name.startswith('sample_')}
    return out


def tally(rows: np.ndarray) -> np.ndarray:
    """Rows (token id, router row, tokens) [n, 3] with equal pairs added up, in order."""
    if not len(rows):
        return np.zeros((0, 3), np.int64)
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    rows = rows[order]
    new = np.r_[True, (rows[1:, :2] != rows[:-1, :2]).any(axis=1)]
    counts = np.add.reduceat(rows[:, 2], np.flatnonzero(new))
    return np.column_stack([rows[new, :2], counts])


MERGE = {
    'count': np.add, 'sum': np.add, 'max': np.maximum,
    'tally': lambda a, b: tally(np.concatenate([a, b])),
}
