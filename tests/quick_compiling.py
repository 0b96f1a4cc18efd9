"""Flags of XLA for machine code that is quick to make rather than quick to run.

They change no result beyond rounding, and halve the suite, most of which is compiling. Processes
that tests start get them from the environment.
"""

import mmap
import os
from pathlib import Path

import jaxlib

FLAGS = {'--xla_backend_optimization_level': '0', '--xla_cpu_use_fusion_emitters': 'false'}


def flags() -> str:
    """XLA_FLAGS of the environment and those of FLAGS that it does not set and XLA knows.

    XLA ends a process over an unknown flag; that its library names one tells that it is known.
    """
    given = os.environ.get('XLA_FLAGS', '')
    new = []
    for library in Path(jaxlib.__file__).parent.glob('*jax_common.*'):
        with library.open('rb') as file, mmap.mmap(
                file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            new += [f'{flag}={value}' for flag, value in FLAGS.items()
                    if flag not in given and text.find(flag.removeprefix('--').encode()) >= 0]
    return ' '.join([*new, given]).strip()
