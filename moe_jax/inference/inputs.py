"""Rows of tokens as the model reads them, checked on the host before anything compiles.

B rows, T tokens.
"""

from typing import Any

import numpy as np

from moe_jax.config import Config


def checked(
    cfg: Config, tokens: Any, segments: Any, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """tokens and segments, each int32 [B, T], with id 0 on padding, whatever stood there.

    `segments` int, or a bool mask: 0 or False is padding; None: there is none. Raises ValueError,
    its message opened by `where`, for other shapes or types, rows longer than the model's positions
    and ids outside the vocabulary: an accelerator would clamp them without a word.
    """
    tokens = np.asarray(tokens)
    segments = np.ones(tokens.shape, np.int32) if segments is None else np.asarray(segments)
    if tokens.shape != segments.shape or tokens.ndim != 2:
        raise ValueError(f'{where}: tokens {tokens.shape} and mask or segments {segments.shape} '
                         'must both be [B, T]')
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
