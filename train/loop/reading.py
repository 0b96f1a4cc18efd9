"""A step of a run read from the disk, with errors that say in a line what differs or is damaged."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from train.loop.state import TrainState

Shapes = dict[str, tuple[int, ...]]


def wanted(tree: Any) -> Any:
    """Shapes, dtypes and places of a tree that is to be restored."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


@contextlib.contextmanager
def opened(out: Path, step: int, template: TrainState) -> Iterator[Callable[[Any], Any]]:
    """A function that reads items of a step, by orbax's arguments for them.

    Raises ValueError where the step's state has other arrays than the template, and for whatever
    orbax and TensorStore raise, whose messages name neither the folder nor what to do.
    """
    folder, standard = out / 'checkpoints' / str(step), ocp.StandardCheckpointHandler()
    items: dict[str, Any] = {'state': standard, 'data': ocp.JsonCheckpointHandler()}
    if (folder / 'carry').exists():
        items['carry'] = ocp.StandardCheckpointHandler()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**items)) as reader:
            stored = reader.metadata(folder).item_metadata['state'].tree
            _check_same(out, step, _shapes(stored), _shapes(template))
            yield lambda args: reader.restore(folder, args=args)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if str(error).startswith(str(out)):
            raise
        first = (str(error).splitlines() or [''])[0][:300]
        raise ValueError(f'{out}: the checkpoint of step {step} cannot be read '
                         f'({type(error).__name__}: {first}); copy the folder again from where it '
                         f'is whole, or move checkpoints/{step} away to go on from an older step'
                         ) from error


def _check_same(out: Path, step: int, stored: Shapes, here: Shapes) -> None:
    """Refuse, with ValueError, arrays of another run."""
    odd = sorted(name for name in stored.keys() | here.keys()
                 if stored.get(name) != here.get(name))
    if not odd:
        return
    more = f' (and {len(odd) - 1} more arrays)' if len(odd) > 1 else ''
    before, now = ('not' if shape is None else str(list(shape))
                   for shape in (stored.get(odd[0]), here.get(odd[0])))
    raise ValueError(f'{out}: the checkpoint of step {step} is of another run: {odd[0]} is '
                     f'{before} there and {now} here{more}. Give the params and options '
                     '(trainable, keep_zeros) that it was started with')


def _shapes(tree: Any) -> Shapes:
    """Shape of every array by the names on the way to it, of a state or of orbax's view of one."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {'/'.join(map(_name, path)): tuple(leaf.shape) for path, leaf in leaves}


def _name(key: Any) -> str:
    """What a key of a path stands for: a field, a place in a tuple, or a key of a dict."""
    return str(next(getattr(key, kind) for kind in ('key', 'idx', 'name') if hasattr(key, kind)))
