"""A byte-level BPE tokenizer of our own: any text round-trips, and no text is a special token."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moe_jax.base import cache
from moe_jax.base.files import replacing
from moe_jax.data.documents import Corpus, cap_characters

PAD, END = 0, 1
SPECIALS = ('<|pad|>', '<|end|>')


class Marks(NamedTuple):
    """The ids that open a text and that close one: of our own tokenizers both are <|end|>."""

    begin: int
    end: int


OWN = Marks(END, END)
SMALLEST = len(SPECIALS) + 256
SAMPLE_CHARACTERS = 3_000_000


def sample(corpus: Corpus, characters: int = SAMPLE_CHARACTERS) -> tuple[str, ...]:
    """Training texts whose characters are shared out equally over the domains."""
    share = characters // len(corpus.domains)
    return tuple(document.text for domain in corpus.domains
                 for document in cap_characters(corpus.part(domain, 'train'), share))


def train(texts: Iterable[str], vocab: int, path: str | os.PathLike) -> Tokenizer:
    """Trains byte-level BPE (Sennrich et al. 2016, Radford et al. 2019), saves and returns it.

    At most `vocab` ids: <|pad|> 0, <|end|> 1, the 256 bytes, then merges; fewer where the texts
    run out of pairs. The same texts give the same file. Raises ValueError when vocab < 258.
    """
    if vocab < SMALLEST:
        raise ValueError(f'tokenizer.train: vocab={vocab} is too small; byte-level BPE needs '
                         f'{SMALLEST} (256 bytes and {", ".join(SPECIALS)})')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    with replacing(path) as temporary:
        tokenizer.save(str(temporary))
    return load(path)


def of_corpus(corpus: Corpus, vocab: int) -> Path:
    """The path of the tokenizer trained on a corpus: in the cache, named by its training text."""
    identity = hashlib.sha256('\0'.join((corpus.fingerprint, str(vocab))).encode()).hexdigest()
    path = cache.root() / 'tokenizers' / f'{identity[:16]}.json'
    if not path.exists():
        train(sample(corpus), vocab, path)
    return path


def load(path: str | os.PathLike) -> Tokenizer:
    """Reads a saved tokenizer; '<|end|>' written in a text encodes as plain characters."""
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no tokenizer here; train one with tokenizer.train')
    tokenizer = Tokenizer.from_file(str(path))
    for number, special in enumerate(SPECIALS):
        if tokenizer.token_to_id(special) != number:
            raise ValueError(f'{path}: {special} has id {tokenizer.token_to_id(special)}, '
                             f'expected {number}; train it with tokenizer.train')
    tokenizer.encode_special_tokens = True  # not stored in the file
    return tokenizer


def load_foreign(path: str | os.PathLike) -> Tokenizer:
    """Reads the tokenizer.json of a Hugging Face model; special tokens in a text stay text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def is_own(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the special tokens that `train` gives, with their ids."""
    return all(tokenizer.token_to_id(special) == id for id, special in enumerate(SPECIALS))


def digest(path: str | os.PathLike) -> str:
    """SHA-256 of the saved tokenizer: its identity in caches and records."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check(tokenizer: Tokenizer, vocab: int) -> None:
    """Raises ValueError when one of our own tokenizers has ids that a model of `vocab` lacks.

    Those of released models are often longer than the vocabulary: what they make of a text counts
    (`check_used`).
    """
    size = tokenizer.get_vocab_size()
    if size > vocab and is_own(tokenizer):
        raise ValueError(f'the tokenizer has {size} ids but the model has a vocabulary of {vocab}; '
                         f'set vocab={size} or train the tokenizer with vocab={vocab}')


def check_used(tokenizer: Tokenizer, vocab: int, ids: np.ndarray, where: str) -> None:
    """Raises ValueError when a text became ids that a model of `vocab` entries lacks."""
    highest = int(ids.max(initial=0))
    if highest >= vocab:
        raise ValueError(f'{where}: the tokenizer made {tokenizer.id_to_token(highest)!r}, id '
                         f'{highest}, of the text, but the model has a vocabulary of {vocab}; is '
                         'this the tokenizer of the model?')
