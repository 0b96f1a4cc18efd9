"""The kinds of study, each with its checks, cells, computations and description."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from moe_jax.study import check, description, estimate
from moe_jax.study.cell import Cell
from moe_jax.study.expert_count import cells, compute
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.recovery import cells as recovery_cells
from moe_jax.study.recovery import compute as recovery_compute
from moe_jax.study.recovery.spec import RecoveryStudy


class Kind(NamedTuple):
    """The functions of a kind of study that the runner and the command call, the study first."""

    check: Callable[..., None]
    cells: Callable[..., list[Cell]]
    compute: Mapping[str, Callable[..., dict[str, Any]]]
    description: Callable[..., dict[str, Any]]
    cost: Callable[..., Any]


KINDS: dict[type, Kind] = {
    Study: Kind(check.check, cells.cells, compute.COMPUTE, description.expert_count,
                estimate.table),
    RecoveryStudy: Kind(check.check_recovery, recovery_cells.cells, recovery_compute.COMPUTE,
                        description.recovery, estimate.recovery_table),
}


def kind_of(study: Study | RecoveryStudy) -> Kind:
    return KINDS[type(study)]
