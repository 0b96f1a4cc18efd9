"""Measure ours and the peer in the same rounds, and print ratios.

    python -m benchmarks --list               what there is
    python -m benchmarks layer scoring        these
    python -m benchmarks                      all that are for this backend
    python -m benchmarks --small              a quick check in minutes, without targets
    python -m benchmarks --out FILE.jsonl     and append the numbers, one JSON object a line
    python -m benchmarks --show FILE.jsonl    a file's numbers as Markdown tables
    python -m benchmarks --show FILE.jsonl --write PAGE.md   put them between the page's markers
    python -m benchmarks --draw FILE.jsonl DIR               the pictures of a file's numbers

Each benchmark runs in a process of its own. Exit code 1 if a target is missed.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import measured, page
from benchmarks.cases import CASES, Case

PROGRAM = [sys.executable, '-m', 'benchmarks']
RIVALS = ('torch', 'lm_eval')  # packages that only what we are compared with needs


def main() -> None:
    """Run what was asked for."""
    parser = arguments()
    args = parser.parse_args()
    if args.write is not None and args.show is None:
        parser.error('--write puts the numbers of a file into a page: name the file with --show')
    if args.list:
        listing()
    elif args.show is not None:
        show(read(args.show), args.write)
    elif args.draw is not None:
        draw(*args.draw)
    else:
        names = args.names or [name for name, case in CASES.items() if here(case)]
        sys.exit(alone(names[0], args) if len(names) == 1 else each(names, args))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', choices=[[], *CASES], metavar='NAME',
                        help=f'one of {", ".join(CASES)}')
    parser.add_argument('--list', action='store_true', help='say what each is, and stop')
    parser.add_argument('--small', action='store_true', help='tiny shapes, no targets')
    parser.add_argument('--rounds', type=int, help='how often everything is run in turn')
    parser.add_argument('--seed', type=int, default=0, help='of weights, tokens and routing')
    parser.add_argument('--out', type=Path, help='append the numbers to this .jsonl file')
    parser.add_argument('--show', type=Path, metavar='FILE',
                        help='print the latest numbers of a .jsonl file as Markdown, and stop')
    parser.add_argument('--write', type=Path, metavar='PAGE',
                        help='write what --show prints into a page, between its markers '
                             f'{page.BEGIN} and {page.END}')
    parser.add_argument('--draw', nargs=2, type=Path, metavar=('FILE', 'DIR'),
                        help='draw the pictures of a .jsonl file into a folder, and stop')
    return parser


def show(records: Sequence[dict], target: Path | None) -> None:
    """Print records as Markdown, or put them into a page."""
    text = measured.markdown(records)
    if target is None:
        print(text)
    else:
        target.write_text(page.between(target.read_text(), text, str(target)))


def draw(file: Path, folder: Path) -> None:
    """Draw what a file's records allow."""
    from benchmarks import pictures

    for path in pictures.draw(read(file), folder):
        print(path)


def alone(name: str, args: argparse.Namespace) -> int:
    """Run one benchmark here; 1 if a target is missed."""
    from moe_jax.kernels import trial

    case = CASES[name]
    missed = False
    try:
        run = getattr(importlib.import_module(f'benchmarks.{case.module}'), case.function)
        by = f'; our experts by {trial.candidates()[0]}' if case.experts else ''
        for settings, results in run(args):
            settings += by
            missed |= measured.tell(name, settings, results, args)
    except ModuleNotFoundError as error:
        if error.name not in RIVALS:
            raise
        sys.exit(f'{name}: the rival needs {error.name}, which is not installed; run '
                 'python -m pip install -e ".[torch,eval]"')
    return int(missed)


def each(names: Sequence[str], args: argparse.Namespace) -> int:
    """Run some benchmarks one after the other, and print one table of all; 1 if one failed."""
    failed, records = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f'{name} ...', file=sys.stderr, flush=True)
            written = Path(folder) / f'{name}.jsonl'
            done = subprocess.run([*PROGRAM, name, '--out', written, *options(args)], check=False,
                                  stdout=subprocess.DEVNULL)
            results = read(written) if written.exists() else []
            if done.returncode and all(one['met'] is not False for one in results):
                failed.append(name)
            if args.out is not None and results:
                with args.out.open('a') as file:
                    file.write(written.read_text())
            records += results
    if records:
        measured.show(records)
    if failed:
        print(f'failed, see above: {", ".join(failed)}', file=sys.stderr)
    return int(bool(failed) or any(one['met'] is False for one in records))


def options(args: argparse.Namespace) -> list[str]:
    """What each process is told."""
    rounds = [] if args.rounds is None else ['--rounds', str(args.rounds)]
    return ['--small'] * args.small + ['--seed', str(args.seed)] + rounds


def here(case: Case) -> bool:
    """Whether a benchmark is for the backend at hand."""
    import jax

    return jax.default_backend() in case.backends


def listing() -> None:
    """Print what each benchmark is."""
    table = Table('name', 'measures', 'against', 'on')
    for name, case in CASES.items():
        table.add_row(name, case.about, case.peer, ', '.join(case.backends))
    Console(width=None if Console().is_terminal else 130).print(table)


def read(file: Path) -> list[dict]:
    """The records of a .jsonl file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == '__main__':
    main()
