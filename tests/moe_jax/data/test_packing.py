"""Packing: no token is lost, none is predicted twice, and documents never touch."""

import numpy as np
import pytest

from moe_jax.data.encode import Encoded
from moe_jax.data.packing import pack


def encoded(sizes, dtype=np.uint16) -> Encoded:
    """Documents of the given sizes, all of whose tokens but <|end|> are different numbers."""
    offsets = np.concatenate([[0], np.cumsum(np.asarray(sizes) + 1)]).astype(np.int64)
    tokens = np.arange(2, offsets[-1] + 2).astype(dtype)
    tokens[offsets[:-1]] = 1
    return Encoded(tokens, offsets)


def test_three_documents_by_hand():
    rows = pack(encoded([2, 5, 1]), 4)
    # 1 3 4 | 1 6 7 8 9 10 | 1 12: the second needs windows '1 6 7 8' and, after 8, '8 9 10'.
    np.testing.assert_array_equal(rows['tokens'], [[1, 6, 7, 8], [1, 3, 4, 0], [8, 9, 10, 0],
                                                   [1, 12, 0, 0]])
    np.testing.assert_array_equal(rows['segments'], [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0],
                                                     [1, 1, 0, 0]])
    np.testing.assert_array_equal(rows['weights'], [[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0],
                                                    [0, 1, 0, 0]])
    assert [rows[name].dtype for name in rows] == [np.int32, np.int32, np.float32]


@pytest.mark.parametrize('length', [2, 3, 7, 64])
@pytest.mark.parametrize('seed', range(3))
def test_every_token_is_predicted_once_from_its_own_past(length, seed):
    sizes = np.random.default_rng(seed).integers(0, 40, 200)
    documents = encoded(sizes)
    rows = pack(documents, length)
    tokens, segments, weights = rows['tokens'], rows['segments'], rows['weights']
    predicted = tokens[weights == 1]
    np.testing.assert_array_equal(np.sort(predicted), documents.tokens[documents.tokens != 1])
    assert set(np.unique(weights)) <= {0, 1}
    # Within a segment each token follows the one before it in its document, and only there.
    inside = weights[:, 1:] == 1
    before, after = tokens[:, :-1][inside], tokens[:, 1:][inside]
    assert np.all((after == before + 1) | (before == 1))
    first_tokens = documents.tokens[documents.offsets[:-1][sizes > 0] + 1]
    assert set(after[before == 1]) == set(first_tokens)
    assert np.all((segments[:, 1:] == segments[:, :-1])[inside])


@pytest.mark.parametrize('length', [3, 64])
def test_segments_count_up_and_padding_stands_at_the_end(length):
    rows = pack(encoded(np.random.default_rng(0).integers(0, 40, 200)), length)
    segments = rows['segments']
    padding = segments == 0
    assert np.all(rows['tokens'][padding] == 0) and np.all(rows['weights'][padding] == 0)
    assert np.all(np.diff(padding.astype(int), axis=1) >= 0)
    assert np.all(segments[:, 0] == 1)
    steps = np.diff(segments, axis=1)[~padding[:, 1:]]
    assert set(np.unique(steps)) <= {0, 1}
    starts = np.diff(segments, axis=1, prepend=0) != 0
    assert np.all(rows['weights'][starts] == 0)
    assert np.all(rows['weights'][~starts & ~padding] == 1)


def test_a_document_that_fits_stays_whole():
    rows = pack(encoded([6] * 30 + [3] * 30 + [1] * 30), 8)
    for row, segments in zip(rows['tokens'], rows['segments'], strict=True):
        assert all(row[segments == s][0] == 1 for s in range(1, segments.max() + 1))
    # 7 + nothing, 4 + 4, 2 * 4: best fit reaches the least number of rows here.
    assert len(rows['tokens']) == 30 + 15 + 8


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match='at least 2'):
        pack(encoded([3]), 1)
    with pytest.raises(ValueError, match='no tokens'):
        pack(encoded([0, 0]), 4)
    with pytest.raises(ValueError, match='no tokens'):
        pack(encoded([]), 4)


def test_large_vocabularies_keep_their_ids():
    rows = pack(encoded([100_000], np.uint32), 128)
    assert rows['tokens'].max() == 100_002
