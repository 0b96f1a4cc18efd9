"""Greedy and sampled decoding with a cache of keys and values.

B rows, T tokens of the longest prompt, S slots of the cache, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.checks import integer, number
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.inference.continuations import lengths
from moe_jax.model.decoder import empty_cache, hidden, unembed
from moe_jax.model.inputs import checked

CHUNK = 32  # tokens between two looks at the host's own stopping rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: temperature 0 is greedy (the lowest of equals).

    top_k keeps the k likeliest tokens (0: all), top_p the fewest whose probabilities, after the
    temperature, reach p.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        number('temperature', self.temperature)
        integer('top_k', self.top_k)
        number('top_p', self.top_p, above=0, most=1)


GREEDY = Sampling()


class _State(NamedTuple):
    """cache, next-token logits [B, V], rows that have stopped [B], number of tokens made."""

    cache: Params
    logits: jax.Array
    done: jax.Array
    made: jax.Array


def generate(
    cfg: Config,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new: int,
    stop: Collection[int] = (),
    stop_when: Callable[[list[int]], bool] | None = None,
    sampling: Sampling = GREEDY,
    key: jax.Array | None = None,
) -> list[list[int]]:
    """What follows each prompt: at most `max_new` token ids, up to a stop token, which is left out.

    prompts: token ids, of any lengths; they are padded on the left and decoded together. stop_when
    is asked every few tokens with the ids so far of a row and ends it. Rows draw from their own
    keys, so that a sample does not depend on the other rows. Experts have no capacity here.
    Raises ValueError for an empty prompt, ids that do not fit the vocabulary, a prompt and max_new
    longer than the model's positions, and for sampling without a key.
    """
    cfg = cfg.replace(capacity_eval=None)
    tokens, segments, slots = _padded(cfg, prompts, max_new)
    if sampling.temperature and key is None:
        raise ValueError('sampling with a temperature needs key=jax.random.key(...)')
    key = jax.random.key(0) if key is None else key
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(prompts)))
    state = _prefill(cfg, slots)(params, tokens, segments)
    stops = jnp.asarray(sorted(stop), jnp.int32)
    rows: list[list[int]] = [[] for _ in prompts]
    ended = np.zeros(len(prompts), bool)
    for first in range(0, max_new, CHUNK):
        steps = min(CHUNK, max_new - first)
        state, made = _decode(cfg, sampling, steps)(params, state, keys, stops)
        _extend(rows, ended, np.asarray(made)[:, :steps], set(stop), stop_when)
        if ended.all():
            break
        state = state._replace(done=jnp.asarray(ended))
    return rows


def _padded(cfg: Config, prompts: Sequence[Sequence[int]], max_new: int
            ) -> tuple[np.ndarray, np.ndarray, int]:
    """Prompts on the right of rows of one of few lengths, their segments, and the cache's slots."""
    if max_new < 1 or not len(prompts) or not all(np.size(prompt) for prompt in prompts):
        raise ValueError(f'generate: {len(prompts)} prompts and max_new={max_new}; give at least '
                         'one token in each prompt and one to make')
    if any(np.ndim(prompt) != 1 for prompt in prompts):
        raise ValueError('generate: prompts are lists of token ids, one list for each text, or an '
                         'array [B, T]')
    longest = max(map(len, prompts))
    if longest + max_new > cfg.positions:
        raise ValueError(f'generate: a prompt of {longest} tokens and max_new={max_new} exceed the '
                         f"model's {cfg.positions} positions; shorten one of them")
    room = cfg.positions - max_new
    length = next(n for n in lengths(room) if longest <= n)
    tokens, segments = (np.zeros((len(prompts), length), np.int32) for _ in range(2))
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt):], segments[row, length - len(prompt):] = prompt, 1
    return *checked(cfg, tokens, segments, 'generate'), length + max_new


@lru_cache(maxsize=64)
def _prefill(cfg: Config, slots: int):
    @sharding.jit
    def run(params, tokens, segments):
        cache = empty_cache(cfg, tokens.shape[0], slots)
        x, out = hidden(cfg, params, tokens, segments, cache=cache)
        logits = unembed(cfg, params, x[:, -1])
        return _State(out['cache'], logits, jnp.zeros(tokens.shape[:1], bool),
                      jnp.zeros((), jnp.int32))

    return run


@lru_cache(maxsize=64)
def _decode(cfg: Config, sampling: Sampling, steps: int):
    """`steps` more tokens, or fewer where all rows stop: the state and the tokens [B, steps]."""
    def run(params, state, keys, stops):
        def going(carry):
            step, state, _ = carry
            return (step < steps) & ~state.done.all()

        def one(carry):
            step, state, made = carry
            draw = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.made)
            token = _choose(sampling, state.logits, draw)
            done = state.done | (token[:, None] == stops[None]).any(axis=1)
            made = jax.lax.dynamic_update_index_in_dim(made, token, step, axis=1)
            x, out = hidden(cfg, params, token[:, None], jnp.ones_like(token)[:, None],
                            cache=state.cache)
            logits = unembed(cfg, params, x[:, 0])
            return step + 1, _State(out['cache'], logits, done, state.made + 1), made

        made = jnp.zeros((keys.shape[0], steps), jnp.int32)
        _, state, made = jax.lax.while_loop(going, one, (jnp.zeros((), jnp.int32), state, made))
        return state, sharding.replicate(made)

    return sharding.jit(run, donate_argnums=1)


def _choose(sampling: Sampling, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """The next token of each row; logits [B, V] -> int32 [B]."""
    if not sampling.temperature:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    ranked = -jnp.sort(-logits, axis=-1)
    if sampling.top_k:
        least = ranked[:, min(sampling.top_k, logits.shape[-1]) - 1, None]
        logits, ranked = (jnp.where(z >= least, z, -jnp.inf) for z in (logits, ranked))
    if sampling.top_p < 1:
        probs = jax.nn.softmax(ranked, axis=-1)
        kept = jnp.cumsum(probs, axis=-1) - probs < sampling.top_p  # the first one always
        least = jnp.where(kept, ranked, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _extend(rows: list[list[int]], ended: np.ndarray, made: np.ndarray, stop: set[int],
            stop_when: Any) -> None:
    """Append new tokens to the rows that go on, up to a stop token; marks those that ended."""
    for i, row in enumerate(rows):
        if ended[i]:
            continue
        for token in made[i].tolist():
            if token in stop:
                ended[i] = True
                break
            row.append(token)
        if not ended[i] and stop_when is not None and stop_when(row):
            ended[i] = True
