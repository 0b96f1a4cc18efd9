"""The `moe-jax` command: finds the sub-command, calls it, and makes one line of its errors.

Only the file of the sub-command that is named is imported, so that --help and a wrong argument
answer at once.
"""

import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import tyro

TRACEBACK = 'MOE_JAX_TRACEBACK'
FAILED, INTERRUPTED = 1, 130
LOGS = 'moe_jax', 'prune', 'train'


class Command(NamedTuple):
    """A sub-command: its function in `moe_jax.cli`, and the first sentence of its help."""

    place: str
    summary: str


COMMANDS = {
    'train': Command(
        'train.train_model',
        'Pretrain, fine-tune or distil one model, or go on with it; or print what that takes.'),
    'observe': Command(
        'observe.observe',
        'Collect routing statistics on tasks, once for every method and size; each task is a '
        'group.'),
    'prune': Command(
        'prune.prune_model',
        'Plan a smaller model, carry the plan out and save it, with its plan and tokenizer.'),
    'sparsify': Command(
        'sparsify.sparsify_model',
        'Set a share of the weights inside the experts to zero, and save the model, plan, '
        'tokenizer.'),
    'curve': Command(
        'curve.curve',
        'Draw the safe-sparsity curve: quality by experts kept for several methods, without '
        'labels.'),
    'eval': Command(
        'evaluate.evaluate',
        'Score a model on tasks: log-likelihood, and accuracy or perplexity.'),
    'latency': Command(
        'latency.latency',
        'Milliseconds of a forward pass by expert count and expert-parallel degree.'),
    'convert': Command(
        'convert.convert',
        'Write a model folder in the other format, or in the same one with another dtype.'),
    'build-kernels': Command(
        'build_kernels.build_kernels',
        "Compile the native kernels, grouped matmuls on CPU, for this machine's processor, once."),
    'families': Command(
        'families.families',
        'Print the families of transformers that load and export, with their conventions.'),
    'lm-eval': Command(
        'lm_eval.lm_eval',
        'Score a model with the standard harness (lm-evaluation-harness; install the eval extra).'),
    'study': Command(
        'study.study',
        'Run a study, or go on with it; then print its table and write its report and figures.'),
    'report': Command(
        'study.report',
        'Rebuild the table, the figures and the report of a study, from its records alone.'),
    'info': Command(
        'info.info',
        'Print exact parameters, active parameters, bytes and FLOPs per token, from shapes '
        'alone.'),
    'methods': Command(
        'methods.methods',
        'List the methods that prune, merge and sparsify: paper, kind, and what statistics each '
        'needs.'),
    'data': Command(
        'data.data',
        'Fetch the pinned corpora and tasks into the cache (about 100 MB), and check them.'),
}


def main() -> None:
    """Entry point; errors become one line on stderr unless MOE_JAX_TRACEBACK is set.

    Exit codes: 1 an error, 2 a wrong argument, 75 stopped by a signal with the state saved,
    130 stopped by Ctrl-C at once.
    """
    try:
        with _logs_on_stderr():
            _app(sys.argv[1:]).cli(prog='moe-jax', description=_HELP)
    except KeyboardInterrupt:
        print('moe-jax: interrupted', file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        print('\n'.join(['moe-jax: ' + _message(error), *getattr(error, '__notes__', ())]),
              file=sys.stderr)
        sys.exit(FAILED)


def _app(arguments: list[str]) -> tyro.extras.SubcommandApp:
    """The parser: sub-commands as their summaries, but for the one that the arguments name.

    All of them are imported for a shell's completion.
    """
    complete = any(argument.startswith('--tyro-') for argument in arguments)
    named = next((argument for argument in arguments if not argument.startswith('-')), None)
    app = tyro.extras.SubcommandApp()
    for name, command in COMMANDS.items():
        if complete or name == named:
            app.command(name=name)(_function(command))
        else:
            app.command(name=name, help=command.summary)(lambda: None)
    return app


def _function(command: Command) -> Callable[..., None]:
    module, name = command.place.split('.')
    return getattr(importlib.import_module(f'moe_jax.cli.{module}'), name)


@contextlib.contextmanager
def _logs_on_stderr() -> Iterator[None]:
    """What the library logs (how experts are multiplied, what a file lacks) is for people here."""
    handler, logs = logging.StreamHandler(), [logging.getLogger(n) for n in LOGS]
    before = [(log.level, log.propagate) for log in logs]
    for log in logs:
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False  # packages that are imported give the root a handler of its own
    try:
        yield
    finally:
        for log, (level, propagate) in zip(logs, before, strict=True):
            log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate


def _message(error: Exception) -> str:
    """What a person needs of an error: no class, no number, and what to do about a full disk."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f'{error.filename}: {error.strerror}'
        full = error.errno == errno.ENOSPC
        return f'{text}; free some space, and the same command goes on' if full else text
    if isinstance(error, (ValueError, OSError, RuntimeError, ArithmeticError)) and str(error):
        return str(error)
    return f'{type(error).__name__}: {error} (set {TRACEBACK}=1 for the traceback)'


_HELP = ('Shrink sparse mixture-of-experts language models to a task: observe, plan, prune, '
         'recover, compare.')
