"""The table of sub-commands: --help and wrong arguments import nothing that they do not need."""

import inspect
import subprocess
import sys

import pytest

from moe_jax.cli import command

LISTED = """
import sys
from moe_jax.cli import main
sys.argv = {arguments}
try:
    main()
except SystemExit as end:
    print('code', end.code)
heavy = {{'jax', 'flax', 'orbax', 'transformers', 'scipy', 'matplotlib'}}
print('imported', sorted(heavy & set(sys.modules)))
"""


def run(*arguments):
    """Standard output of the command in a process of its own, then which heavy packages it took."""
    program = LISTED.format(arguments=['moe-jax', *arguments])
    return subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=True).stdout


@pytest.mark.parametrize('name', command.COMMANDS)
def test_the_summary_is_the_first_sentence_of_the_sub_command(name):
    doc = inspect.getdoc(command._function(command.COMMANDS[name]))
    first = ' '.join(doc.split('\n\n')[0].split())
    assert first == command.COMMANDS[name].summary


def test_help_lists_every_command_and_imports_nothing_heavy():
    out = run('--help')
    assert all(name in out for name in command.COMMANDS)
    assert out.endswith("code 0\nimported []\n")


@pytest.mark.parametrize('name', command.COMMANDS)
def test_a_wrong_argument_is_refused_before_anything_heavy_is_imported(name):
    assert run(name, '--no-such-flag').endswith("code 2\nimported []\n")


@pytest.mark.parametrize('module', ['moe_jax', 'moe_jax.cli'])
def test_the_command_runs_as_a_module(module):
    done = subprocess.run([sys.executable, '-m', module, 'families', '--help'],
                          capture_output=True, text=True, check=True)
    assert 'moe-jax families' in done.stdout
