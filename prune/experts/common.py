"""The options that serve every method, apart from how much stays: flags of `moe-jax prune` as well.
"""

import dataclasses
from typing import Literal

from prune.inputs.method import Replace

Gates = Literal['slice', 'preserve_mass']
Protect = Literal['none', 'super']
FirstLayer = Literal['same', 'topk', 'keep']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The options that serve every method which drops experts, and what becomes of the first layer.

    Attributes:
        gates: slice deletes the router rows of dropped experts; preserve_mass keeps them in the
            softmax, never to be chosen.
        replace: mean puts the mean output in place of a dropped expert (default: the method's own).
        protect: super never drops the few experts with extreme outputs.
        first_layer: of the first MoE layer keep the most used experts (topk), or all (keep),
            instead of asking the method (same).
    """

    gates: Gates = 'slice'
    replace: Replace | None = None
    protect: Protect = 'none'
    first_layer: FirstLayer = 'same'
