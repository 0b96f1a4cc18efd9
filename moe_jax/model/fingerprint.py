"""Fingerprint of a model's parameters: who a model is, whatever half format it is kept in.

The text is 'model:v2-A-B-R', each part hex digits of SHA-256:

- A and B, of the paths and shapes of all leaves and of numbers of every leaf, rounded to bfloat16
  (A) and to float16 (B);
- R, of all router kernels rounded to bfloat16. Older files hold 'model:R' alone.

Two models are taken for one where A or B agree. Rounding twice to one format changes nothing, so a
model and its bfloat16 copy have one A, a model and its float16 copy one B, whichever leaves of the
copy stay in float32. A bfloat16 and a float16 copy of one float32 model are two models, unless it
came from one of these formats: then all three are one.

Read are all numbers of leaves of up to `WHOLE`, and `SAMPLE` of larger ones, evenly spaced over the
leaf in the order of its axes, so of every expert. What is promised: another value of any leaf that
is read whole, and any training, scaling, noise or zeroing of a larger one that changes more than a
few in a thousand of its numbers by more than their rounding to bfloat16, changes the fingerprint.
Not promised: a handful of numbers of a large leaf, and changes too small to survive the rounding.
"""

import functools
import hashlib
import math
import re
import warnings
from typing import Any

import jax
import ml_dtypes
import numpy as np

from moe_jax.base import processes
from moe_jax.base.tree import Params, has_values, leaves_with_paths
from moe_jax.config import Config

WHOLE = 2**16  # numbers of a leaf up to which all are read
SAMPLE = 2**13  # numbers that are read of a larger one
ROUNDED = (ml_dtypes.bfloat16, np.float16)
OLD = re.compile(r'model:[0-9a-f]{16}')


def fingerprint(params: Params, cfg: Config) -> str:
    """The fingerprint of a model: see the head of this module.

    Arrays may be numpy's or jax's, on one device or spread over several processes, all of which
    must call. On the host are the numbers read of one leaf at a time; reads 0.3 s per billion
    parameters of a model with 300 leaves on a CPU.
    """
    digests = [hashlib.sha256() for _ in ROUNDED]
    for path, leaf in sorted(leaves_with_paths(params), key=lambda pair: pair[0]):
        numbers = _numbers(leaf)
        for digest, dtype in zip(digests, ROUNDED, strict=True):
            digest.update(f'{path} {tuple(leaf.shape)}'.encode())
            digest.update(_rounded(numbers, dtype).tobytes())
    parts = [digest.hexdigest()[:16] for digest in digests]
    return '-'.join(['model:v2', *parts, routers(params, cfg)])


def routers(params: Params, cfg: Config) -> str:
    """16 hex digits of a model's router kernels; 'model:' and these were a fingerprint before."""
    digest = hashlib.sha256()
    for i in cfg.moe_layers:
        router = params[f'layer_{i}']['moe'].get('router', {})  # a design may have no parameters
        kernel = processes.fetch(router.get('kernel', np.zeros((0, 0), np.float32)))
        digest.update(_rounded(kernel, ml_dtypes.bfloat16).tobytes())
    return digest.hexdigest()[:16]


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model; one of the caller's own words equals itself.

    An old one is compared by the routers, all that it knows.
    """
    if one == other or not (one.startswith('model:') and other.startswith('model:')):
        return one == other
    if OLD.fullmatch(one) or OLD.fullmatch(other):
        return one[-16:] == other[-16:]
    mine, theirs = one.split('-')[1:-1], other.split('-')[1:-1]
    return any(a == b for a, b in zip(mine, theirs, strict=True))


def differs(recorded: str, params: Params, cfg: Config, what: str = 'this file'
            ) -> bool:
    """Whether a recorded fingerprint is of another model; one of the caller's own says nothing.

    An old one that agrees is accepted with a warning that names `what` it stands in. In a trace,
    and of shapes alone, weights are not known, and nothing differs.
    """
    if not (recorded.startswith('model:') and has_values(params)):
        return False
    if not OLD.fullmatch(recorded):
        return not same_model(recorded, fingerprint(params, cfg))
    if recorded != f'model:{routers(params, cfg)}':
        return True
    warnings.warn(
        f'{what}: written by an older version, which recorded the routers alone. They are those of '
        'this model; whether its other weights changed since cannot be told. Make it anew to have '
        'it checked', stacklevel=3)
    return False


def reason(recorded: str, params: Params, cfg: Config) -> str:
    """What tells the model of a fingerprint that `differs` from this one, for messages."""
    if recorded[-16:] == routers(params, cfg):
        return 'the routers are equal, other weights differ: a fine-tuned or pruned copy?'
    return 'the routers differ'


def same_routers(one: str, other: str) -> bool:
    """Whether two fingerprints are of models with equal routers: one and its sparse copy, say."""
    return one[-16:] == other[-16:]


def _numbers(leaf: Any) -> np.ndarray:
    """The numbers of a leaf that are read, in the order of its axes, the same however it lies."""
    if math.prod(leaf.shape) <= WHOLE:
        return np.ravel(processes.fetch(leaf))
    places = _places(tuple(leaf.shape))
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)[places]
    if leaf.is_fully_replicated:
        return _read(leaf.addressable_shards[0].data, places)
    sample = np.zeros(SAMPLE, np.float32)
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        lows = [part.start or 0 for part in shard.index]
        local = [place - low for place, low in zip(places, lows, strict=True)]
        here = np.logical_and.reduce([(place >= 0) & (place < size) for place, size in
                                      zip(local, shard.data.shape, strict=True)])
        sample[here] = _read(shard.data, tuple(place[here] for place in local))
    if leaf.is_fully_addressable:
        return sample
    # Every number is here once and zero elsewhere: the largest of the bits is that number's.
    return processes.largest(sample.view(np.uint32)).view(np.float32)


@functools.lru_cache(maxsize=64)
def _places(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Coordinates of SAMPLE numbers, evenly spaced in the order of the axes."""
    # Spaced by fractions of a number, so that they fall on all columns of a matrix in turn.
    flat = np.arange(SAMPLE) * (math.prod(shape) - 1) // (SAMPLE - 1)
    return tuple(axis.astype(np.int32) for axis in np.unravel_index(flat, shape))


def _read(array: jax.Array, places: tuple[np.ndarray, ...]) -> np.ndarray:
    """array[places]; of an array in this machine's own memory without a copy of the array."""
    near = next(iter(array.devices())).platform == 'cpu'
    return np.asarray(np.asarray(array)[places] if near else array[places])


def _rounded(numbers: np.ndarray, dtype: Any) -> np.ndarray:
    with np.errstate(over='ignore', invalid='ignore'):
        return numbers.astype(dtype)
