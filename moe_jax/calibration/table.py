"""The statistics there are, by name: kinds, shapes and meanings.

N tokens, D width, F hidden, E experts, R router rows, K choices per token, B for BINS, k for K - 1,
S tokens of the reservoir. Sums over the evaluated choices of a row have x for the input, h for the
hidden layer, y for the output and g for the gate of a choice.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

BINS = 1000


Sums = dict[str, np.ndarray]
Operation = TypeVar('Operation')


class Statistic(NamedTuple):
    """One statistic of a layer."""

    kind: str  # how parts of the data merge: 'count', 'sum', 'max', 'tally', 'sample'
    shape: tuple[str | int, ...]  # in letters of the module
    what: str  # its meaning
    option: str = ''  # the option of `observe` that it needs, '' for the default set


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


def reduction(name: str, add: Operation, largest: Operation) -> Operation:
    """The operation that joins parts of a statistic: their sum, or what is largest."""
    return largest if statistic(name).kind == 'max' else add


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
    out = {name: _merge(name, a[name], b[name]) for name in a
           if statistic(name).kind != 'sample'}
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


def _merge(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if statistic(name).kind == 'tally':
        return tally(np.concatenate([a, b]))
    return reduction(name, np.add, np.maximum)(a, b)
