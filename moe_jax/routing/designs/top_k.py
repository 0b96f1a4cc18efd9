"""Token choice over a linear kernel: the router of Switch, Mixtral, OLMoE, DeepSeek and others.

N tokens, D width, R router rows, K experts per token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from moe_jax.base.checks import choice, flag, integer, number
from moe_jax.routing.close import never_chosen
from moe_jax.routing.design import Leaf, Router, Traits
from moe_jax.routing.gates import GATE
from moe_jax.routing.losses import balance_loss, z_loss
from moe_jax.routing.routing import LayerRows, RouterInput, Routing

OWN = {'bias': 'router_bias', 'scale': 'gate_scale'}  # names that Config takes for settings
LIMIT = 2**24  # of every count: far above any model, far below what overflows int32 arithmetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK:
    """The K best rows of each token, weighted by a gate of `routing.gates`.

    Raises ValueError naming the field, as `Config` takes it, that makes no router.
    """

    design: ClassVar[str] = 'top_k'
    paper: ClassVar[str] = 'Shazeer et al. 2017; Fedus et al. 2021'

    topk: int = 1  # K
    gate: str = 'softmax_topk'  # a key of `routing.gates.GATE`
    scale: float = 1.0  # gates are multiplied with it
    groups: int = 1  # equal groups that the rows fall into, in their order
    groups_used: int = 1  # best groups among which a token chooses
    bias: bool = False  # whether a bias is added to the logits
    # Whether a bias serves selection alone (DeepSeek-V3, 2.1.2). Training leaves it as it is: what
    # moves it after each step, towards equal loads, is not done here.
    correction: bool = False
    balance: float = 0.01  # coefficient of the load-balance loss
    zloss: float = 0.0  # coefficient of the z-loss
    jitter: float = 0.0  # relative noise on the router's input in training
    clamp: bool = False  # a layer with fewer rows to choose from than K uses all of them

    def __post_init__(self) -> None:
        """Every number as an int or float: equal routers hash alike."""
        choice('Config.gate', self.gate, GATE)
        for name in ('topk', 'groups', 'groups_used'):
            count = integer(f'Config.{name}', getattr(self, name), 1, LIMIT)
            object.__setattr__(self, name, count)
        for name in ('scale', 'balance', 'zloss', 'jitter'):
            rate = number(f'Config.{OWN.get(name, name)}', getattr(self, name))
            object.__setattr__(self, name, rate)
        for name in ('bias', 'correction', 'clamp'):
            flag(f'Config.{OWN.get(name, name)}', getattr(self, name))
        if self.jitter >= 1:
            raise ValueError(f'Config.jitter={self.jitter}: must be below 1, it is a relative '
                             'noise')
        if not self.groups_used <= self.groups:
            raise ValueError(f'Config.groups_used={self.groups_used}: there are '
                             f'groups={self.groups}')

    @property
    def traits(self) -> Traits:
        gate = GATE[self.gate]
        return Traits(
            self.topk, self.groups, gate.group_best, self.groups_used, self.clamp,
            renormalized=gate.renormalized, rescales=gate.rescales,
            reads=frozenset({'key'} if self.jitter else ()))

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {'balance': self.balance, 'zloss': self.zloss}

    def places(self, rows: int) -> int:
        return min(self.topk, rows) if self.clamp else self.topk

    def among(self, rows: Sequence[int]) -> Self:
        """K falls to what layers have where none has K rows; where some have fewer, they clamp."""
        topk = min(self.topk, max(rows))
        return self.replace(topk=topk, clamp=self.clamp or min(rows) < topk)

    def leaves(self, width: int, rows: int) -> Mapping[str, Leaf]:
        """kernel [R, D], and if asked for bias and correction [R]."""
        vectors = {'bias': self.bias, 'correction': self.correction}
        return {'kernel': Leaf((rows, width), normal=True),
                **{name: Leaf((rows,)) for name, there in vectors.items() if there}}

    def route(
        self, leaves: Mapping[str, jax.Array], given: RouterInput, rows: LayerRows
    ) -> Routing:
        return route(
            given.x, leaves, topk=rows.topk, gate=self.gate, scale=self.scale, groups=self.groups,
            groups_used=self.groups_used, closed=rows.closed, jitter=self.jitter, key=given.key)

    def losses(self, routing: Routing, valid_N: jax.Array) -> Mapping[str, jax.Array]:
        return {'balance': balance_loss(routing, valid_N), 'zloss': z_loss(routing, valid_N)}

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)


ROUTER = TopK


def top_k(router: Router, what: str) -> TopK:
    """The router, known to be of this design; ValueError names `what` needs it."""
    if not isinstance(router, TopK):
        raise ValueError(f'{what}: is for the top-k router, and the router of this model is of '
                         f'design {router.design!r}')
    return router


def logits_of(x_ND: jax.Array, router: Mapping[str, jax.Array]) -> jax.Array:
    """x kernel^T + bias [N, R], float32, of a router with kernel [R, D] and maybe a bias [R]."""
    kernel = router['kernel'].astype(jnp.float32)
    logits = jnp.einsum('nd,rd->nr', x_ND.astype(jnp.float32), kernel,
                        precision=jax.lax.Precision.HIGHEST)
    return logits + router['bias'].astype(jnp.float32)[None] if 'bias' in router else logits


def route(
    x_ND: jax.Array,
    router: Mapping[str, jax.Array],
    *,
    topk: int,
    gate: str,
    scale: float = 1.0,
    groups: int = 1,
    groups_used: int = 1,
    closed: Sequence[bool] | jax.Array | None = None,
    jitter: float = 0.0,
    key: jax.Array | None = None,
) -> Routing:
    """Choose the `topk` best router rows of each token; ties go to the lower row.

    router: kernel [R, D]; bias [R], if any, is added to the logits; correction [R], if any, as in
    `choose`. logits = x kernel^T + bias. With `jitter` eps and a key, the router's input is
    multiplied by uniform(1-eps, 1+eps) noise (Fedus et al. 2021, section 2.4).
    """
    x = x_ND.astype(jnp.float32)
    if jitter and key is not None:
        x = x * jax.random.uniform(key, x.shape, jnp.float32, 1.0 - jitter, 1.0 + jitter)
    logits = logits_of(x, router)
    return choose(logits, router.get('correction'), topk=topk, gate=gate, scale=scale,
                  groups=groups, groups_used=groups_used, closed=closed)


def choose(
    logits: jax.Array,
    correction: jax.Array | None = None,
    *,
    topk: int,
    gate: str,
    scale: float = 1.0,
    groups: int = 1,
    groups_used: int = 1,
    closed: Sequence[bool] | jax.Array | None = None,
) -> Routing:
    """The routing of router logits [N, R].

    correction [R] is added to the scores that rank the rows, not to the gates (DeepSeek-V3, section
    2.1.2). Scores and gates by `GATE[gate]`, gates times `scale`. With `groups`, rows fall into
    equal groups in their order and only the groups_used best take part (DeepSeek-V2, section
    2.2.2). Rows marked in `closed` [R] count in a softmax and are never chosen. probs: the scores
    as shares of one, softmax(logits) or sigmoids over their sum.
    """
    rule = GATE[gate]
    scores = rule.scores(logits)
    ranked = scores
    if correction is not None:
        ranked = ranked + correction.astype(jnp.float32)[None]
    if closed is not None:
        ranked = never_chosen(ranked, closed)
    if groups > 1:
        ranked = _in_best_groups(ranked, groups, groups_used, rule.group_best)
    ids = jax.lax.top_k(ranked, topk)[1].astype(jnp.int32)
    chosen = (jnp.take_along_axis(values, ids, axis=-1) for values in (scores, logits))
    gates = rule.weights(*chosen)
    return Routing(ids, gates * scale if scale != 1.0 else gates, logits, rule.shares(logits))


def _in_best_groups(ranked: jax.Array, groups: int, used: int, best: int) -> jax.Array:
    """Scores [N, R], with -inf outside the `used` groups whose `best` largest sum to the most."""
    grouped = ranked.reshape(ranked.shape[0], groups, -1)
    worth = jax.lax.top_k(grouped, best)[0].sum(axis=-1)
    chosen = jax.lax.top_k(worth, used)[1]
    mask = jax.nn.one_hot(chosen, groups, dtype=jnp.bool_).any(axis=1)
    return jnp.where(mask[:, :, None], grouped, -jnp.inf).reshape(ranked.shape)
