"""What every request to a method has: the method, its options, and the group of the statistics."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prune.inputs.method import Method
from prune.inputs.options import checked_options, recorded
from prune.inputs.statistics import options_for


@dataclasses.dataclass(frozen=True)
class Call:
    """A method, all its options, given or default, and the data group that it is to use alone.

    parts: the parts of a unit that are asked for, where needs differ by part (None: all).
    """

    method: Method
    options: Mapping[str, Any]
    group: str | None = None
    parts: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that the method reads."""
        return self.method.reads(self.options, self.parts)

    def observe_options(self, reservoir: int = 8192) -> dict[str, Any]:
        """What to pass to `moe_jax.observe` so that its statistics serve this call."""
        return options_for(self.needs, reservoir)

    def check_layerwise(self, at_once: str) -> None:
        """Refuse, with ValueError, what gains nothing layer by layer; at_once: do that instead."""
        if not self.needs:
            raise ValueError(f'{self.name!r} reads no statistics, so the layers before one do not '
                             f'matter; {at_once}')

    def record(self) -> dict[str, Any]:
        """Every option of the method with the value it had, for a plan's record."""
        return {key: recorded(value) for key, value in self.options.items()}


def call_of(method: Method, given: Mapping[str, Any], *, group: str | None = None) -> Call:
    """The call of a method with these options; ValueError for one that it does not have."""
    return Call(method, checked_options(method.name, method.function, given), group)
