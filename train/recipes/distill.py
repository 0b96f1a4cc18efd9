"""Distillation: a shrunk model learns from the signals of the model it was made from.

Four terms, each off at 0, summed with the config's balance and z losses:

    ce       cross-entropy of the next token
    logits   tau^2 KL(teacher || student) of the next token (Hinton et al. 2015)
    hidden   squared error of the residual stream after chosen layers, mean over width and tokens,
             summed over layers; each model on its own stream
    experts  expert by expert: sum over layers and experts of the mean squared error between the
             student's expert and what it stands for, over the tokens that the student routes to it
             (MoE-Pruner, Xie et al. 2024, section 3.3)

Letters: T tokens of a row, E experts of the teacher, G of the student.
"""

import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.sharding import replicated
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.layers import ffn
from moe_jax.model.fingerprint import fingerprint
from train.loop.live import Report
from train.loop.logbook import Evaluate, History
from train.loop.options import TrainOptions
from train.objectives.distill import DistillLoss, Gap
from train.objectives.objective import Batch, Objective, Terms, share_of
from train.objectives.teacher import (
    LOGITS,
    STREAM,
    TEMPERATURE,
    TOP,
    Question,
    ask,
    check_layers,
    check_signals,
    gather_experts,
)
from train.recipes.finetune import finetune
from train.trainable.trainable import TRAINABLE

Teacher = tuple[Config, Params]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distill:
    """How much each term counts.

    experts='balance': as much as the cross-entropy does on the first batch, before the first step
      (MoE-Pruner). layers: those of the hidden term (None: all). temperature: tau of the logits.
      auxiliary: of the config's balance and z losses.
    """

    ce: float = 1.0
    logits: float = 0.0
    temperature: float = 1.0
    hidden: float = 0.0
    experts: float | Literal['balance'] = 0.0
    layers: tuple[int, ...] | None = None
    auxiliary: float = 1.0

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, 'layers', tuple(int(i) for i in self.layers))
        for name in ('ce', 'logits', 'hidden', 'experts', 'auxiliary'):
            value = getattr(self, name)
            if not (name == 'experts' and value == 'balance') and not (
                    not isinstance(value, str) and math.isfinite(value) and value >= 0):
                more = ", or 'balance'" if name == 'experts' else ''
                raise ValueError(f'Distill.{name}={value!r}: must be finite and not negative{more}')
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f'Distill.temperature={self.temperature!r}: must be positive')
        if self.layers == () or (self.layers is not None and not self.hidden):
            raise ValueError(f'Distill.layers={self.layers}, hidden={self.hidden}: layers are of '
                             'the hidden term; give at least one and hidden > 0, or neither')
        if self.temperature != 1 and not self.logits:
            raise ValueError(f'Distill.temperature={self.temperature}: is of the logits, which are '
                             'left out; give logits > 0, or no temperature')
        if not (self.logits or self.hidden or self.experts):
            raise ValueError('Distill: nothing is learned from the teacher; give logits, hidden or '
                             'experts, or use train.finetune')


