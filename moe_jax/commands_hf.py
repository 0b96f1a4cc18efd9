"""The commands about folders of transformers: convert, families, lm-eval; `cli.py` registers them.

Modules are imported inside the commands, so that --help and a wrong argument answer at once.
"""

import difflib
from pathlib import Path
from typing import Literal

import tyro

Positional = tyro.conf.Positional
Dtype = Literal['float32', 'bfloat16', 'float16']


def convert(
    source: Positional[Path],
    target: Positional[Path],
    /,
    to: Literal['native', 'hf'],
    dtype: Dtype | None = None,
    like: Path | None = None,
    shard_gb: float = 5.0,
) -> None:
    """Write a model folder in the other format, or in the same one with another dtype.

    Args:
        source: a folder of transformers, or a native one.
        target: the folder to write.
        to: native (orbax), or hf (safetensors, for transformers, vLLM and others).
        dtype: cast the weights (the routers keep theirs).
        like: the folder of transformers a native source came from, where it does not know itself.
        shard_gb: size of a safetensors file at most.
    """
    from moe_jax import storage

    absent(target)
    origin = like or storage.origin(source)
    if to == 'hf' and origin is None:
        raise ValueError(f'{source}: did not come from a folder of transformers, so it cannot '
                         'become one; give --like if it did')
    cfg, params = load_with_progress(source, dtype)
    write(target, cfg, params, to, origin, {'of': source.name, 'dtype': dtype}, shard_gb)


def write(target: Path, cfg, params, to: str, like: Path | None, lineage: dict,
          shard_gb: float = 5.0) -> None:
    """Save in either format, with a progress bar where it takes long, and say so."""
    import moe_jax

    if to == 'native':
        moe_jax.save(target, cfg, params, lineage, like=like)
        print(f'{target}: saved')
        return
    from moe_jax.tree import count_bytes

    size = count_bytes(params)
    with _bar() as bar:
        tasks = {step: bar.add_task(step, total=size) for step in ('write', 'compare')}
        moe_jax.export_hf(
            target, cfg, params, like=like, lineage=lineage, shard_bytes=int(shard_gb * 1e9),
            progress=lambda step, count: bar.advance(tasks[step], count))
    print(f'{target}: exported, opened again and equal to the model in memory')


def load_with_progress(path: Path, dtype: str | None = None):
    """Config and parameters; for folders of transformers the need of memory and a bar."""
    from moe_jax import storage
    from moe_jax.hf import load as hf_load
    from moe_jax.hf.folder import is_hf

    if not path.exists():
        raise FileNotFoundError(f'{path}: no such folder')
    if not is_hf(path):
        return storage.load(path, dtype=dtype)
    source = hf_load.open_folder(path, dtype)
    print(f'{path}: {source.family.model_type}, {source.bytes / 1e9:.2f} GB of parameters; loading '
          f'takes at most {source.largest / 1e9:.2f} GB more')
    with _bar() as bar:
        task = bar.add_task('load', total=source.bytes)
        return hf_load.load(source, progress=lambda count: bar.advance(task, count))


def families(markdown: bool = False) -> None:
    """Print the families of transformers that load and export, with their conventions.

    Args:
        markdown: print docs/families.md instead of a table.
    """
    from moe_jax.families import describe

    if markdown:
        print(describe.markdown(), end='')
        return
    from rich.console import Console

    Console().print(describe.table())


def lm_eval(
    model: Positional[Path],
    /,
    tasks: tuple[str, ...],
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch: int = 8,
    dtype: Dtype | None = None,
    out: Path | None = None,
) -> None:
    """Score a model with the standard harness (lm-evaluation-harness; install the eval extra).

    Args:
        model: a folder of transformers or a native one, with its tokenizer.
        tasks: names of the harness's tasks, or of those in --include-path.
        include_path: a folder of task files (.yaml) of your own; needs no network.
        num_fewshot: examples before each question (default: the task's own).
        limit: score at most this many examples of each task.
        batch: rows of the longest length that are scored together.
        dtype: cast the weights and compute in it.
        out: a JSON file for the results.
    """
    try:
        import lm_eval as harness
    except ImportError:
        raise ValueError('the harness is not installed: pip install "moe-jax[eval]"') from None
    import json

    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable, make_table

    from moe_jax.commands import use_compilation_cache
    from moe_jax.evals.harness import HarnessLM

    if out is not None:
        absent(out)
    use_compilation_cache()
    manager = _tasks(TaskManager, tasks, include_path)
    results = harness.simple_evaluate(
        model=HarnessLM(str(model), batch=batch, dtype=dtype), tasks=list(tasks),
        task_manager=manager, num_fewshot=num_fewshot, limit=limit)
    print(make_table(results))
    if out is not None:
        results.pop('samples', None)
        out.write_text(json.dumps(results, indent=1, default=handle_non_serializable))
        print(f'{out}: written')


def _tasks(manager: type, names: tuple[str, ...], include_path: Path | None):
    """The harness's tasks; where one's own folder has all that is asked for, it alone."""
    if include_path is not None:
        own = manager(include_path=str(include_path), include_defaults=False)
        if all(name in own.all_tasks for name in names):
            return own
    found = manager(include_path=None if include_path is None else str(include_path))
    if unknown := [name for name in names if not found.match_tasks([name])]:
        near = difflib.get_close_matches(unknown[0], found.all_tasks, n=3)
        hint = f'did you mean {" or ".join(map(repr, near))}?' if near else (
            f'`lm-eval ls tasks` lists the {len(found.all_tasks):,} there are')
        raise ValueError(f'no task {unknown[0]!r}; {hint}')
    return found


def absent(path: Path) -> None:
    """Refuse to write where something is."""
    if path.exists():
        raise FileExistsError(f'{path} exists already; give another, or remove it')


def _bar():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(TextColumn('{task.description}'), BarColumn(), DownloadColumn(),
                    TransferSpeedColumn(), TimeRemainingColumn(),
                    console=Console(stderr=True), transient=True)
