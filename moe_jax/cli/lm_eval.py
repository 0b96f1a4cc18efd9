"""`moe-jax lm-eval`: the standard harness on a model."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from moe_jax.cli.shared import Dtype, Positional, absent, at_least


def lm_eval(
    model: Positional[Path],
    /,
    tasks: tuple[str, ...],
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch: int = 8,
    dtype: Dtype | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    fewshot_as_multiturn: bool = False,
    out: Path | None = None,
) -> None:
    """Score a model with the standard harness (lm-evaluation-harness; install the eval extra).

    Args:
        model: a Hugging Face checkpoint or a native one, with its tokenizer, or a hub id.
        tasks: names of the harness's tasks, or of those in --include-path.
        include_path: a folder of task files (.yaml) of your own; needs no network.
        num_fewshot: examples before each question (default: the task's own).
        limit: score at most this many examples of each task.
        batch: rows of the longest length that are scored together.
        dtype: cast the weights and compute in it.
        apply_chat_template: put every question into the tokenizer's chat template.
        system_instruction: a text that opens every question, as the template's system message.
        fewshot_as_multiturn: with the template, give each example as a turn of its own.
        out: a JSON file for the results.
    """
    at_least(0, num_fewshot=num_fewshot)
    at_least(1, limit=limit, batch=batch)
    try:
        import lm_eval as harness
    except ImportError:
        raise ValueError('the harness is not installed: pip install "moe-jax[eval]"') from None
    import json

    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable, make_table

    from moe_jax.cli.shared import use_compilation_cache
    from moe_jax.evals.harness import HarnessLM
    from moe_jax.hf.hub import located
    from moe_jax.storage.tokens import load_tokenizer

    if out is not None:
        absent(out)
    folder = located(model)
    if apply_chat_template and not load_tokenizer(folder).chat_template:
        raise ValueError(f'--apply-chat-template: the tokenizer of {folder} has no chat template')
    if fewshot_as_multiturn and not apply_chat_template:
        raise ValueError('--fewshot-as-multiturn: turns need --apply-chat-template')
    use_compilation_cache()
    manager = _tasks(TaskManager, tasks, include_path)
    # lm_eval's decorators hide the signatures.
    results = cast(Callable[..., dict[str, Any]], harness.simple_evaluate)(
        model=HarnessLM(
            str(folder),  # pyright: ignore[reportCallIssue] (so does the harness's registry)
            batch=batch, dtype=dtype),
        tasks=list(tasks), task_manager=manager, num_fewshot=num_fewshot, limit=limit,
        apply_chat_template=apply_chat_template, system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn)
    print(cast(Callable[..., str], make_table)(results))
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
    known = manager(include_path=None if include_path is None else str(include_path))
    if unknown := [name for name in names if not known.match_tasks([name])]:
        near = difflib.get_close_matches(unknown[0], known.all_tasks, n=3)
        hint = f'did you mean {" or ".join(map(repr, near))}?' if near else (
            f'`lm-eval ls tasks` lists the {len(known.all_tasks):,} there are')
        raise ValueError(f'no task {unknown[0]!r}; {hint}')
    return known