def distill(
    cfg: Config,
    params: Params,
    teacher: Teacher | None,
    packed: batches.Packed,
    options: TrainOptions,
    recipe: Distill,
    *,
    stands_for: Mapping[int, np.ndarray] | None = None,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[Params, History]:
    """`finetune` towards a teacher (cfg, params): (params, history), inputs untouched.

    Teacher, recipe and stands_for as in `towards`, which serves where the rows are no single packed
    set. Each line of the history has the terms, not yet times their weights: 'ce', and 'kd',
    'hidden', 'expert' where they are on. Raises ValueError where teacher, rows and recipe do not
    fit the student.
    """
    _question(cfg, recipe, teacher and teacher[0], packed)  # all rows, not the first batch alone
    first = next(batches.stream(packed, options.batch, options.seed))
    goal = towards(cfg, params, teacher, first, options, recipe, stands_for=stands_for)
    return finetune(cfg, params, packed, options, out=out, progress=progress, evaluate=evaluate,
                    objective=goal)


def towards(
    cfg: Config,
    params: Params,
    teacher: Teacher | None,
    first: Batch,
    options: TrainOptions,
    recipe: Distill,
    *,
    stands_for: Mapping[int, np.ndarray] | None = None,
) -> Objective:
    """The objective that `distill` minimizes, for `fit` on any stream of rows.

    params: the student as the run starts with it. The teacher (cfg, params) may lie on other
    devices; without one (None), the rows carry its signals (`train.teach`), which leaves out the
    expert term. first: the first batch of the stream, {'tokens', 'segments', 'weights', ...} with
    all its rows [B, T]: what experts='balance' is measured on. stands_for: for the expert term,
    {layer: [G, E]}, expert g of the student standing for sum_e matrix[g, e] * expert e of the
    teacher (`prune.stands_for(plan)`); None: expert g for expert g. Its members are gathered once,
    which holds G times the most members of any expert in memory. That term is a mean over
    micro-batches, as the balance loss is; all others are exact over them. It moves experts towards
    their counterparts on the inputs as they are: no gradient flows into these. Raises ValueError
    where teacher, rows and recipe do not fit the student.
    """
    theirs = teacher and teacher[0]
    question, mixes = _question(cfg, recipe, theirs, first), _mixes(cfg, recipe, theirs, stands_for)
    home = replicated(jax.tree.leaves(params)[0])
    experts = {}
    if mixes:
        assert teacher is not None  # `_question` has seen to it
        experts = gather_experts(*teacher, mixes, home)
    goal = _objective(cfg, recipe, teacher, question, mixes, experts, home)
    if recipe.experts != 'balance':
        return goal
    weights = goal.extra['weights'] | {'experts': _balance(cfg, params, goal, first, options)}
    return goal._replace(extra=goal.extra | {'weights': weights})


def check_teacher(cfg: Config, theirs: Config, recipe: Distill,
                  stands_for: Mapping[int, np.ndarray] | None = None) -> None:
    """Refuse, with ValueError and from configs alone, a teacher that `towards` cannot use."""
    _question(cfg, recipe, theirs, {})
    _mixes(cfg, recipe, theirs, stands_for)


def router_kd(
    cfg: Config,
    params: Params,
    teacher: Teacher | None,
    packed: batches.Packed,
    options: TrainOptions,
    *,
    temperature: float = 1.0,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[Params, History]:
    """`distill` of the routers alone, by the teacher's next-token distribution alone.

    Repairs the routers of a model that was just shrunk (2603.02217), whatever `options.trainable`
    says.
    """
    options = dataclasses.replace(options, trainable=TRAINABLE['routers'])
    recipe = Distill(ce=0.0, logits=1.0, temperature=temperature, auxiliary=0.0)
    return distill(cfg, params, teacher, packed, options, recipe, out=out, progress=progress,
                   evaluate=evaluate)


def _question(cfg: Config, recipe: Distill, theirs: Config | None, rows: batches.Packed
              ) -> Question:
    """The signals of the teacher, or of the rows in its place; ValueError if they cannot be."""
    layers = ()
    if recipe.hidden:
        layers = tuple(range(cfg.layers)) if recipe.layers is None else recipe.layers
        check_layers(cfg, layers)
    logits = recipe.logits > 0
    if theirs is not None:
        for name, on in (('vocab', logits), ('layers', layers), ('width', layers)):
            own, other = getattr(cfg, name), getattr(theirs, name)
            if on and own != other:
                raise ValueError(f'distill: the teacher has {name}={other} and the student '
                                 f'{own}; leave out the term that compares them')
        return Question(logits, None, layers)
    if recipe.experts:
        raise ValueError('distill: the expert term evaluates experts of the teacher; give it, or '
                         'leave the term out with experts=0')
    top = rows[TOP[0]].shape[-1] if logits and TOP[0] in rows else None
    question = Question(logits and not top, top, layers)
    check_signals(cfg, rows, recipe.temperature, question, cfg.width)
    return question


def _mixes(cfg: Config, recipe: Distill, theirs: Config | None,
           stands_for: Mapping[int, np.ndarray] | None) -> dict[int, np.ndarray]:
    """What each expert of the student stands for, by layer; nothing where the term is off."""
    if not recipe.experts:
        return {}
    assert theirs is not None  # `_question` has seen to it
    if theirs.width != cfg.width or theirs.moe_layers != cfg.moe_layers:
        raise ValueError(f'distill: the teacher has width {theirs.width} and experts in layers '
                         f'{list(theirs.moe_layers)}, the student {cfg.width} and '
                         f'{list(cfg.moe_layers)}; the expert term needs them equal')
    mixes = {}
    for i in cfg.moe_layers:
        shape = (cfg.experts[i], theirs.experts[i])
        if stands_for is None and shape[0] != shape[1]:
            raise ValueError(f'distill: layer {i} has {shape[0]} experts and the teacher\'s '
                             f'{shape[1]}; say what they stand for, e.g. '
                             'stands_for=prune.stands_for(plan)')
        mix = np.eye(shape[0]) if stands_for is None else np.asarray(stands_for.get(i))
        if mix.shape != shape or not np.isfinite(mix).all() or not (mix != 0).any(axis=1).all():
            raise ValueError(f'distill: stands_for[{i}] must be a finite matrix {list(shape)} '
                             f'without empty rows, not {mix.shape}')
        mixes[i] = mix
    return mixes


def _objective(
    cfg: Config, recipe: Distill, teacher: Teacher | None, question: Question,
    mixes: dict[int, np.ndarray], experts: Params, home: jax.sharding.Sharding,
) -> Objective:
    counts = {name: getattr(recipe, name) for name in
              ('ce', 'logits', 'temperature', 'hidden', 'experts', 'auxiliary')}
    counts['experts'] = 1.0 if recipe.experts == 'balance' else recipe.experts
    extra = {'weights': {name: jax.device_put(np.float32(value), home)
                         for name, value in counts.items()}, 'experts': experts}
    signals = question.logits or question.top or question.layers
    name, prepare, gap = f'{recipe!r} from rows', None, None
    if teacher is not None:
        theirs, weights = teacher
        name = f'{recipe!r} of {fingerprint(weights, theirs)} {theirs.digest()}' + (
            f' standing for {_digest(mixes)}' if mixes else '')
        gap = Gap(ffn.of(cfg), ffn.of(theirs), cfg.dtype) if mixes else None
        prepare = functools.partial(ask, theirs, weights, question, recipe.temperature,
                                    home) if signals else None
    reads = () if teacher is not None else (
        *((LOGITS,) if question.logits else ()), *((*TOP, TEMPERATURE) if question.top else ()),
        *((STREAM,) if question.layers else ()))
    return Objective(name, DistillLoss(recipe.ce > 0, question, gap), extra, prepare, reads)


def _balance(cfg: Config, params: Params, goal: Objective, rows: Batch, options: TrainOptions
             ) -> jax.Array:
    """Weight of the expert term at which it counts as much as the cross-entropy on these rows."""
    batch = {name: rows[name][None] for name in ('tokens', 'segments', 'weights', *goal.reads)}
    batch = goal.prepare(batch) if goal.prepare else batch
    terms = _terms(cfg, goal.loss, params, jax.tree.map(lambda x: x[0], batch), goal.extra,
                   jax.random.key(options.seed))
    ce, expert = float(terms['ce']), float(terms['expert'])
    if not (ce > 0 and expert > 0):
        log.info('the expert term is %.3g and the cross-entropy %.3g on the first batch: nothing '
                 'to balance, its weight is 1', expert, ce)
    ratio = ce / expert if ce > 0 and expert > 0 else 1.0
    return jax.device_put(np.float32(ratio), goal.extra['weights']['experts'].sharding)


@functools.partial(sharding.jit, static_argnames=('cfg', 'loss'))
def _terms(cfg: Config, loss: DistillLoss, params: Params, rows: Batch, extra: Any,
           key: jax.Array) -> Terms:
    """The terms of the loss on one batch [B, T]."""
    return loss(cfg, params, rows, extra, key, share_of(jax.tree.map(lambda x: x[None], rows)))[1]


def _digest(mixes: Mapping[int, np.ndarray]) -> str:
    """16 hex digits of what the experts stand for."""
    digest = hashlib.sha256()
    for i in sorted(mixes):
        digest.update(np.asarray(mixes[i], np.float32).tobytes())
    return digest.hexdigest()[:16]
