"""Recovery studies: what is refused, what makes a cell, what one computes, and going on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import moe_jax
import prune
import train
from moe_jax.storage import native
from moe_jax.study import kinds, material, records, runner
from moe_jax.study.expert_count import spec
from moe_jax.study.recovery import compute
from moe_jax.study.recovery.cells import cells
from moe_jax.study.recovery.spec import Drop, Recipe, Sparsify
from tests.moe_jax.study import recovery_tiny, study_tiny
from train import Distill, Trainable

STUDY = recovery_tiny.config()
HALF, SPARSE = STUDY.shrinks
MODELS = 10  # unshrunk as it was and trained, two ways of shrinking times none and three recipes
# What is really trained: every recipe is a program to compile.
RUN = STUDY.replace(recipes=STUDY.recipes[:1], seeds=(0, 1))


@pytest.fixture(scope='module')
def stuff(texts):
    return material.prepare(STUDY, texts)


@pytest.fixture(scope='module')
def folder(texts, tmp_path_factory):
    """A finished study of two seeds."""
    folder = tmp_path_factory.mktemp('recovery') / 'study'
    runner.run(RUN, folder, data_dir=texts)
    return folder


@pytest.fixture(scope='module')
def found(folder):
    """Outputs by (shrink, recipe, seed)."""
    return {(r['shrink'], r['recipe'], r['seed']): r['outputs']
            for r in records.read(folder).values() if r['kind'] == 'recover'}


@pytest.mark.parametrize(('fields', 'message'), [
    ({'shrinks': ()}, 'shrinks: at least one'),
    ({'shrinks': (HALF, dataclasses.replace(SPARSE, label='half'))}, 'labels .* must differ'),
    ({'shrinks': (dataclasses.replace(HALF, experts=4),)}, 'keep 1 to 3 of 4 experts'),
    ({'shrinks': (dataclasses.replace(SPARSE, sparsity=1.0),)}, r'sparsity=1.0: .* in \(0, 1\)'),
    ({'recipes': (Recipe(label='none'),), 'ceiling': 'none'}, 'must differ, and not be none'),
    ({'ceiling': 'plane'}, r"ceiling='plane': .* one of the recipes \['plain'"),
    ({'ceiling': 'routers'}, 'the unshrunk model has no teacher'),
    ({'ceiling': 'some'}, 'nothing to select'),
    ({'rates': (1e-2, 1e-3)}, 'in ascending order'),
    ({'rates': ()}, 'rates'),
    ({'tuning_rows': 0}, 'tuning_rows=0: must be an integer, at least 1'),
    ({'name': 'a/b'}, 'must be a valid folder name'),
    ({'seeds': (1, 1)}, 'seeds'),
])
def test_a_study_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        STUDY.replace(**fields)


def test_a_recipe_selects_or_names_what_trains():
    with pytest.raises(ValueError, match='goes without trains'):
        Recipe(label='both', select=0.5, trains='moe')
    with pytest.raises(ValueError, match='in \\(0, 1\\]'):
        Recipe(label='much', select=1.5)


@pytest.mark.parametrize(('shrink', 'message'), [
    (Drop(label='x', name='frequncy', experts=2), "shrink 'x'.*did you mean 'frequency'"),
    (Sparsify(label='x', name='wandas', sparsity=0.5), "did you mean 'wanda'"),
    (Sparsify(label='x', name='wanda', sparsity=0.5, options=(('tokens', 3),)), 'tokens'),
])
def test_methods_are_checked_before_anything_is_fetched(tmp_path, shrink, message):
    with pytest.raises(ValueError, match=message):
        runner.run(STUDY.replace(shrinks=(shrink,)), tmp_path / 'new', data_dir=tmp_path)
    assert not (tmp_path / 'new').exists()


def test_too_few_rows_to_keep_some_back(stuff):
    rows = len(stuff.tasks['lm-harbour'].train['tokens'])
    with pytest.raises(ValueError, match=f'has {rows} rows to train on, fewer than'):
        cells(STUDY.replace(tuning_rows=rows - 3), stuff)


def ids(study, stuff) -> dict[tuple, str]:
    return {(c.kind, c.about.get('shrink'), c.about.get('recipe'), c.about['seed']): c.id
            for c in cells(study, stuff)}


def test_cells_of_a_study(stuff):
    todo = cells(STUDY.replace(seeds=(0, 1)), stuff)
    assert [c.kind for c in todo] == (['pretrain'] + ['recover'] * MODELS) * 2
    assert len({c.id for c in todo}) == len(todo)
    first = {c.title.partition(' (')[0]: c for c in todo if c.about['seed'] == 0}
    for cell in todo[MODELS + 2:]:
        before = first[cell.title.partition(' (')[0]]
        trained = cell.about['recipe'] != 'none'
        assert cell.inputs.get('searched') == (before.id if trained else None)
        assert before.inputs.get('rates') == (list(STUDY.rates) if trained else None)
    assert first['recover half, routers on lm-harbour'].work > first[
        'recover half, none on lm-harbour'].work


@pytest.mark.parametrize(('study', 'changed'), [
    (STUDY.replace(name='other', description='other'), lambda key: False),
    (STUDY.replace(shrinks=(dataclasses.replace(HALF, label='Half'), SPARSE)), None),
    (STUDY.replace(shrinks=(dataclasses.replace(HALF, experts=3), SPARSE)),
     lambda key: key[1] == 'half'),
    (STUDY.replace(rates=(1e-3,)), lambda key: key[2] not in (None, 'none')),
    (STUDY.replace(recover=dataclasses.replace(STUDY.recover, steps=4)),
     lambda key: key[2] not in (None, 'none')),
    (STUDY.replace(recover=dataclasses.replace(STUDY.recover, log_every=1)), lambda key: False),
    (STUDY.replace(recover=dataclasses.replace(STUDY.recover, peak_lr=2.0)), lambda key: False),
    (STUDY.replace(recipes=(*STUDY.recipes[:2], Recipe(label='some', select=0.9))),
     lambda key: key[2] == 'some'),
    (STUDY.replace(pretrain=dataclasses.replace(STUDY.pretrain, steps=25)), lambda key: True),
])
def test_a_cell_changes_with_its_inputs_alone(stuff, study, changed):
    before, after = ids(STUDY, stuff), ids(study, stuff)
    if changed is None:  # a label alone
        assert sorted(before.values()) == sorted(after.values())
        return
    assert {key for key in before if before[key] != after[key]} == {
        key for key in before if changed(key)}


@pytest.mark.full
def test_the_search_keeps_the_rate_with_the_lowest_loss(found):
    searches = {key: out['search'] for key, out in found.items() if out['search']}
    assert {key[2] for key in searches} == {0} and len(searches) == 3
    for (shrink, recipe, _), search in searches.items():
        best = search['rates'][int(np.argmin(search['losses']))]
        assert found[shrink, recipe, 0]['rate'] == found[shrink, recipe, 1]['rate'] == best
    assert {found[s, 'plain', 0]['rate'] for s in ('none', 'half', 'sparse')} == {1e-2}


@pytest.mark.full
def test_what_a_recipe_trains_and_what_stays_zero(found, folder):
    (path,) = (folder / 'models').glob('*-seed-0')
    cfg, params = native.load(path)
    size = {'none': sum(leaf.size for leaf in jax.tree.leaves(params))}
    size['sparse'] = size['none']
    experts = params['layer_0']['moe']['experts']
    size['half'] = size['none'] - 2 * sum(leaf[0].size for leaf in jax.tree.leaves(experts)) - (
        2 * cfg.width)
    for (shrink, recipe, _), out in found.items():
        assert out['zeros'] == (0.5 if shrink == 'sparse' else 0.0)
        if recipe == 'plain':
            assert out['trained'] == size[shrink]
        assert (out['trained'] > 0) == (recipe != 'none') == (out['rate'] is not None)


@pytest.mark.full
def test_losses_are_those_of_the_examples_and_training_lowers_them(found):
    for out in found.values():
        examples = out['examples']
        mean = np.average(examples['log_likelihood'], weights=examples['weight'])
        assert out['loss'] == pytest.approx(-mean, abs=1e-4)
    for seed in (0, 1):
        for shrink in ('none', 'half', 'sparse'):
            assert found[shrink, 'plain', seed]['loss'] < found[shrink, 'none', seed]['loss']
        # Half of the weights removed by a criterion cannot help a model that was trained.
        assert found['sparse', 'none', seed]['loss'] > found['none', 'none', seed]['loss']


@pytest.mark.full
def test_a_finished_study_computes_nothing_and_the_unshrunk_model_is_the_pretrained(
        folder, texts, found, stuff, monkeypatch):
    content = (folder / records.FILE).read_bytes()
    for kind in compute.COMPUTE:
        monkeypatch.setitem(compute.COMPUTE, kind, lambda *_: 1 / 0)
    runner.run(RUN, folder, data_dir=texts)
    assert (folder / records.FILE).read_bytes() == content
    pretrained = next(r for r in records.read(folder).values()
                      if r['kind'] == 'pretrain' and r['seed'] == 1)
    assert found['none', 'none', 1]['domains'] == pretrained['outputs']['domains']


def test_the_loss_of_rows_against_numpy(folder, stuff):
    (path,) = (folder / 'models').glob('*-seed-0')
    cfg, params = native.load(path)
    cfg = cfg.replace(capacity_train=None, capacity_eval=None)
    packed = {k: v[:6] for k, v in stuff.tasks['lm-harbour'].train.items()}
    logits = np.asarray(moe_jax.apply(cfg, params, packed['tokens'], packed['segments']),
                        np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    gold = np.take_along_axis(log_probs[:, :-1], packed['tokens'][:, 1:, None], -1)[..., 0]
    weights = packed['weights'][:, 1:]
    expected = -(gold * weights).sum() / weights.sum()
    assert compute.rows_loss(cfg, params, packed, 4) == pytest.approx(expected, abs=1e-5)


def shop_of(stuff, folder, study=STUDY):
    todo = cells(study, stuff)
    models = {(4, c.about['seed']): c for c in todo if c.kind == 'pretrain'}
    return compute.Workshop(study, stuff, folder, models, lambda *_: None), todo


def test_every_recipe_gets_the_same_rows_and_none_that_choose_its_rate(folder, stuff, monkeypatch):
    seen = []

    def spy(cfg, params, *arguments, **named):
        rows, options = arguments[-2:] if len(arguments) == 2 else arguments[1:3]
        seen.append((rows, options))
        return params, []
    monkeypatch.setattr(train, 'finetune', spy)
    monkeypatch.setattr(train, 'distill', spy)
    shop, todo = shop_of(stuff, folder)
    for cell in todo:
        if cell.kind == 'recover' and cell.about['recipe'] != 'none':
            compute.recover(shop, cell)
            if cell.about['recipe'] == 'some':
                ((layer, ids),) = seen[-1][1].trainable.experts
                assert layer == 0 and 0 < len(ids) <= (2 if cell.about['shrink'] == 'half' else 4)
    task = stuff.tasks['lm-harbour'].train
    for rows, options in seen:
        assert all(np.array_equal(rows[k], task[k][:-STUDY.tuning_rows]) for k in task)
        assert dataclasses.replace(options, trainable=None, keep_zeros=None, peak_lr=1.0) == (
            STUDY.recover)
    assert len(seen) == (MODELS - 3) * len(STUDY.rates)
    assert sum(options.keep_zeros is not None for _, options in seen) == 2 * len(STUDY.rates)


def test_a_rate_that_diverges_is_passed_over(folder, stuff, monkeypatch):
    def picky(cfg, params, rows, options, **_):
        if options.peak_lr > 1e-3:
            raise train.Diverged('no', 3, {}, {})
        return params, []
    monkeypatch.setattr(train, 'finetune', picky)
    shop, todo = shop_of(stuff, folder)
    cell = next(c for c in todo if c.about.get('recipe') == 'plain')
    out = compute.recover(shop, cell)
    assert out['rate'] == 1e-9 and out['search']['losses'][1] is None
    json.dumps(out, allow_nan=False)
    shop, todo = shop_of(stuff, folder, STUDY.replace(rates=(1e-2,)))
    with pytest.raises(ValueError, match=r'no rate of .* trains without diverging'):
        compute.recover(shop, next(c for c in todo if c.about.get('recipe') == 'plain'))


@pytest.mark.full
def test_adapters_with_a_teacher_keep_zeros_too(folder, stuff):
    recipe = Recipe(label='low', trains=Trainable(rank=1, on='moe/experts/'),
                    distill=Distill(experts='balance'))
    study = STUDY.replace(recipes=(STUDY.recipes[0], recipe), rates=(1e-2,),
                          shrinks=STUDY.shrinks[1:])
    shop, todo = shop_of(stuff, folder, study)
    out = compute.recover(shop, next(c for c in todo if c.about.get('recipe') == 'low'))
    assert out['zeros'] == 0.5 and out['trained'] > 0


def test_the_config_loads_runs_and_costs(texts, tmp_path, command, capsys, monkeypatch):
    assert spec.load(recovery_tiny.__file__) == STUDY
    assert command('study', recovery_tiny.__file__, '--cost') == 0
    printed = capsys.readouterr().out
    assert '7 recoveries on 1 tasks' in printed and 'pretrain 4 experts' in printed
    for kind in compute.COMPUTE:
        monkeypatch.setitem(compute.COMPUTE, kind, lambda shop, cell: {'of': cell.title})
    folder = runner.run(STUDY, tmp_path, data_dir=texts).parent
    assert sum(r['kind'] == 'recover' for r in records.read(folder).values()) == MODELS
    assert kinds.kind_of(study_tiny.config()) is kinds.KINDS[spec.Study]


def test_a_misspelt_field_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text('from moe_jax.study.recovery.spec import Recipe\n'
                    'def config():\n    return Recipe(lable="x")\n')
    with pytest.raises(ValueError, match=r"config.py:3: Recipe has no field 'lable'; did you mean"):
        spec.load(path)


def test_the_plan_of_a_way_of_shrinking_is_the_library_s(folder, stuff):
    shop, todo = shop_of(stuff, folder)
    cfg, params = shop.model(4, 0)
    cell = next(c for c in todo if c.about.get('shrink') == 'half')
    stats = shop.stats(4, 0, 'lm-harbour')
    plan = prune.plan('frequency', stats, params, cfg, experts=2)
    small, _ = prune.apply(params, cfg, plan)
    assert stats.data and compute.recover(shop, cell)['zeros'] == 0.0
    for ours, theirs in zip(jax.tree.leaves(compute._shrunk(shop, cell).params),
                            jax.tree.leaves(small), strict=True):
        assert np.array_equal(ours, theirs)
