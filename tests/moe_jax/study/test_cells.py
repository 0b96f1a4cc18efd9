"""A cell's id is its inputs: it changes with each of them and with nothing else."""

import dataclasses

import numpy as np
import pytest

from moe_jax.data import tasks
from moe_jax.evals.tasks import encode_task
from moe_jax.study import material
from moe_jax.study.expert_count.cells import cells
from moe_jax.study.expert_count.spec import Method
from tests.moe_jax.study import study_tiny

STUDY = study_tiny.config()
KINDS = {'pretrain', 'usage', 'latency', 'parallel', 'embedding', 'score'}


def ids(study, stuff) -> dict[str, set[str]]:
    """Ids by kind."""
    found = cells(study, stuff)
    assert len({cell.id for cell in found}) == len(found)
    return {kind: {cell.id for cell in found if cell.kind == kind} for kind in KINDS}


def changed(study, stuff, reference) -> set[str]:
    """Kinds of which no cell is the same; every kind must change as a whole or not at all."""
    found = ids(study, stuff)
    for kind in KINDS:
        assert found[kind] == reference[kind] or not found[kind] & reference[kind], kind
    return {kind for kind in KINDS if found[kind] != reference[kind]}


def retrained(**fields):
    return STUDY.replace(pretrain=dataclasses.replace(STUDY.pretrain, **fields))


def recovered(stage, **fields):
    options = dataclasses.replace(getattr(STUDY.recovery, stage), **fields)
    return STUDY.replace(recovery=dataclasses.replace(STUDY.recovery, **{stage: options}))


MODELS = {'pretrain', 'usage', 'embedding', 'score'}
STUDIES = {
    'nothing': (STUDY.replace(name='other', description='other'), set()),
    'how often it saves': (retrained(checkpoint_every=1, keep=3), set()),
    'how often it logs': (retrained(log_every=1), set()),
    'how often recovery saves': (recovered('warm', checkpoint_every=1), set()),
    'learning rate': (retrained(peak_lr=1e-4), MODELS),
    'steps': (retrained(steps=30), MODELS),
    'model': (STUDY.replace(model=STUDY.model.replace(balance=0.5)), KINDS),
    'capacity': (STUDY.replace(capacity=2.0), KINDS),
    'rows': (STUDY.replace(score_rows=2), KINDS),
    'warming': (recovered('warm', steps=1), {'score'}),
    'fine-tuning': (recovered('finetune', weight_decay=0.0), {'score'}),
    'text share': (STUDY.replace(recovery=dataclasses.replace(STUDY.recovery, text_share=0.25)),
                   {'score'}),
    'observed tokens': (STUDY.replace(observe_tokens=128), {'embedding', 'score'}),
    'seed': (STUDY.replace(seeds=(7,)), MODELS),
}


@pytest.mark.parametrize('name', STUDIES)
def test_an_id_changes_with_its_inputs_alone(stuff, name):
    study, kinds = STUDIES[name]
    assert changed(study, stuff, ids(STUDY, stuff)) == kinds


def test_options_of_the_main_method_change_what_it_shrinks(stuff):
    method = Method(label='uncurl', name='uncurl', options=(('seed', 3),))
    before, after = ids(STUDY, stuff), ids(STUDY.replace(main=method), stuff)
    assert {k for k in KINDS if before[k] != after[k]} == {'embedding', 'score'}
    assert len(before['score'] & after['score']) == 6 and len(after['score']) == 8


def test_a_new_label_is_no_new_cell(stuff):
    renamed = STUDY.replace(main=Method(label='ours', name='uncurl'))
    assert ids(renamed, stuff) == ids(STUDY, stuff)


def test_more_seeds_tasks_and_pairs_only_add_cells(stuff):
    def all_ids(study):
        return {cell.id for cell in cells(study, stuff)}

    assert all_ids(STUDY) < all_ids(STUDY.replace(seeds=(0, 1)))
    grown = STUDY.replace(experts=(2, 3, 4), pairs=((4, 2), (4, 3)))
    missing = [cell for cell in cells(STUDY, stuff) if cell.id not in all_ids(grown)]
    # These measure all sizes side by side.
    assert [cell.kind for cell in missing] == ['latency', 'parallel']


def test_one_latency_cell_and_embeddings_for_the_first_seed_only(stuff):
    kinds = [cell.kind for cell in cells(STUDY.replace(seeds=(0, 1)), stuff)]
    assert kinds.count('latency') == kinds.count('parallel') == kinds.count('embedding') == 1
    assert kinds.count('score') == 16 and kinds.count('pretrain') == 4


def test_what_others_need_comes_first(stuff):
    seen = set()
    for cell in cells(STUDY.replace(seeds=(0, 1)), stuff):
        assert cell.parent is None or cell.parent in seen
        seen.add(cell.id)


def test_titles_are_distinct_and_name_the_models(stuff):
    titles = [cell.title for cell in cells(STUDY, stuff)]
    assert len(set(titles)) == len(titles)
    assert {'pretrain 4 (seed 0)', 'scratch 2 on quiz (seed 0)', 'latency (seed 0)',
            'uncurl 4->2 on quiz (seed 0)'} <= set(titles)


def test_a_corrected_label_redoes_the_scores_of_its_task(stuff, texts):
    quiz = tasks.load('quiz', data_dir=texts)
    wrong = quiz.examples_validation[0]
    corrected = dataclasses.replace(wrong, label=1 - wrong.label)
    other = dataclasses.replace(
        quiz, examples_validation=(corrected, *quiz.examples_validation[1:]))
    length = STUDY.recovery.finetune.length
    digests = {encode_task(t, stuff.tokenizer, length).digest for t in (quiz, quiz, other)}
    assert len(digests) == 2 and stuff.tasks['quiz'].digest in digests


def test_held_out_text_is_part_of_the_data_digest(stuff, texts):
    fewer = material.prepare(STUDY.replace(heldout_tokens=64), texts)
    assert fewer.digest != stuff.digest
    for domain, rows in stuff.train.items():
        np.testing.assert_array_equal(rows['tokens'], fewer.train[domain]['tokens'])
