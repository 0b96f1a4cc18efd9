"""Batches of a stream as a step takes them: checked, stacked, laid out over the devices.

A micro-batches in a step, B rows in each, T tokens in a row.
"""

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe_jax.base import processes, sharding
from moe_jax.config import Config
from moe_jax.model.inputs import is_concrete, named, rows_of, weighed
from train.loop.options import TrainOptions
from train.objectives.objective import Batch

Batches = Callable[[int], Iterator[Batch]] | Sequence[Batch]
ROWS = ('tokens', 'segments', 'weights')
Digest = Callable[[], str]  # names the content of a batch


def check_mesh(mesh: Mesh | None, options: TrainOptions) -> None:
    """Refuse, with ValueError, a mesh on which a run with these options cannot be."""
    check_span(mesh)
    _check_rows(mesh, options)


def check_span(mesh: Mesh | None) -> None:
    """Refuse, with ValueError, a mesh that some devices of several processes are no part of."""
    size = 0 if mesh is None else mesh.size
    if processes.several() and size < jax.device_count():
        lies = (f'the mesh {dict(mesh.shape)} of {size} of them' if mesh is not None and size
                else 'no mesh')
        raise ValueError(f'{jax.process_count()} processes with {jax.device_count()} devices, and '
                         f'params that lie on {lies}: lay them out with sharding.place(params, '
                         'sharding.make_mesh(...)) over all devices')


def _check_rows(mesh: Mesh | None, options: TrainOptions) -> None:
    """Refuse, with ValueError, rows that do not divide over a mesh."""
    parts = sharding.row_parts(mesh)
    if options.batch % parts:
        assert mesh is not None  # else it is one part
        raise ValueError(
            f'TrainOptions.batch={options.batch}: the mesh {dict(mesh.shape)} splits rows into '
            f'{parts} parts; give a multiple of {parts}, or another mesh'
        )


def own_rows(mesh: Mesh | None, batch: int) -> np.ndarray:
    """Which of a batch's rows this process has to have at hand, in order."""
    if mesh is None or not processes.several():
        return np.arange(batch)
    check_span(mesh)
    places = sharding.by_rows(mesh).addressable_devices_indices_map((batch,))
    return np.unique(np.concatenate([
        np.arange(batch)[place[0]] for place in places.values() if place is not None]))


def stream(cfg: Config, batches: Batches, options: TrainOptions, mesh: Mesh | None, start: int,
           seen: str, reads: tuple[str, ...] = ()) -> Generator[tuple[Batch, Digest], None, None]:
    """One batch [A, B, T] per step from step `start` on, and a function that names its content.

    `batches` yields all rows of a batch, or those of `own_rows` alone. On a resume the last batch
    the state has seen is read again and compared: a stream that does not continue where it stopped
    would train on other data without a sign.
    """
    first = start - 1 if seen else start
    rows = own_rows(mesh, options.batch)
    with contextlib.ExitStack() as stack:
        source = _from(batches, first * options.accumulate)
        if hasattr(source, 'close'):  # a generator may hold a prefetching thread
            stack.callback(cast(Generator[Batch, None, None], source).close)
        for step in range(first, options.steps):
            parts = [_checked(cfg, source, options, len(rows), step, reads)
                     for _ in range(options.accumulate)]
            batch = jax.tree.map(_stack, *parts)
            named = {name: batch[name] for name in (*ROWS, *reads)}

            def digest(named=named) -> str:
                return batch_digest(named, rows, options.batch)

            if step >= start:
                yield _placed(batch, rows, options.batch, mesh), digest
            elif digest() != seen:
                raise ValueError(
                    f'batches({step * options.accumulate}): not the batch that step {start} '
                    'trained on before the interruption; resume with the same data'
                )


def batch_digest(batch: Batch, rows: np.ndarray, size: int) -> str:
    """16 hex digits of a batch's content, the same however its rows are spread over processes.

    batch: arrays [A, R, T] of the rows numbered `rows` [R], or of all `size` rows.
    """
    arrays = {name: np.ascontiguousarray(batch[name]) for name in sorted(batch)}
    micro, count = next(iter(arrays.values())).shape[:2]
    numbers = rows if count == len(rows) else np.arange(size)
    digests = np.zeros((micro, size, 2), np.uint32)
    for a in range(micro):
        for place, number in enumerate(numbers):
            content = hashlib.sha256()
            for name, array in arrays.items():
                content.update(name.encode())
                content.update(array[a, place].tobytes())
            digests[a, number] = np.frombuffer(content.digest()[:8], np.uint32)
    return hashlib.sha256(processes.largest(digests).tobytes()).hexdigest()[:16]


