"""Tasks made from text: nothing shared by the sides, options that do not give the answer away."""

import dataclasses
import random

import pytest

from moe_jax.data import tasks
from moe_jax.data.documents import PARTS, Corpus, Document
from moe_jax.data.tasks import gloss_choice
from moe_jax.data.tasks.passages import spans

WORDS = ('wall', 'stone', 'bell', 'mason', 'yard', 'gate', 'rope', 'lime', 'arch', 'tower')


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return ' '.join(f'{draw.choice(WORDS)}{draw.randrange(100)}' for _ in range(words))


def word(number: int) -> str:
    return f'{WORDS[number % 10]}{"abcdefghij"[number // 10 % 10]}ette{number}'


@pytest.fixture(scope='module')
def corpus() -> Corpus:
    parts = {}
    for offset, part in enumerate(PARTS):
        seed = 1000 * offset
        for domain in ('speeches', 'drama', 'code'):
            parts[domain, part] = tuple(
                Document(f'{domain}/{part}{i // 2}#{i % 2}', domain,
                         f'{domain}\n{prose(seed + i + len(domain) * 50, 400)}')
                for i in range(10))
        parts['dictionary', part] = tuple(
            Document(f'dictionary/{word(i)}', 'dictionary',
                     f'{word(i)}, {("n.", "v. t.")[i % 2]}\n1. To {prose(seed + i, 6)}.\n2. More.')
            for i in range(offset * 100, offset * 100 + 80))
    return Corpus(parts, 'fingerprint', 'a corpus of our own')


@pytest.mark.parametrize('name', ['domain_id', 'next_passage', 'gloss_choice'])
def test_groups_labels_and_source(name, corpus):
    task = tasks.load(name, corpus=corpus)
    train = {example.group for example in task.examples_train}
    assert train.isdisjoint(example.group for example in task.examples_validation)
    everything = (*task.examples_train, *task.examples_validation)
    assert len({example.id for example in everything}) == len(everything)
    assert len({example.label for example in everything}) == 4
    known = {document.group for domain in corpus.domains
             for document in corpus.part(domain, 'task')}
    assert {example.group for example in everything} <= known
    assert task == tasks.load(name, corpus=corpus)
    assert task.source == 'a corpus of our own' and 'pretraining never sees' in task.split_note
    assert len(tasks.load(name, corpus=corpus, limit=5).examples_train) == 5


def test_domain_id_is_balanced_and_true(corpus):
    task = tasks.load('domain_id', corpus=corpus)
    assert tasks.majority(task) == 0.25
    for example in task.examples_train:
        assert example.group.startswith(example.answer.strip() + '/')


def test_next_passage_goes_on_in_the_document(corpus):
    texts = {d.id: d.text for domain in corpus.domains for d in corpus.part(domain, 'task')}
    for example in tasks.load('next_passage', corpus=corpus).examples_validation:
        text = texts[example.id.removeprefix('next_passage/').rpartition('@')[0]]
        clip = example.clips[0]
        passage = example.context[clip.start:clip.end]
        assert clip.keep == 'tail'
        assert f'{passage}{example.answer}' in text
        for choice in example.choices:
            assert choice.strip() in text
            assert choice == example.answer or choice.strip() not in passage


def test_gloss_choice_offers_glosses_of_one_kind_and_side_without_the_headword(corpus):
    task = tasks.load('gloss_choice', corpus=corpus)
    entries = {entry.gloss: entry for document in corpus.part('dictionary', 'task')
               if (entry := gloss_choice.entry(document))}
    sides = []
    for examples in (task.examples_train, task.examples_validation):
        sides.append({choice for example in examples for choice in example.choices})
        for example in examples:
            right = entries[example.answer.strip()]
            assert example.context.startswith(f'Input: {right.headword}, {right.part_of_speech}\n')
            for choice in example.choices:
                assert right.headword not in choice
                assert entries[choice.strip()].part_of_speech == right.part_of_speech
    assert sides[0].isdisjoint(sides[1])


@pytest.mark.parametrize('text', [
    'wall, n.\nSee Stone, which is a longer definition.', 'wall, n.\nToo short.', 'wall, n.',
    'wall, n.\nA wall of stone, or another wall.', f'wall, n.\n{"long " * 30}'])
def test_entries_that_define_nothing_usable_are_left_out(text):
    assert gloss_choice.entry(Document('dictionary/wall', 'dictionary', text)) is None


def test_text_tasks_are_the_fresh_and_the_held_out_documents(corpus):
    task = tasks.load('lm-code', corpus=corpus, limit=3)
    assert task.train == corpus.texts('code', 'task')[:3]
    assert task.validation == corpus.texts('code', 'heldout')[:3]
    with pytest.raises(KeyError, match=r"no task 'lm-cod'; did you mean 'lm-code'"):
        tasks.load('lm-cod', corpus=corpus)


def test_a_corpus_too_small_for_a_task_is_named(corpus):
    thin = {key: documents[:2] if key[1] == 'task' else documents
            for key, documents in corpus.parts.items()}  # two pieces of one group
    with pytest.raises(ValueError, match=r"'domain_id': no validation passages of \['speeches'"):
        tasks.load('domain_id', corpus=dataclasses.replace(corpus, parts=thin))
    with pytest.raises(ValueError, match=r"'gloss_choice': no .* examples"):
        tasks.load('gloss_choice', corpus=dataclasses.replace(corpus, parts=thin))
    code = {key: documents for key, documents in corpus.parts.items() if key[0] == 'code'}
    with pytest.raises(KeyError, match=r"no domain 'dictionary'"):
        tasks.load('gloss_choice', corpus=dataclasses.replace(corpus, parts=code))


def test_spans_cover_all_words_in_order():
    text = '  one two\nthree  ' + 'x' * 12 + ' four '
    found = [text[span] for span in spans(text, 8)]
    assert found[:2] == ['one two', 'three'] and found[-1] == 'four'
    assert all(len(piece) <= 8 for piece in found)
    free = [text[span] for span in spans(text, 12)]
    assert ' '.join(free).split() == text.split()
