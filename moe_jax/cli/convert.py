"""`moe-jax convert`: a model folder in the other format, or in another dtype."""

from pathlib import Path
from typing import Literal

from moe_jax.base.checks import number
from moe_jax.cli.shared import Dtype, Positional, absent, load_with_progress, write


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
        source: the folder of a Hugging Face checkpoint or of a native one, or a hub id (org/name).
        target: the folder to write.
        to: native (orbax), or hf (safetensors, for transformers, vLLM and others).
        dtype: cast the weights (the routers keep theirs).
        like: the Hugging Face checkpoint a native source came from, where it does not know itself.
        shard_gb: size of a safetensors file at most.
    """
    from moe_jax.hf.hub import located
    from moe_jax.storage import folder

    number('--shard-gb', shard_gb, None, above=0)
    absent(target)
    name, source = source.name, located(source)
    origin = folder.origin(source) if like is None else located(like)
    if to == 'hf' and origin is None:
        raise ValueError(f'{source}: did not come from a Hugging Face checkpoint, so it cannot '
                         'become one; give --like if it did')
    cfg, params = load_with_progress(source, dtype)
    write(target, cfg, params, to, origin, {'of': name, 'dtype': dtype}, shard_gb)