def check_batches(batches: Any) -> None:
    """Refuse, with ValueError, what cannot be read again from any batch on."""
    if callable(batches) or isinstance(batches, list | tuple):
        return
    raise ValueError(
        f'batches is a {type(batches).__name__}: give a list of batches, or a function that takes '
        'the number of the batch to start from and iterates over the batches from there on, so '
        'that an interrupted run can go on')


def _from(batches: Batches, start: int) -> Iterator[Batch]:
    return iter(batches(start)) if callable(batches) else iter(batches[start:])


def _checked(cfg: Config, source: Iterator[Any], options: TrainOptions, own: int, step: int,
             reads: tuple[str, ...]) -> Batch:
    raw = next(source, None)
    if raw is None:
        raise ValueError(
            f'batches ended at step {step} of {options.steps}; a step takes '
            f'accumulate={options.accumulate} of them: repeat the data or lower steps'
        )
    wanted = {(rows, options.length) for rows in (options.batch, own)}
    batch = _rows(cfg, raw, f'step {step}')
    if np.shape(batch['tokens']) not in wanted:
        raise ValueError(f'step {step}: batch has tokens {np.shape(batch["tokens"])}; options say '
                         f'[batch, length] = {[options.batch, options.length]}')
    for name in reads:
        if np.shape(cast(Any, batch.get(name)))[:2] not in wanted:
            raise ValueError(f'step {step}: the objective reads {name!r} from the batch, which has '
                             f'{np.shape(batch[name]) if name in batch else "none"}; its shape '
                             f'begins with [batch, length] = {[options.batch, options.length]}')
    return {name: batch[name] for name in (*ROWS, *reads)}


def _rows(cfg: Config, raw: Any, where: str) -> Batch:
    """A batch with tokens, segments and weights that fit the model, in the forms a step takes.

    Arrays of a device stay there; those that other processes hold too are not looked at.
    """
    batch: Batch = named(raw, where)
    given = [batch[name] for name in ROWS if name in batch]
    if not is_concrete(*given):
        shapes = {name: np.shape(batch.get(name, ())) for name in ROWS}
        if len(set(shapes.values())) > 1:
            raise ValueError(f'{where}: arrays of several processes need {", ".join(ROWS)} of one '
                             f'shape; they have {shapes}')
        return batch
    tokens, segments = rows_of(cfg, batch, where)
    weights = weighed(batch.get('weights'), segments, where)
    # Ids on padding stay, for what older runs noted of their batches, unless no row is theirs.
    ids = np.asarray(batch['tokens'])
    tokens = np.where((ids >= 0) & (ids < cfg.vocab), ids, tokens).astype(np.int32)
    on_device = len(given) == len(ROWS) and all(isinstance(a, jax.Array) for a in given) and (
        ids == tokens).all()
    return batch if on_device else batch | {
        'tokens': tokens, 'segments': segments, 'weights': weights}


def _stack(*rows: Any) -> Any:
    return jnp.stack(rows) if isinstance(rows[0], jax.Array) else np.stack(rows)


def _placed(batch: Batch, rows: np.ndarray, size: int, mesh: Mesh | None) -> Batch:
    """The batch split over the row axes of a mesh; as it is without one."""
    if mesh is None:
        return batch

    def place(array: Any) -> jax.Array:
        where = sharding.by_rows(mesh, 1)
        if isinstance(array, jax.Array) and array.shape[1] == size:
            return jax.device_put(array, where)
        array = np.asarray(array)
        if array.shape[1] == size:
            return jax.make_array_from_callback(array.shape, where, lambda i: array[i])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # every device of a mesh has its part
            first, last = np.searchsorted(rows, index[1].indices(size)[:2])
            return array[:, first:last]

        return jax.make_array_from_callback((len(array), size, *array.shape[2:]), where, part)

    return {name: place(array) for name, array in batch.items()}
