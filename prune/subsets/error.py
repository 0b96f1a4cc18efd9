"""How far a layer's output is off when only some of its experts are left, from a token reservoir.

Source: the objective of Lu et al. 2024, "Not All Experts are Equal", on Gram matrices: with
G_t = [<f_i(x_t), f_j(x_t)>], c_t = [<f_i(x_t), y_t>] and the gates g' that a subset leads to,

    |y_t - y'_t|^2 = |y_t|^2 - 2 g'.c_t + g'^T G_t g',

so that a subset costs K + K^2 numbers per token and no evaluation of an expert. The gates are those
of the router without the dropped rows (`prune.subsets.gates`); no expert is ever full.

Letters: S tokens, R router rows (experts), K experts per token, G experts kept.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.subsets.gates import (
    Router,
    Rule,
    by_choice,
    by_rank,
    first,
    gates,
    left,
    left_without,
    ranks_are_fixed,
    router_of,
    rule_of,
)

NEEDS = ('sample_logits', 'sample_gram', 'sample_cross', 'sample_square')
CHUNK = 256  # subsets per call of the compiled loop
BLOCK = 128  # tokens that are summed in float32; blocks are summed in float64
FAINT = 1e-30  # share of the scores below which the survivors' softmax is taken afresh
ROUNDING = 1e-7  # of the mean |y|^2: errors that differ by less are the same


class Sample(NamedTuple):
    """A layer's reservoir: its router on the tokens, gram [S, R, R], cross [S, R], square [S]."""

    router: Router
    gram: jax.Array
    cross: jax.Array
    square: jax.Array

    @property
    def scale(self) -> float:
        """Mean |y_t|^2: the error of a layer that gives nothing."""
        return float(np.asarray(self.square, np.float64).mean())


def sample_of(seen: Mapping[str, np.ndarray], moe: Params, cfg: Config) -> Sample:
    """The reservoir in a layer's statistics, and its router's correction, made ready for searches.

    Raises ValueError for a reservoir without tokens.
    """
    if not len(seen['sample_square']):
        raise ValueError('the reservoir has no tokens; observe again with a larger reservoir=')
    arrays = (jnp.asarray(seen[name], jnp.float32) for name in NEEDS[1:])
    gate = rule_of(cfg, seen['sample_logits'].shape[1]).gate
    correction = moe['router'].get('correction')
    correction = None if correction is None else np.asarray(correction).astype(np.float32)
    return Sample(router_of(seen['sample_logits'], correction, gate), *arrays)


def error(sample: Sample, cfg: Config, subset: np.ndarray) -> float:
    """Mean |y_t - y'_t|^2 over the reservoir when only the experts `subset` [G] are left."""
    return float(errors(sample, cfg, np.asarray(subset)[None])[0])


def errors(sample: Sample, cfg: Config, subsets: np.ndarray) -> np.ndarray:
    """`error` of every row of subsets [n, G], float64 [n].

    Raises ValueError for ids that are no experts or come twice, and unless router groups keep
    equally many.
    """
    return mask_errors(sample, cfg, masks_of(subsets, sample.cross.shape[1], cfg.groups))


def mask_errors(sample: Sample, cfg: Config, masks: np.ndarray) -> np.ndarray:
    """As `errors`, of subsets given as masks, bool [n, R], which may differ in size."""
    total = block_sums(sample, cfg, masks, BLOCK).sum(axis=1)
    return np.maximum(total, 0) / len(sample.square)


def block_sums(sample: Sample, cfg: Config, masks: np.ndarray, block: int) -> np.ndarray:
    """Sum of |y_t - y'_t|^2 over each block of so many tokens, for masks [n, R]: [n, S / block].

    The last block may be shorter. float64, of float32 errors of single tokens.
    """
    rule = rule_of(cfg, masks.shape[1])
    if not ranks_are_fixed(sample.router, rule):
        return _looped(sample, masks, rule, by_choice, block)[0]
    found, total = _looped(sample, masks, rule, by_rank, block)
    if (faint := total < FAINT).any():
        found[faint] = _looped(sample, masks[faint], rule, by_choice, block)[0]
    return found


def errors_without(sample: Sample, cfg: Config, kept: np.ndarray) -> np.ndarray:
    """Errors [G] of the subset `kept` [G] less each of its experts in turn, G > 1.

    In the time of about K subsets: only the tokens that use an expert choose again without it. The
    others keep their choice, and raw softmax gates grow by one factor.
    """
    rows = sample.cross.shape[1]
    rule, mask = rule_of(cfg, rows), np.isin(np.arange(rows), kept)
    if ranks_are_fixed(sample.router, rule):
        depth = rows - len(kept) + rule.topk + 1
        sums, total = _without(sample, mask, min(depth, rows), rule)
        if float(total) >= FAINT:
            mean = np.asarray(sums, np.float64).sum(axis=0) / len(sample.square)
            return np.maximum(mean[kept], 0)
    return mask_errors(sample, cfg, mask & (np.arange(rows) != np.asarray(kept)[:, None]))


