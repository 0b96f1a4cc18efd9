"""`moe-jax prune --to hf`: what transformers has no config for is refused before weights are read,
and by the export where a native model has it already."""

import json
import sys

import numpy as np
import pytest

import moe_jax
from moe_jax.cli import main, shrink


@pytest.fixture(scope='module')
def source(folder_of):
    """OLMoE: raw softmax gates, 6 experts in 2 layers, 2 a token."""
    return folder_of('olmoe', 'raw')


@pytest.fixture(scope='module')
def stats(loaded, tmp_path_factory):
    tokens = np.random.default_rng(3).integers(0, 64, (4, 32)).astype(np.int32)
    path = tmp_path_factory.mktemp('stats') / 'stats.npz'
    moe_jax.observe(*loaded('olmoe', 'raw'), [{'tokens': tokens, 'mask': tokens >= 0}]).save(path)
    return path


@pytest.fixture
def pruned(source, stats, tmp_path, monkeypatch):
    """Runs `moe-jax prune` into tmp_path / 'small'; by default with the method reap."""
    def run(flags: str, to: str) -> int:
        method = () if flags.startswith('--method') else ('--method', 'reap')
        monkeypatch.setattr(sys, 'argv', [
            'moe-jax', 'prune', str(source), *method, *flags.split(), '--stats', str(stats),
            '--out', str(tmp_path / 'small'), '--to', to])
        try:
            main()
        except SystemExit as end:
            return end.code or 0
        return 0
    return run


CASES = {  # flags: what --to hf says of them, what the export of the native model says
    # (3 2 with a spread: five experts in two layers cannot be equally many)
    '--experts 5 2': (('2 to 5 experts', 'one number'),
                      ('2 to 5 experts', "spread='layer'", 'experts=4 in each')),
    '--experts 3 --first-layer keep': (('3 to 6 experts', '--first-layer same'),
                                       ('3 to 6 experts',)),
    '--ratio 0.5 0.2': (('3 to 5 experts', 'one number'), ('3 to 5 experts',)),
    '--experts 3 2 --spread global': (("'global'", '--spread layer'), ("spread='layer'",)),
    '--mass 0.9': (('--mass', '--spread layer'), ("spread='layer'",)),
    '--method nllb --experts 3 2': (("'mass'", '--spread layer'), ("spread='layer'",)),
    '--experts 1 --clamp': (('1 at most', 'topk=2', 'without --clamp'),
                            ('1 at most', 'topk=2', 'without clamp', 'experts=2')),
    '--experts 1 3 --clamp': (('1 to 3 experts', 'topk=2'), ('1 to 3 experts', '1 at most')),
    '--experts 3 --replace mean': (('constants', '--replace none'),
                                   ('constants', 'layers [0, 1]', "replace='none'")),
    '--experts 3 --gates preserve_mass': (('share of the softmax', '--gates slice'),
                                          ('softmax', 'never chosen', "gates='slice'")),
    '--method mone --experts 3': (('constants', '--replace none'), ("replace='none'",)),
    '--method m_smoe --experts 3 --options router_init=alias': (
        ('router_init',), ('alias merge', 'router_init')),
}


@pytest.mark.parametrize('flags', CASES)
def test_refused_by_the_options_before_weights_are_read(
        pruned, tmp_path, capsys, monkeypatch, flags):
    def closed(*_, **__):
        raise AssertionError('too late: this reads weights')

    monkeypatch.setattr(shrink, 'load_with_progress', closed)
    assert pruned(flags, 'hf') == 1
    said = capsys.readouterr().err
    assert 'transformers has no config' in said and '--to native' in said
    assert not [word for word in CASES[flags][0] if word not in said], said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('flags', CASES)
def test_refused_by_the_export_of_a_native_model(pruned, tmp_path, source, flags):
    assert pruned(flags, 'native') == 0
    with pytest.raises(ValueError, match='no config of transformers can say') as error:
        moe_jax.export_hf(tmp_path / 'out', *moe_jax.load(tmp_path / 'small'), like=source)
    said = str(error.value)
    assert not [word for word in CASES[flags][1] if word not in said], said
    assert 'moe_jax.save' in said and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('flags', 'kept'), [
    ('--experts 3', 3), ('--ratio 0.5 --protect super', 3), ('--experts 6 --replace mean', 6),
    ('--method mone --experts 3 --replace none', 3), ('--experts 6 --gates preserve_mass', 6),
    ('--experts 2 --clamp --first-layer topk', 2),
])
def test_what_transformers_can_say_is_exported(pruned, tmp_path, flags, kept):
    assert pruned(flags, 'hf') == 0
    assert json.loads((tmp_path / 'small/config.json').read_text())['num_experts'] == kept


def test_a_clamp_without_effect_is_no_obstacle(loaded, source, tmp_path):
    cfg, params = loaded('olmoe', 'raw')
    moe_jax.export_hf(tmp_path / 'out', cfg.replace(clamp=True), params, like=source)
    assert moe_jax.load(tmp_path / 'out')[0] == cfg
