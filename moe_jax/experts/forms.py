"""The form in which tokens meet experts over the devices of a mesh, from sizes alone.

E experts, F hidden units, D width, K choices per token, n devices of the axis 'expert'. Forms:

    exchange  each choice travels to the device of its expert and back (`exchange`): 2 N K D numbers
              in all, forward, for N tokens
    gather    each device of the axis sees the tokens of all n, evaluates what it holds of the
              experts, and the parts are summed: 2 n N D numbers in all; cheaper where K >= n, and
              the only one where experts are split by hidden units
    local     each device holds all experts, and nothing travels over the axis

The axis 'model' splits the hidden units in any form, and the parts are summed over it.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from moe_jax.base import sharding

Form = Literal['exchange', 'gather', 'local']
SLACK = 1.25  # slots of an exchange over what two devices send each other on average
MULTIPLE = 8  # of which slots are a multiple


class Split(NamedTuple):
    """The axes that split a layer's experts: whether 'expert' splits E, and those that split F."""

    by_expert: bool
    by_hidden: tuple[str, ...] = ()


def split_of(axes: Mapping[str, int], shape: tuple[int, ...]) -> Split:
    """The split of experts of the shape [E, F, D] of `down`, by the rules of `sharding`."""
    return Split(*sharding.hidden_axes(axes, shape))


def form_of(axes: Mapping[str, int], split: Split, topk: int) -> Form:
    """The form that sends least."""
    if not (split.by_expert or 'expert' in split.by_hidden):
        return 'local'
    return 'gather' if not split.by_expert or topk >= axes['expert'] else 'exchange'


def slots_of(axes: Mapping[str, int], choices: int) -> int:
    """Rows that two devices of 'expert' exchange in one round, of the N K choices on each.

    SLACK times what they exchange on average, at most all rows.
    """
    mean = math.ceil(SLACK * choices / axes['expert'])
    return min(choices, -(-mean // MULTIPLE) * MULTIPLE)