def least(values: np.ndarray, scale: float) -> int:
    """The first index whose error is the least, to within the rounding of float32 sums."""
    return int(np.argmax(values <= values.min() + ROUNDING * scale))


def masks_of(subsets: np.ndarray, rows: int, groups: int = 1) -> np.ndarray:
    """Subsets [n, G] of experts as masks, bool [n, R]; ValueError for what `errors` refuses."""
    subsets = np.asarray(subsets)
    if subsets.ndim != 2 or subsets.shape[1] < 1 or subsets.dtype.kind not in 'iu':
        raise ValueError(f'subsets: {subsets.dtype} {subsets.shape}, must be integers [n, G]')
    if subsets.size and not 0 <= subsets.min() <= subsets.max() < rows:
        raise ValueError(f'subsets: ids from {subsets.min()} to {subsets.max()}, the layer has '
                         f'experts 0 to {rows - 1}')
    masks = np.zeros((len(subsets), rows), bool)
    np.put_along_axis(masks, subsets, True, axis=1)
    kept = masks.reshape(len(masks), groups, rows // groups).sum(axis=2)
    if (kept.sum(axis=1) != subsets.shape[1]).any():
        raise ValueError('subsets: an expert comes twice in one of them')
    if (kept != kept[:, :1]).any():
        raise ValueError(f'subsets: the {groups} router groups must keep equally many experts')
    return masks


def _looped(
    sample: Sample, masks: np.ndarray, rule: Rule, select: Callable[..., Any], block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Block sums [n, S / block] float64, and the least survivors' share of scores [n]."""
    rows, fewest = masks.shape[1], int(masks.sum(axis=1).min(initial=masks.shape[1]))
    depth = min(rows, rows - fewest + rule.topk)
    sums, totals = [np.zeros((0, -(-len(sample.square) // block)))], [np.zeros(0)]
    for start in range(0, len(masks), CHUNK):
        part = masks[start:start + CHUNK]
        padded = np.pad(part, ((0, CHUNK - len(part)), (0, 0)))
        summed = _chunk(sample, padded, len(part), depth, rule, select, block)
        sums.append(np.asarray(summed[0], np.float64)[:len(part)])
        totals.append(np.asarray(summed[1])[:len(part)])
    return np.concatenate(sums), np.concatenate(totals)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _chunk(sample, masks, count, depth, rule, select, block):
    """The first `count` of masks [CHUNK, R], one after the other, so that memory stays O(S K^2)."""
    blocks = -(-len(sample.square) // block)

    def one(i, found):
        chosen = select(sample.router, masks[i], rule, depth)
        linear, square = _products(sample, chosen.ids, chosen.gates)
        sums = _by_block((sample.square - 2 * linear + square)[:, None], block)[:, 0]
        return found[0].at[i].set(sums), found[1].at[i].set(chosen.total.min())

    start = jnp.zeros((CHUNK, blocks)), jnp.zeros(CHUNK)
    return jax.lax.fori_loop(0, count, one, start)


@partial(jax.jit, static_argnums=3)
def _without(sample, mask, depth, rule):
    """Block sums [S / BLOCK, R] of errors less each row of the mask, and the least total."""
    router, tokens = sample.router, len(sample.square)
    ids = first(router, mask, rule.topk + 1, depth)
    total = left(router, mask, rule)
    linear, square = _products(sample, ids[:-1], gates(router, rule, ids[:-1], total))
    grown = jnp.ones((1, 1))
    if rule.gate.rescales:
        grown = total[:, None] / (total[:, None] - router.scores)
    errors = sample.square[:, None] - 2 * linear[:, None] * grown + square[:, None] * grown**2
    errors, lowest = jnp.broadcast_to(errors, sample.cross.shape), jnp.min(total)
    for k in range(rule.topk):
        others = jnp.concatenate([ids[:k], ids[k + 1:]])
        total = left_without(router, mask, rule, ids[k])
        linear, square = _products(sample, others, gates(router, rule, others, total))
        anew = sample.square - 2 * linear + square
        errors = errors.at[jnp.arange(tokens), ids[k]].set(anew, mode='drop')
        lowest = jnp.minimum(lowest, total.min())
    return _by_block(jnp.where(mask[None], errors, 0.0), BLOCK), lowest


def _products(sample, ids, gates):
    """g.c and g^T G g of every token, [S] each, for its experts ids [K, S] and gates [K, S].

    Written out by pairs, which XLA fuses to one walk over the tokens.
    """
    token, row = jnp.arange(ids.shape[1]), jnp.minimum(ids, sample.cross.shape[1] - 1)
    linear = square = jnp.zeros(ids.shape[1])
    for k in range(len(ids)):
        linear += gates[k] * sample.cross[token, row[k]]
        square += gates[k] ** 2 * sample.gram[token, row[k], row[k]]
        for j in range(k):
            square += 2 * gates[k] * gates[j] * sample.gram[token, row[k], row[j]]
    return linear, square


def _by_block(values, block):
    """Sums of values [S, n] over blocks of tokens, [S / block, n]."""
    padded = jnp.pad(values, ((0, -len(values) % block), (0, 0)))
    return padded.reshape(-1, block, values.shape[1]).sum(axis=1)
