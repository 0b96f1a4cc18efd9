"""Documents packed into rows of equal length, with segments that keep them apart."""

import numpy as np

from moe_jax.data.encode import Encoded


def pack(encoded: Encoded, length: int) -> dict[str, np.ndarray]:
    """Packs documents into rows: 'tokens', 'segments' int32 and 'weights' float32, all [rows, T].

    A document of at most T=`length` tokens, its <|end|> counted, stays in one piece. A longer one
    becomes windows of T tokens, each beginning with the last token of the one before as context of
    weight 0. So every token but <|end|> is predicted exactly once (weight 1). Pieces share rows by
    best-fit decreasing (Ding et al. 2024, arXiv:2404.10830, section 3), segments 1, 2, ... in a
    row; 0 is padding. Raises ValueError when length < 2 or there is no text.
    """
    if length < 2:
        raise ValueError(f'pack: length={length}, needs at least 2 to predict anything')
    start_S, size_S = _windows(encoded.offsets, length)
    if not len(start_S):
        raise ValueError('pack: the documents hold no tokens')
    row_S, column_S, segment_S = _best_fit(size_S, length)
    shape = (int(row_S.max()) + 1, length)
    within = np.arange(size_S.sum()) - np.repeat(np.cumsum(size_S) - size_S, size_S)
    target = np.repeat(row_S * length + column_S, size_S) + within
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    tokens.reshape(-1)[target] = encoded.tokens[np.repeat(start_S, size_S) + within]
    segments.reshape(-1)[target] = np.repeat(segment_S, size_S)
    weights.reshape(-1)[target] = within > 0
    return {'tokens': tokens, 'segments': segments, 'weights': weights}


def _windows(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and sizes [S] of all pieces; a window starts at the last token of the one before."""
    size_D = np.diff(offsets)
    count_D = -(-(size_D - 1) // (length - 1))  # an empty document, <|end|> alone, gives none
    document_S = np.repeat(np.arange(len(size_D)), count_D)
    place_S = np.arange(count_D.sum()) - np.repeat(np.cumsum(count_D) - count_D, count_D)
    start_S = offsets[document_S] + place_S * (length - 1)
    return start_S, np.minimum(offsets[document_S + 1] - start_S, length)


def _best_fit(size_S: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and segment number [S] of each piece: largest first, into the fullest row."""
    row_S, column_S, segment_S = (np.zeros(len(size_S), np.int64) for _ in range(3))
    rows_with: list[list[int]] = [[] for _ in range(length + 1)]  # rows by space left
    spaces = 0  # bit s is set when some row has s places left
    segments: list[int] = []
    for piece in np.argsort(-size_S, kind='stable').tolist():
        size = int(size_S[piece])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = rows_with[space].pop()
            spaces ^= (not rows_with[space]) << space
        else:
            space, row = length, len(segments)
            segments.append(0)
        segments[row] += 1
        row_S[piece], column_S[piece], segment_S[piece] = row, length - space, segments[row]
        left = space - size
        if left:
            rows_with[left].append(row)
            spaces |= 1 << left
    return row_S, column_S, segment_S


def documents_of_rows(encoded: Encoded, length: int) -> np.ndarray:
    """Index of the document each token of `pack`'s rows comes from; int64 [rows, T], -1 padding."""
    start_S, size_S = _windows(encoded.offsets, length)
    row_S, column_S, _ = _best_fit(size_S, length)
    document_S = np.searchsorted(encoded.offsets, start_S, side='right') - 1
    within = np.arange(size_S.sum()) - np.repeat(np.cumsum(size_S) - size_S, size_S)
    rows = np.full((int(row_S.max()) + 1, length), -1, np.int64)
    rows.reshape(-1)[np.repeat(row_S * length + column_S, size_S) + within] = np.repeat(
        document_S, size_S
    )
    return rows
