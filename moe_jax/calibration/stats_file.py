"""Statistics as a file: one .npz without pickles, never larger in memory than on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.base import npz
from moe_jax.calibration.table import GRADIENTS, STATISTICS, Sums, statistic

Groups = dict[str, dict[int, Sums]]
FORMAT = 2
WHAT = 'a statistics file'
HEADER = ('fingerprint', 'tokenizer', 'data', 'reservoir')
NEEDED = tuple(name for name, s in STATISTICS.items() if not s.option)
KINDS = {'count': 'iu', 'tally': 'iu', 'sum': 'f', 'max': 'f', 'sample': 'fu'}


def write(path: str | Path, groups: Groups, fields: Mapping[str, Any]) -> None:
    """Write groups of statistics and the other fields (`HEADER`), complete or not at all."""
    header: dict[str, Any] = {'format': FORMAT, 'groups': sorted(groups), **fields}
    arrays = {}
    for g, name in enumerate(header['groups']):
        for layer, sums in groups[name].items():
            arrays |= {f'{g}/{layer}/{key}': value for key, value in sums.items()}
    npz.write(path, header, arrays, WHAT)


def read(path: str | Path) -> tuple[Groups, dict[str, Any]]:
    """Groups and fields that `write` wrote.

    ValueError: the file holds anything else; FileNotFoundError: there is none.
    """
    header, arrays = npz.read(path, WHAT)
    try:
        if header['format'] != FORMAT:
            raise ValueError(f'it has format {header["format"]} and this is {FORMAT}; observe '
                             'again')
        groups: Groups = {name: {} for name in header['groups']}
        for key, value in arrays.items():
            g, layer, name = key.split('/', 2)
            groups[header['groups'][int(g)]].setdefault(int(layer), {})[name] = value
        _check(groups)
        int(header['data'], 16)
        return groups, {name: header[name] for name in HEADER}
    except npz.DAMAGE as error:
        raise ValueError(f'{path}: not {WHAT} of moe-jax, or damaged: {error}') from error


def _check(groups: Groups) -> None:
    if not groups or not all(groups.values()) or len({frozenset(g) for g in groups.values()}) > 1:
        raise ValueError('its groups do not hold the same layers')
    for group, layers in groups.items():
        for index, sums in layers.items():
            where = f'group {group!r}, layer {index}'
            if missing := sorted(set(NEEDED) - set(sums)):
                raise ValueError(f'{where}: no {", ".join(missing)}')
            for name, value in sums.items():
                if name not in STATISTICS and name.partition('/')[0] not in GRADIENTS:
                    raise ValueError(f'{where}: {name} is no statistic')
                kind = statistic(name).kind
                if value.dtype.kind not in KINDS[kind]:
                    raise ValueError(f'{where}: {name} is {value.dtype}')
