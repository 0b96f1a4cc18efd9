"""Which ids open, close and stop the texts of a folder: held against transformers' own loading."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from moe_jax.data import tokenizer
from moe_jax.data.tokenizer import OWN, Marks
from moe_jax.storage.tokens import load_tokenizer, open_tokenizer, stop_ids

TEXT = 'a cat and a dog'


def bytes_pairs(bos, eos):
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return trained(words, bos, eos, pre_tokenizers.ByteLevel.alphabet())


def metaspace(bos, eos):
    words = Tokenizer(models.BPE(unk_token=eos))
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.decoder = decoders.Metaspace()
    return trained(words, bos, eos, [])


def trained(words, bos, eos, alphabet):
    words.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(dict.fromkeys([eos, bos])), show_progress=False,
        initial_alphabet=alphabet))
    return words


def write(folder, words, *, template=None, options=None, ends=None, config=None, special=None):
    """A folder as released ones are, with what is given."""
    if template is not None:
        named = [(word, words.token_to_id(word)) for word in template.split() if word != '$A']
        words.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    words.save(str(folder / 'tokenizer.json'))
    files = {'tokenizer_config.json': options, 'special_tokens_map.json': special,
             'generation_config.json': ends, 'config.json': config}
    for name, content in files.items():
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


FAST = {'tokenizer_class': 'PreTrainedTokenizerFast'}
WORD = {'__type': 'AddedToken', 'content': '[EOS]', 'lstrip': False, 'normalized': False,
        'rstrip': False, 'single_word': False, 'special': True}
KINDS = {
    'none is added': (bytes_pairs, None, {'bos_token': '[BOS]', 'eos_token': '[EOS]'}),
    'by a template': (bytes_pairs, '[BOS] $A', {'bos_token': '[BOS]', 'eos_token': '[EOS]'}),
    'by a template on both sides': (bytes_pairs, '[BOS] $A [EOS]', {'eos_token': '[EOS]'}),
    'only at the end': (bytes_pairs, '$A [EOS]', {'eos_token': '[EOS]'}),
    'by a flag': (bytes_pairs, None, {
        'bos_token': '[BOS]', 'eos_token': WORD, 'add_bos_token': True}),
    'a flag against the template': (bytes_pairs, '[BOS] $A', {
        'bos_token': '[BOS]', 'eos_token': '[EOS]', 'add_bos_token': False}),
    'a flag without a token': (bytes_pairs, None, {
        'eos_token': '[EOS]', 'add_bos_token': True}),
    'one token for both': (bytes_pairs, '[EOS] $A', {'bos_token': '[EOS]', 'eos_token': WORD}),
    'spaces as letters': (metaspace, '[BOS] $A', {'bos_token': '[BOS]', 'eos_token': '[EOS]'}),
}


@pytest.mark.parametrize('kind', KINDS)
def test_texts_open_and_close_as_in_transformers(tmp_path, kind):
    from transformers import AutoTokenizer

    words, template, options = KINDS[kind]
    write(tmp_path, words('[BOS]', '[EOS]'), template=template, options=FAST | options)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    whole, plain = (peer(TEXT, add_special_tokens=add)['input_ids'] for add in (True, False))
    opened = open_tokenizer(tmp_path)
    other = peer.bos_token_id if options.get('add_bos_token') and peer.bos_token else (
        peer.eos_token_id)
    assert opened.marks == Marks(whole[0] if whole[0] != plain[0] else other, peer.eos_token_id)
    assert opened.encoder.encode(TEXT, add_special_tokens=False).ids == plain
    assert opened.stops == (peer.eos_token_id,)
    assert not opened.own


@pytest.mark.parametrize('files, stops', [
    ({'ends': {'eos_token_id': [5, 7]}, 'config': {'eos_token_id': 3}}, (5, 7)),
    ({'ends': {'eos_token_id': None}, 'config': {'eos_token_id': 3}}, (3,)),
    ({'config': {'text_config': {'eos_token_id': [4]}}}, (4,)),
    ({'ends': {'eos_token_id': []}, 'options': FAST}, ()),
])
def test_every_end_token_stops_wherever_it_is_named(tmp_path, files, stops):
    """The tokenizer's own closes texts; where it names none, the first of the others does."""
    named = {'special': {'eos_token': '[EOS]'}}
    for name, special in (('named', named), ('unnamed', {})):
        folder = tmp_path / name
        folder.mkdir()
        write(folder, bytes_pairs('[BOS]', '[EOS]'), **files, **special)
        assert stop_ids(folder) == stops
    opened = open_tokenizer(tmp_path / 'named')
    assert opened.marks.end == opened.encoder.token_to_id('[EOS]')
    assert set(opened.stops) == {*stops, opened.marks.end}
    if stops:
        assert open_tokenizer(tmp_path / 'unnamed').marks == Marks(stops[0], stops[0])
        assert open_tokenizer(tmp_path / 'unnamed').stops == stops
    else:
        with pytest.raises(ValueError, match='no end token is named; set eos_token_id'):
            open_tokenizer(tmp_path / 'unnamed')


def test_a_tokenizer_alone_gets_its_tokens_from_what_is_beside_it(tmp_path):
    write(tmp_path, bytes_pairs('<|open|>', '<|close|>'), template='<|open|> $A',
          ends={'eos_token_id': [0, 9]})
    loaded = load_tokenizer(tmp_path)
    assert (loaded.eos_token, loaded.bos_token) == ('<|close|>', '<|open|>')
    assert loaded(TEXT)['input_ids'][0] == loaded.bos_token_id == open_tokenizer(
        tmp_path).marks.begin


def test_a_tokenizer_that_makes_nothing_of_the_probe(tmp_path):
    """Words alone, none of them ours, and no token for unknown ones."""
    words = Tokenizer(models.WordLevel({'[EOS]': 0, 'cat': 1, '[BOS]': 2}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for template, begin in ((None, 0), ('[BOS] $A', 2)):
        write(tmp_path, words, template=template, options=FAST | {'eos_token': '[EOS]'})
        assert open_tokenizer(tmp_path).marks == Marks(begin, 0)


def test_one_of_our_own_is_known_by_its_special_tokens(tmp_path):
    tokenizer.train([TEXT] * 4, 280, tmp_path / 'tokenizer.json')
    opened = open_tokenizer(tmp_path)
    assert opened.own and opened.marks == OWN
    (tmp_path / 'tokenizer.json').unlink()
    with pytest.raises(FileNotFoundError, match='no tokenizer; put the one'):
        open_tokenizer(tmp_path)


def test_a_longer_tokenizer_is_taken_while_its_text_fits():
    words = bytes_pairs('[BOS]', '[EOS]')
    words.add_special_tokens([f'<extra {i}>' for i in range(9)])
    ids = words.encode(TEXT).ids
    tokenizer.check(words, max(ids) + 1)
    tokenizer.check_used(words, max(ids) + 1, np.array(ids), 'here')
    with pytest.raises(ValueError, match=f'here.*id {max(ids)}, of the text.*vocabulary of'):
        tokenizer.check_used(words, max(ids), np.array(ids), 'here')
