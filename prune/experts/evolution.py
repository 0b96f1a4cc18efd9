"""How many experts each layer keeps, found by evolution on the distance to the original's answers.

EvoESAP (released code ZongfangLiu/EvoESAP): a genome is the number of experts every layer loses,
their sum fixed; which ones a layer loses is a ranking's matter. The fitness needs no label: ESAP,
the mean over tokens of sum min(p, q), the share of tokens that speculative sampling would accept
from the smaller model (`moe_jax.quality`).

Letters: L MoE layers, E experts of a layer, G kept. Counts are in units of one expert per router
group.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_jax.base.checks import integer
from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.evals.quality import Reference
from prune.budget import budget
from prune.budget.budget import Budget
from prune.experts import ranking

STEP, MOVES = 4, 3  # experts that one move shifts at most, and moves of one mutation at most
ELITES = 4
Genome = tuple[int, ...]


class Evolved(NamedTuple):
    """experts: what each MoE layer keeps, for `prune.plan(..., experts=)`.

    acceptance and uniform: ESAP with these counts and with equal ones; history: the best of every
    generation, the starting one first; evaluated: how many budgets were tried.
    """

    experts: Genome
    acceptance: float
    uniform: float
    history: tuple[float, ...]
    evaluated: int


def evolve(
    name: str,
    stats: Stats | None,
    params: Params,
    cfg: Config,
    batches: Iterable[Mapping[str, Any]],
    *,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    parameters: int | None = None,
    memory: int | None = None,
    floor: int | None = None,
    population: int = 32,
    generations: int = 50,
    elites: int | None = None,
    seed: int = 0,
    group: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    **method_options: Any,
) -> Evolved:
    """Spread a budget over layers so that the smaller model answers as the original does.

    name: a method that ranks experts (its scores say who goes first). The amount is as for
    `prune.plan`; its sum over layers is what is spread, and no layer keeps fewer than `floor`
    (default topk, and 1 where the model is clamped). batches: as for `moe_jax.compare`; 64 rows are
    enough (EvoESAP). A mutation moves 1 to 4 experts from one layer to another, up to three times;
    the `elites` best live on (default 4).
    Starts: the counts as given, losses that rise, fall and are largest in the middle, random ones.
    progress(generation, generations, best) is called after each. Every budget is evaluated with
    `prune.apply`'s 'slice' semantics and no capacity, in one compiled program.
    """
    elites = min(ELITES, population) if elites is None else elites
    integer('population', population, 2)
    integer('generations', generations)
    if integer('elites', elites, 1) > population:
        raise ValueError(f'elites={elites}: at most the population, {population}')
    wanted = Budget(experts=experts, ratio=ratio, parameters=parameters, memory=memory, floor=floor)
    budget.check(cfg, wanted)
    counts = budget.plain(cfg, params, wanted)
    scores = ranking.scores(name, stats, params, cfg, group=group, **method_options)
    space = _Space.of(cfg, counts, budget.lowest(cfg, wanted))
    fitness = _Fitness(cfg.replace(capacity_eval=None, skip=None), params, batches, scores)
    rng = np.random.default_rng(seed)
    living = space.starts(population, rng)
    uniform = fitness(tuple(counts[i] for i in cfg.moe_layers))
    history = []
    for generation in range(generations + 1):
        living = sorted(living, key=lambda genome: (-fitness(space.kept(genome)), genome))
        history.append(fitness(space.kept(living[0])))
        if progress is not None:
            progress(generation, generations, history[-1])
        if generation < generations:
            parents = living[: max(elites, population // 2)]
            living = living[:elites] + [
                space.mutated(parents[rng.integers(len(parents))], rng)
                for _ in range(population - elites)]
    return Evolved(space.kept(living[0]), history[-1], uniform, tuple(history), len(fitness.known))


class _Fitness:
    """ESAP of the model that keeps these experts of each layer; every budget is run once."""

    def __init__(self, cfg: Config, params: Params,
                 batches: Iterable[Mapping[str, Any]], scores: Mapping[int, np.ndarray]) -> None:
        self.scores, self.known = scores, {}
        self.reference = Reference.of(cfg, dict(params), batches)

    def __call__(self, experts: Genome) -> float:
        if experts not in self.known:
            cfg, params = self.reference.cfg, self.reference.params
            masks = ranking.kept(self.scores, dict(zip(cfg.moe_layers, experts, strict=True)),
                                 cfg.groups)
            smaller, smaller_cfg = ranking.shut(params, cfg, masks)
            self.known[experts] = self.reference.compare(smaller_cfg, smaller).mean('acceptance')
        return self.known[experts]


class _Space(NamedTuple):
    """The budgets: a genome is the units lost by each layer, 0 to most[l], summing as `given`."""

    have: Genome
    most: Genome
    given: Genome
    groups: int

    @classmethod
    def of(cls, cfg: Config, counts: Mapping[int, int], least: int) -> '_Space':
        least = -(-least // cfg.groups)
        have = tuple(cfg.experts[i] // cfg.groups for i in cfg.moe_layers)
        lost = tuple(h - counts[i] // cfg.groups
                     for h, i in zip(have, cfg.moe_layers, strict=True))
        return cls(have, tuple(h - least for h in have), lost, cfg.groups)

    def kept(self, genome: Genome) -> Genome:
        """Experts that the layers keep."""
        return tuple((h - g) * self.groups for h, g in zip(self.have, genome, strict=True))

    def starts(self, size: int, rng: np.random.Generator) -> list[Genome]:
        """As given, losses that rise, fall, are largest in the middle, then random: `size` of them.
        """
        places = np.linspace(0, 1, len(self.have))
        shapes = [0.5 + places, 1.5 - places, 1.5 - np.abs(2 * places - 1)][:size - 1]
        shapes += [rng.random(len(places)) + 0.05 for _ in range(size - 1 - len(shapes))]
        return [self.given, *(self.rounded(shape) for shape in shapes)]

    def rounded(self, shape: np.ndarray) -> Genome:
        """The genome nearest to a shape: units go one by one where the shape lacks them most."""
        lost = np.zeros(len(self.have), int)
        total = sum(self.given)
        goal = shape / shape.sum() * total
        for _ in range(total):
            lack = np.where(lost < self.most, goal - lost, -math.inf)
            lost[int(np.argmax(lack))] += 1
        return tuple(lost.tolist())

    def mutated(self, genome: Genome, rng: np.random.Generator) -> Genome:
        """One to MOVES moves of one to STEP units between two layers, as far as there is room."""
        lost = list(genome)
        for _ in range(rng.integers(1, MOVES + 1)):
            givers = [i for i, n in enumerate(lost) if n]
            takers = [i for i, n in enumerate(lost) if n < self.most[i]]
            if not givers or not takers:
                break
            a, b = givers[rng.integers(len(givers))], takers[rng.integers(len(takers))]
            if a != b:
                units = min(int(rng.integers(1, STEP + 1)), lost[a], self.most[b] - lost[b])
                lost[a], lost[b] = lost[a] - units, lost[b] + units
        return tuple(lost)
