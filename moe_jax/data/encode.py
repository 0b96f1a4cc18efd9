"""Texts to one array of token ids; a corpus part is encoded once and kept in the cache."""

import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from moe_jax.base import cache
from moe_jax.base.files import replacing
from moe_jax.data import tokenizer
from moe_jax.data.documents import Corpus

# A word boundary where the pre-tokenizer always cuts too, so pieces encode as the whole does.
CUT = re.compile(r'(?<=[A-Za-z0-9.,;:]) (?=[A-Za-z0-9])', re.ASCII)
PIECE_CHARACTERS = 2_000  # the tokenizer slows down on long texts
PIECES_PER_CALL = 512


class Encoded(NamedTuple):
    """Documents one after the other; document i is tokens[offsets[i]:offsets[i+1]].

    tokens [N] uint16 or uint32, each document beginning with <|end|>; offsets [documents+1] int64.
    """

    tokens: np.ndarray
    offsets: np.ndarray


def encode(encoder: Tokenizer, texts: Iterable[str], begin: int = tokenizer.END) -> Encoded:
    """Encodes texts in order, each as <|end|> and its tokens; long texts in pieces, for speed.

    `begin`: the id before each text, if the tokenizer is not ours.
    """
    dtype = np.uint16 if encoder.get_vocab_size() <= 1 << 16 else np.uint32
    opening = np.array([begin], dtype)
    arrays, begins, size = [opening[:0]], [], 0
    pieces = (piece for text in texts for piece in _pieces(text))
    while batch := tuple(itertools.islice(pieces, PIECES_PER_CALL)):
        encodings = encoder.encode_batch_fast([piece for _, piece in batch],
                                              add_special_tokens=False)
        for (first, _), encoding in zip(batch, encodings, strict=True):
            if first:
                arrays.append(opening)
                begins.append(size)
            arrays.append(np.array(encoding.ids, dtype))
            size += len(encoding.ids) + first
    return Encoded(np.concatenate(arrays), np.array([*begins, size], np.int64))


def beginnings(encoded: Encoded, most: int) -> Encoded:
    """At most the first `most` tokens of each document, its <|end|> counted."""
    sizes = np.diff(encoded.offsets)
    within = np.arange(len(encoded.tokens)) - np.repeat(encoded.offsets[:-1], sizes)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(sizes, most))]).astype(np.int64)
    return Encoded(encoded.tokens[within < most], offsets)


def encode_part(corpus: Corpus, domain: str, part: str, path: str | os.PathLike) -> Encoded:
    """Encodes one domain's part with the tokenizer saved at `path`, once for all later calls.

    The cached file is keyed by the corpus' texts, the part and the tokenizer's digest.
    """
    identity = f'{corpus.fingerprint} {domain} {part} {tokenizer.digest(path)}'
    key = hashlib.sha256(identity.encode()).hexdigest()[:24]
    file = cache.root() / 'tokens' / f'{key}.npy'
    if file.exists():
        return _with_offsets(np.load(file))
    encoded = encode(tokenizer.load(path), corpus.texts(domain, part))
    with replacing(file) as temporary:
        np.save(temporary, encoded.tokens)
    return encoded


def _with_offsets(tokens: np.ndarray) -> Encoded:
    """Documents found by their <|end|>: no text encodes to it, so each one begins a document."""
    begins = np.flatnonzero(tokens == tokenizer.END)
    return Encoded(tokens, np.append(begins, len(tokens)).astype(np.int64))


def _pieces(text: str) -> Iterator[tuple[bool, str]]:
    """The text cut at word boundaries into (is the first, piece) of about PIECE_CHARACTERS."""
    start, first = 0, True
    while len(text) - start > PIECE_CHARACTERS:
        match = CUT.search(text, start + PIECE_CHARACTERS)
        if match is None:
            break
        yield first, text[start:match.start()]
        start, first = match.start(), False
    yield first, text[start:]
