"""Config files: those from before modules moved still run, and nothing else sees the old names."""

import importlib
import sys

import pytest

from moe_jax.base import config_file
from moe_jax.base.config_file import MOVED
from moe_jax.config import Config


def write(folder, text):
    path = folder / 'a.py'
    path.write_text(text)
    return path


def test_old_names_give_the_very_objects_of_the_new_ones(tmp_path):
    path = write(tmp_path, '''
from moe_jax.presets import tiny
from moe_jax.study import spec
from moe_jax.study.spec import Study
import train.options
from train.run import Run

def config():
    import moe_jax.study.expert_count.spec as new
    import train.recipes.run
    from train import TrainOptions
    assert spec.Study is Study is new.Study
    assert train.options.TrainOptions is TrainOptions and train.recipes.run.Run is Run
    from moe_jax.config_parts import Rope  # imported late, while config() runs
    return tiny()
''')
    assert isinstance(config_file.load(path, 'config', (Config,)), Config)
    import moe_jax.study
    import train
    assert not set(MOVED) & set(sys.modules)
    assert not hasattr(moe_jax.study, 'spec') and not hasattr(train, 'options')
    for name in MOVED:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_every_old_name_has_a_module():
    for old, new in MOVED.items():
        assert importlib.import_module(new).__name__ == new != old


def test_names_that_never_were_are_still_faults(tmp_path):
    path = write(tmp_path, 'from moe_jax.presets import tinny\n')
    with pytest.raises(ValueError, match=r'a\.py:1: ImportError: .*tinny'):
        config_file.load(path, 'config', (Config,))
    path = write(tmp_path, '\nimport moe_jax.nothing\n')
    with pytest.raises(ValueError, match=r'a\.py:2: ModuleNotFoundError: .*moe_jax\.nothing'):
        config_file.load(path, 'config', (Config,))
    assert not set(MOVED) & set(sys.modules)
