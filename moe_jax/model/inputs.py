"""Batches in the forms that users have them, checked on the host before anything compiles.

B rows, T tokens.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from moe_jax.base.tree import has_values
from moe_jax.config import Config
from moe_jax.layers.positions import has_past

# Names of Hugging Face transformers, and ours.
NAMES = {'input_ids': 'tokens', 'attention_mask': 'mask'}
WANTED = ("a batch is a dict of 'tokens' int [B, T] and, where rows have padding or several texts, "
          "'mask' or 'segments' [B, T] ('input_ids' and 'attention_mask' are taken for them)")
IGNORED = -100  # in the labels of transformers: not to be predicted


def each(batches: Any, where: str) -> Iterator[dict[Any, Any]]:
    """Batches as `named` gives them; one batch, a dict or an array [B, T], is a batch too.

    Raises ValueError, opened by `where`, for what holds no batches.
    """
    if isinstance(batches, Mapping) or len(getattr(batches, 'shape', ())) == 2:
        batches = (batches,)
    if isinstance(batches, str) or not isinstance(batches, Iterable):
        raise ValueError(f'{where}: batches={batches!r:.60} holds no batches; {WANTED}')
    return (named(raw, where) for raw in batches)


def named(raw: Any, where: str) -> dict[Any, Any]:
    """A batch under the library's own names; an array alone is its tokens.

    'labels' become 'weights': 1 where the label is the token, 0 where it is -100. Raises
    ValueError, opened by `where`, for what is no batch, and for labels that are neither.
    """
    if not isinstance(raw, Mapping):
        if np.ndim(raw) != 2:
            raise ValueError(f'{where}: a batch is a {type(raw).__name__} with {np.ndim(raw)} '
                             f'axes; {WANTED}')
        raw = {'tokens': raw}
    batch = dict(raw)
    for name, own in NAMES.items():
        if name in batch and own not in batch:
            batch[own] = batch.pop(name)
    if 'labels' in batch and 'tokens' in batch and 'weights' not in batch:
        batch['weights'] = _of_labels(batch['tokens'], batch.pop('labels'), where)
    return batch


def rows_of(cfg: Config, batch: Mapping[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """`checked` tokens and segments of a batch that has its own names."""
    if 'tokens' not in batch:
        raise ValueError(f'{where}: a batch has {list(batch)}; {WANTED}')
    segments = batch.get('segments')
    return checked(cfg, batch['tokens'], batch.get('mask') if segments is None else segments, where,
                   empty=True)


def checked(
    cfg: Config, tokens: Any, segments: Any, where: str, *, empty: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """tokens and segments, each int32 [B, T], with id 0 on padding, whatever stood there.

    `segments` int, or a bool mask: 0 or False is padding; None: there is none. Raises ValueError,
    its message opened by `where`, for other shapes or types, rows longer than the model's
    positions, no tokens at all unless `empty`, and ids outside the vocabulary: an accelerator would
    clamp them without a word.
    """
    tokens = np.asarray(tokens)
    segments = np.ones(tokens.shape, np.int32) if segments is None else np.asarray(segments)
    if tokens.shape != segments.shape or tokens.ndim != 2:
        raise ValueError(f'{where}: tokens {tokens.shape} and mask or segments {segments.shape} '
                         'must both be [B, T]')
    if not (tokens.size or empty):
        raise ValueError(f'{where}: tokens {tokens.shape} hold no token')
    if tokens.dtype.kind not in 'iu' or segments.dtype.kind not in 'iub':
        raise ValueError(f'{where}: tokens are {tokens.dtype} and must be integers, mask or '
                         f'segments are {segments.dtype} and must be bool or integers')
    if tokens.shape[1] > cfg.positions:
        raise ValueError(f'{where}: {tokens.shape[1]} tokens in a row; the model has '
                         f'{cfg.positions} positions')
    used = tokens[segments > 0]
    if used.size and not 0 <= used.min() <= used.max() < cfg.vocab:
        raise ValueError(f'{where}: token ids {used.min()}..{used.max()} do not fit vocab='
                         f'{cfg.vocab}; is this the tokenizer of the model?')
    return np.where(segments > 0, tokens, 0).astype(np.int32), segments.astype(np.int32)


def weighed(weights: Any, segments: np.ndarray, where: str) -> np.ndarray:
    """Weights float32 [B, T] of predicting each token; None: 1 for each with a past.

    Raises ValueError, opened by `where`, for another shape and for weights that are negative or not
    finite.
    """
    if weights is None:
        known = np.zeros(segments.shape, np.float32)
        known[:, 1:] = has_past(segments)
        return known
    weights = np.asarray(weights, np.float32)
    if weights.shape != segments.shape:
        raise ValueError(f'{where}: weights {weights.shape} must be [B, T] as tokens '
                         f'{segments.shape} are')
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f'{where}: weights from {weights.min()} to {weights.max()}; each must be '
                         'finite and at least 0')
    return weights


def is_concrete(*arrays: Any) -> bool:
    """Whether values can be looked at here: not those of a trace, or of other processes."""
    return has_values(arrays) and all(
        a.is_fully_addressable for a in arrays if isinstance(a, jax.Array))


def _of_labels(tokens: Any, labels: Any, where: str) -> np.ndarray:
    """Weights float32 [B, T] for the labels of transformers."""
    tokens, labels = np.asarray(tokens), np.asarray(labels)
    if tokens.shape != labels.shape or not ((labels == tokens) | (labels == IGNORED)).all():
        raise ValueError(f'{where}: labels {labels.shape} must be input_ids {tokens.shape}, or '
                         f'{IGNORED} where a token is not to be predicted; what predicts other '
                         "tokens is not supported")
    return (labels != IGNORED).astype(np.float32)
