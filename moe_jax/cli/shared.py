"""What several sub-commands share: types of arguments, loading, writing, text of tasks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro

from moe_jax.base.checks import integer

Positional = tyro.conf.Positional
LONGEST, BATCH_TOKENS = 1024, 8192  # tokens in a row of a task, and in a batch to observe
Dtype = Literal['float32', 'bfloat16', 'float16']


def write(target: Path, cfg, params, to: str, like: Path | None, lineage: dict,
          shard_gb: float = 5.0) -> None:
    """Save in either format, with a progress bar where it takes long, and say so."""
    import moe_jax

    if to == 'native':
        moe_jax.save(target, cfg, params, lineage, like=like)
        print(f'{target}: saved')
        return
    from moe_jax.base.tree import count_bytes

    assert like is not None  # who writes in this format has the folder that the model came from
    size = count_bytes(params)
    with _bar() as bar:
        tasks = {step: bar.add_task(step, total=size) for step in ('write', 'compare')}
        moe_jax.export_hf(
            target, cfg, params, like=like, lineage=lineage, shard_bytes=int(shard_gb * 1e9),
            progress=lambda step, count: bar.advance(tasks[step], count))
    print(f'{target}: exported, opened again and equal to the model in memory')


def load_with_progress(path: Path, dtype: str | None = None):
    """Config and parameters; for Hugging Face checkpoints the need of memory and a bar."""
    return loader(path, dtype)()


def loader(path: Path, dtype: str | None = None) -> Callable[[], tuple[Any, Any]]:
    """The function that loads a model as `load_with_progress` does; headers are checked before."""
    from moe_jax.hf import load as hf_load
    from moe_jax.hf.folder import is_hf
    from moe_jax.storage import folder

    if not is_hf(path):
        return lambda: folder.load(path, dtype=dtype)
    source = hf_load.open_folder(path, dtype)

    def load():
        print(f'{path}: {source.family.model_type}, {source.bytes / 1e9:.2f} GB of parameters; '
              f'loading takes at most {source.largest / 1e9:.2f} GB more')
        with _bar() as bar:
            task = bar.add_task('load', total=source.bytes)
            return hf_load.load(source, progress=lambda count: bar.advance(task, count))

    return load


def at_least(least: int, **flags: int | Sequence[int] | None) -> None:
    """Refuse flags, by their names, with a number below `least`; None is one that is not given."""
    for name, values in flags.items():
        for value in values if isinstance(values, Sequence) else (values,):
            if value is not None:
                integer(f'--{name.replace("_", "-")}', value, least)


def absent(path: Path) -> None:
    """Refuse to write where something is."""
    if path.exists():
        raise FileExistsError(f'{path} exists already; choose another path, or remove it')


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


def batches(encoded: Sequence[Any], positions: int, tokens: int) -> Iterator[Mapping[str, Any]]:
    """Batches to observe: about `tokens` of the training side of each task, its name as group."""
    from moe_jax.data.batches import heldout

    length = min(positions, LONGEST)
    rows, batch_rows = max(1, tokens // length), max(1, min(32, BATCH_TOKENS // length))
    for task in encoded:
        for batch in heldout({k: v[:rows] for k, v in task.train.items()}, batch_rows):
            yield {**batch, 'group': task.name}


def tokenizer_digest(model: Path) -> str:
    """16 hex digits that identify a model folder's tokenizer."""
    from moe_jax.data import tokenizer
    from moe_jax.storage import folder

    path = folder.side_file(model, 'tokenizer.json')
    assert path is not None  # the text of the tasks was encoded with it
    return tokenizer.digest(path)[:16]


def model_and_tasks(model: Path, names: tuple[str, ...], data: Path | None,
                     limit: int | None = None, dtype: str | None = None):
    """A model, and tasks encoded with its tokenizer in rows of its positions, at most LONGEST."""
    from moe_jax.data import tasks, tokenizer
    from moe_jax.evals.tasks import encode_task, scored_ids
    from moe_jax.storage import folder
    from moe_jax.storage.tokens import open_tokenizer

    opened = open_tokenizer(model)
    use_compilation_cache()
    load = loader(model, dtype)  # what is wrong with the model is told before text is read
    loaded = [tasks.load(name, data_dir=data) for name in names]
    cfg = folder.config_of(model)
    tokenizer.check(opened.encoder, cfg.vocab)
    length = min(cfg.positions, LONGEST)
    encoded = [encode_task(task, opened.encoder, length, validation_limit=limit,
                           marks=opened.marks) for task in loaded]
    for task in encoded:
        for ids in (task.train['tokens'], scored_ids(task.validation)):
            tokenizer.check_used(opened.encoder, cfg.vocab, ids, f'task {task.name}')
    return *load(), encoded


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, so that a resumed study does not compile again."""
    import jax

    from moe_jax.base import cache

    # A flag that jax adds when it is imported; where it is set, the user's own choice stands.
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update('jax_compilation_cache_dir', str(cache.root() / 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def finish(out: Path, cfg: Any, params: Any, to: str, origin: Path | None,
           lineage: dict[str, Any], plan: Any, model: Path) -> None:
    """Write what a plan made of `model`, the plan beside it, and the tokenizer."""
    import shutil

    from moe_jax.storage import folder

    write(out, cfg, params, to, origin, lineage)
    plan.save(out / 'plan.npz')
    tokenizer = folder.side_file(model, 'tokenizer.json')
    if tokenizer is not None and not (out / 'tokenizer.json').exists():
        shutil.copyfile(tokenizer, out / 'tokenizer.json')


def option(text: str) -> tuple[str, object]:
    """'seed=3' as ('seed', 3); a value that is no Python literal is a string."""
    import ast

    name, equals, value = text.partition('=')
    if not equals:
        raise ValueError(f'--options {text}: give each as name=value')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
