"""One model against another: the paired difference over tasks and seeds that both have."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_jax.study.report.expert_count.values import Model, factor
from moe_jax.study.report.paired import Estimate, Key, mean, over_seeds

Table = Mapping[Key, Estimate]


@dataclass(frozen=True, eq=False)
class Contrast:
    """Quality of `model` minus that of `other` in nats, mean over `tasks`, then over `seeds`."""

    model: Model
    other: Model
    estimate: Estimate
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def factor(self) -> float:
        return factor(self.model)

    @property
    def status(self) -> str:
        return self.estimate.status


def contrast(table: Table, model: Model, other: Model, tasks: Sequence[str]) -> Contrast | None:
    """The paired difference of two models over the tasks and seeds where both are scored.

    Every seed counts over the same tasks: seeds with fewer finished tasks wait until they have them
    all.
    """
    seeds = sorted({key[0] for key in table})
    done = {
        seed: tuple(t for t in tasks if (seed, t, model) in table and (seed, t, other) in table)
        for seed in seeds
    }
    most = max((len(found) for found in done.values()), default=0)
    if not most:
        return None
    shared = next(done[seed] for seed in seeds if len(done[seed]) == most)
    by_seed = {
        seed: mean([table[seed, t, model] - table[seed, t, other] for t in shared])
        for seed in seeds
        if done[seed] == shared
    }
    return Contrast(model, other, over_seeds(by_seed), shared, tuple(by_seed))
