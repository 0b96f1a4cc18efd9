"""Tokens: any text round-trips, pieces equal the whole, the cache changes nothing."""

import random

import numpy as np
import pytest

from moe_jax.data import corpus, encode, tokenizer
from moe_jax.data.documents import Corpus, Document

WORDS = ['the', 'mason', 'laid', 'a', 'stone', 'upon', 'the', 'wall', 'stood', 'for', 'years']


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    ends = ['', '', ',', '.\n', '  ']
    return ' '.join(draw.choice(WORDS) + draw.choice(ends) for _ in range(words))


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    tokenizer.train([prose(seed, 200) for seed in range(20)], 280, path)
    return path


def anything(seed: int) -> str:
    draw = random.Random(seed)
    points = [draw.choice([draw.randrange(0, 0x80), draw.randrange(0, 0x3000),
                           draw.randrange(0xE000, 0x110000)]) for _ in range(200)]
    return ''.join(map(chr, points))


@pytest.mark.parametrize('text', ['', ' ', '\n\n \t', 'é日本🧱', '\0\x7f\x85\u2028',
                                  '<|end|> and <|pad|>', *map(anything, range(5))])
def test_any_text_round_trips_and_never_becomes_a_special_token(path, text):
    encoder = tokenizer.load(path)
    ids = encoder.encode(text).ids
    assert encoder.decode(ids, skip_special_tokens=False) == text
    assert not {tokenizer.PAD, tokenizer.END} & set(ids)


def test_training_is_deterministic_and_stays_within_its_size(path, tmp_path):
    again = tokenizer.train([prose(seed, 200) for seed in range(20)], 280, tmp_path / 'again.json')
    assert tokenizer.digest(tmp_path / 'again.json') == tokenizer.digest(path)
    assert again.get_vocab_size() == 280
    assert [again.token_to_id(name) for name in tokenizer.SPECIALS] == [0, 1]
    bytes_only = tokenizer.train(['aaaa'], 258, tmp_path / 'bytes.json')
    assert bytes_only.get_vocab_size() == 258
    assert len(bytes_only.encode('é').ids) == 2


def test_sizes_that_cannot_work_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match=r'vocab=257.*258'):
        tokenizer.train(['text'], 257, tmp_path / 'small.json')
    assert not list(tmp_path.iterdir())
    tokenizer.check(tokenizer.load(path), 280)
    with pytest.raises(ValueError, match=r'280 ids.*vocabulary of 279'):
        tokenizer.check(tokenizer.load(path), 279)
    with pytest.raises(FileNotFoundError, match='no tokenizer here'):
        tokenizer.load(tmp_path / 'none.json')


def test_the_sample_is_shared_out_over_domains():
    documents = {(domain, 'train'): tuple(Document(f'{domain}/{i}', domain, 'x' * size)
                                          for i in range(1000))
                 for domain, size in (('short', 10), ('long', 500))}
    texts = tokenizer.sample(Corpus(documents, ''), 20_000)
    assert sum(len(text) == 10 for text in texts) * 10 == 10_000
    assert sum(len(text) == 500 for text in texts) * 500 == 10_000


def test_encoding_in_pieces_equals_encoding_whole(path, monkeypatch):
    encoder = tokenizer.load(path)
    texts = [prose(1, 3000), '', 'x' * 9000, anything(3) * 30, 'a\x1c b\u00a0 c ' * 900, 'end']
    monkeypatch.setattr(encode, 'PIECES_PER_CALL', 3)
    encoded = encode.encode(encoder, texts)
    assert encoded.tokens.dtype == np.uint16
    assert len(encoded.offsets) == len(texts) + 1
    for text, begin, end in zip(texts, encoded.offsets[:-1], encoded.offsets[1:], strict=True):
        assert encoded.tokens[begin] == tokenizer.END
        assert encoded.tokens[begin + 1:end].tolist() == encoder.encode(text).ids
    assert len(list(encode._pieces(texts[0]))) > 3


def test_no_texts_encode_to_no_documents(path):
    encoded = encode.encode(tokenizer.load(path), [])
    assert len(encoded.tokens) == 0
    assert encoded.offsets.tolist() == [0]


def test_a_part_is_encoded_once_per_content_and_tokenizer(path, tmp_path, monkeypatch):
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path))

    def made_of(text):
        parts = {('d', 'train'): (Document('d/1', 'd', text), Document('d/2', 'd', 'wall'))}
        return Corpus(parts, corpus.fingerprint(parts))

    first = encode.encode_part(made_of('the stone'), 'd', 'train', path)
    monkeypatch.setattr(encode, 'encode', None)  # a second call must not come near it
    again = encode.encode_part(made_of('the stone'), 'd', 'train', path)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    with pytest.raises(TypeError):  # another text is another key
        encode.encode_part(made_of('the wall'), 'd', 'train', path)
    assert len(list((tmp_path / 'tokens').iterdir())) == 1
