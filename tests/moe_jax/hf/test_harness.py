"""The standard harness over our models: held against its own wrapper of transformers."""

import json
import shutil

import numpy as np
import pytest

from tests.moe_jax.hf import lexicon, tiny

TASKS = ('choice', 'rolling', 'until')
pytest.importorskip('lm_eval')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A tiny checkpoint with a tokenizer, and a folder of tasks."""
    root = tmp_path_factory.mktemp('harness')
    folder = tiny.write(root / 'model', 'qwen3_moe', 'wide heads')
    lexicon.write_tokenizer(folder)
    (root / 'tasks').mkdir()
    lexicon.write_tasks(root / 'tasks', np.random.default_rng(0))
    return folder, root / 'tasks'


def evaluate(model, tasks, **options):
    """Metrics by task, and each item's responses."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=manager,
                                    bootstrap_iters=0, log_samples=True, **options)
    return found['results'], {
        name: [item['resps'] for item in sorted(items, key=lambda item: item['doc_id'])]
        for name, items in found['samples'].items()}


@pytest.fixture(scope='module')
def opening(place, tmp_path_factory):
    """The same model; its tokenizer opens texts with w0, many words end one, no system message."""
    folder = tmp_path_factory.mktemp('opening') / 'model'
    shutil.copytree(place[0], folder)
    lexicon.write_tokenizer(folder, opening='w0', ends=range(0, 60, 4), template=lexicon.NO_SYSTEM)
    return folder


@pytest.mark.full
def test_items_and_metrics_equal_the_harness_on_transformers(place):
    compared(*place, 1)


@pytest.mark.full
def test_opening_tokens_many_ends_and_chats_equal_the_harness_on_transformers(place, opening):
    own = compared(opening, place[1], 8)
    assert any(text.count('w') < 8 for item in own['until'] for text in item[0])
    compared(opening, place[1], 8, apply_chat_template=True, system_instruction='w1 w2')


def compared(folder, tasks, batch, **options):
    pytest.importorskip('torch')
    pytest.importorskip('accelerate')
    from lm_eval.models.huggingface import HFLM

    from moe_jax.evals.harness import HarnessLM

    peer = HFLM(str(folder), device='cpu', dtype='float32', batch_size=batch)
    (exact, items), (found, own) = (
        evaluate(model, tasks, **options) for model in (peer, HarnessLM(str(folder), batch=batch)))
    for item, exact_item in zip(own['choice'], items['choice'], strict=True):
        for (ours, greedy), (theirs, exact_greedy) in zip(
                [r[0] for r in item], [r[0] for r in exact_item], strict=True):
            assert abs(float(ours) - float(theirs)) < 1e-4
            assert str(greedy) == str(exact_greedy)
    np.testing.assert_allclose(np.array(own['rolling'], float).ravel(),
                               np.array(items['rolling'], float).ravel(), rtol=0, atol=1e-3)
    assert own['until'] == items['until']
    for task in TASKS:
        for name, value in exact[task].items():
            if isinstance(value, float):
                assert found[task][name] == pytest.approx(value, rel=1e-4), (task, name)
    return own


def test_the_command_prints_and_writes_results_offline(place, tmp_path, capsys):
    from moe_jax.cli.lm_eval import lm_eval

    folder, tasks = place
    lm_eval(folder, ('choice', 'until'), include_path=tasks, limit=4, out=tmp_path / 'out.json')
    assert 'acc_norm' in capsys.readouterr().out
    results = json.loads((tmp_path / 'out.json').read_text())['results']
    assert set(results) == {'choice', 'until'}


@pytest.mark.parametrize('flags, message', [
    ({'apply_chat_template': True}, 'has no chat template'),
    ({'fewshot_as_multiturn': True}, 'turns need --apply-chat-template')])
def test_chats_that_cannot_be_are_refused_before_the_model_is_read(place, flags, message):
    from moe_jax.cli.lm_eval import lm_eval

    with pytest.raises(ValueError, match=message):
        lm_eval(place[0], ('choice',), include_path=place[1], **flags)


def test_an_unknown_task_is_an_error(place, tmp_path, monkeypatch):
    """A folder stands for the one in which the harness has thousands, which it would all read."""
    from lm_eval.tasks import manager

    from moe_jax.cli.lm_eval import lm_eval

    (tmp_path / 'choose.yaml').write_text((place[1] / 'choice.yaml').read_text().replace(
        'task: choice', 'task: choose'))
    monkeypatch.setattr(manager, '__file__', str(tmp_path / 'manager.py'))
    with pytest.raises(ValueError, match=r"no task 'choices'.*'choice' or 'choose'"):
        lm_eval(place[0], ('choices',), include_path=place[1])
