"""Options are checked where they are written."""

import pytest

from train import TrainOptions


def test_defaults_are_the_papers():
    options = TrainOptions(steps=2000, batch=512, length=1024)
    assert (options.peak_lr, options.warmup, options.weight_decay) == (5e-5, 1000, 0.1)
    assert (options.b1, options.b2, options.eps, options.clip) == (0.9, 0.95, 1e-8, 1.0)


@pytest.mark.parametrize(('fields', 'words'), [
    ({'steps': 0}, 'steps=0'),
    ({'batch': 2.5}, r'batch=2\.5'),
    ({'warmup': 101}, 'warmup=101 exceeds steps=100'),
    ({'peak_lr': float('nan')}, 'peak_lr=nan'),
    ({'b2': 1.0}, r'b2=1\.0'),
    ({'clip': 0.0}, 'clip=0.0'),
    ({'schedule': 'liner'}, "did you mean 'linear'"),
    ({'trainable': '('}, 'not a regular expression'),
])
def test_impossible_options_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        TrainOptions(**{'steps': 100, 'batch': 4, 'length': 8, 'warmup': 10} | fields)
