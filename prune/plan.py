"""What to do to each MoE layer, as arrays, before any weight is touched.

Letters: E experts before, G experts after, R router rows after (G, or E with an alias), D model
width, F expert hidden width.
"""

import dataclasses
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from moe_jax.config import Config
from moe_jax.fingerprint import fingerprint

FORMAT = 'moe-jax plan 1'
ARRAYS = ('mix', 'perms', 'router', 'router_shift', 'alias')
INTEGERS = ('perms', 'alias')
HEADER = ('format', 'method', 'options', 'experts', 'width', 'expert_hidden', 'model', 'data')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerPlan:
    """The surgery of one MoE layer.

    mix [G, E] float32: new expert g is sum_e mix[g, e] * expert e; rows sum to one, so a one-hot
      row keeps an expert.
    perms [E, F] int, optional: before mixing, hidden unit f of expert e is its old unit
      perms[e, f].
    router [R, E] float32: new router row r is sum_e router[r, e] * row e, plus router_shift [R, D]
      if given.
    fresh: seed of a random router, instead of `router`.
    alias [R] int, optional: the new expert that router row r uses; without it R = G.
    notes: diagnostics for reports (arrays, strings, numbers); nothing is computed from them.

    Raises ValueError for wrong shapes, values that are not finite, and ids out of range.
    """

    mix: np.ndarray
    perms: np.ndarray | None = None
    router: np.ndarray | None = None
    router_shift: np.ndarray | None = None
    fresh: int | None = None
    alias: np.ndarray | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _frozen(name, value))
        _check_mix(self.mix)
        if self.perms is not None:
            _check_perms(self.perms, self.before)
        _check_router(self)
        if self.alias is not None and set(self.alias.tolist()) != set(range(self.after)):
            raise ValueError(
                f'plan alias {self.alias.tolist()} must use every expert 0..{self.after - 1} '
                'and no other'
            )

    @property
    def before(self) -> int:
        """E, experts the layer has."""
        return self.mix.shape[1]

    @property
    def after(self) -> int:
        """G, experts the layer will have."""
        return self.mix.shape[0]

    @property
    def rows(self) -> int:
        """R, rows the router will have."""
        return self.after if self.alias is None else len(self.alias)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One `LayerPlan` per MoE layer, and the model they were made for.

    `experts`, `width`, `expert_hidden` are the source config's; `model` is the `fingerprint` of its
    parameters ('' = do not check) and `data` the fingerprint of the statistics.
    """

    method: str
    layers: Mapping[int, LayerPlan]
    experts: tuple[int, ...]
    width: int
    expert_hidden: int
    model: str = ''
    data: str = ''
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        moe = tuple(i for i, count in enumerate(self.experts) if count)
        if tuple(sorted(self.layers)) != moe:
            raise ValueError(
                f'plan has layers {sorted(self.layers)}; its model has MoE layers {list(moe)}'
            )
        for i, layer in self.layers.items():
            _check_sizes(f'plan layer {i}', layer, self.experts[i], self.width, self.expert_hidden)

    def check(self, cfg: Config, params: Mapping[str, Any]) -> None:
        """Refuse, with ValueError, a model that is not the one this plan was made for."""
        for name in ('experts', 'width', 'expert_hidden'):
            ours, theirs = getattr(self, name), getattr(cfg, name)
            if ours != theirs:
                raise ValueError(
                    f'this plan is for a model with {name}={ours}; this model has {theirs}. '
                    'Make a new plan for it'
                )
        check_groups(self.method, self.layers, cfg.groups)
        if self.model and self.model != fingerprint(params, cfg):
            raise ValueError(
                'this plan was made for other weights of the same shape (the routers differ). Make '
                "a new plan, or waive the check with dataclasses.replace(plan, model='')"
            )

    def describe(self) -> str:
        """A table for people: experts before and after, and what was noted, layer by layer."""
        lines = [' '.join([self.method, *(f'{k}={v}' for k, v in sorted(self.options.items()))])]
        for i, layer in sorted(self.layers.items()):
            largest = int((layer.mix != 0).sum(axis=1).max())
            unused = np.asarray(layer.notes.get('zero_traffic', ())).tolist()
            lines.append(
                f'layer {i}: {layer.before} -> {layer.after} experts, {layer.rows} router rows, '
                f'at most {largest} merged into one, without traffic: {unused or "none"}'
            )
        return '\n'.join(lines)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to one npz file (no pickle): arrays, and a JSON header; visible only when whole."""
        header = {name: getattr(self, name) for name in HEADER[1:]} | {'format': FORMAT}
        header['options'] = dict(self.options)
        arrays: dict[str, np.ndarray] = {}
        header['layers'] = {}
        for i, layer in self.layers.items():
            arrays |= {
                f'{i}/{n}': a for n in ARRAYS if (a := getattr(layer, n)) is not None
            }
            plain = {}
            for name, value in layer.notes.items():
                if isinstance(value, np.ndarray):
                    arrays[f'{i}/notes/{name}'] = value
                else:
                    plain[name] = value
            header['layers'][str(i)] = {'fresh': layer.fresh, 'notes': plain}
        text = json.dumps(header, sort_keys=True).encode()
        arrays['header'] = np.frombuffer(text, np.uint8)
        return _write_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The plan written by `save`, checked again; ValueError names a file that is not one."""
        arrays = _read_npz(Path(path))
        try:
            header = json.loads(arrays.pop('header').tobytes())
            if header['format'] != FORMAT:
                raise ValueError(f'format {header["format"]!r}, this version reads {FORMAT!r}')
            layers = {
                int(i): _layer_from(f'{i}/', arrays, meta) for i, meta in header['layers'].items()
            }
            fields = {name: header[name] for name in HEADER[1:]}
            fields['experts'] = tuple(fields['experts'])
            return cls(layers=layers, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path}: not a plan this version can read: {error}') from error


def check_groups(method: str, layers: Mapping[int, LayerPlan], groups: int) -> None:
    """Refuse, with ValueError, a plan that carries experts from one router group into another."""
    for i, layer in layers.items():
        if groups == 1 or layer.fresh is not None:
            continue
        new, old = np.nonzero(layer.router)
        if layer.rows % groups or (
                new * groups // layer.rows != old * groups // layer.before).any():
            raise ValueError(
                f'layer {i}: this plan of {method!r} joins experts of different router groups, or '
                f'keeps unequally many of the {groups}, and the router would choose among others. '
                "Choose a method that keeps experts where they are: 'frequency', 'random'"
            )


def _frozen(name: str, value: Any) -> np.ndarray:
    array = np.array(value)
    if name in INTEGERS:
        if array.dtype.kind not in 'iu':
            raise ValueError(f'plan {name}: ids must be integers, got {array.dtype}')
        array = array.astype(np.int32)
    else:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f'plan {name}: has values that are not finite')
    array.setflags(write=False)
    return array


def _check_mix(mix: np.ndarray) -> None:
    if mix.ndim != 2 or not 0 < mix.shape[0] <= mix.shape[1]:
        raise ValueError(f'plan mix: shape {mix.shape}, must be [G, E] with 1 <= G <= E')
    worst = int(np.argmax(np.abs(mix.sum(axis=1) - 1)))
    if abs(float(mix[worst].sum()) - 1) > 1e-4:
        raise ValueError(f'plan mix: row {worst} sums to {mix[worst].sum()}, every row must to 1')


def _check_perms(perms: np.ndarray, experts: int) -> None:
    if perms.ndim != 2 or perms.shape[0] != experts:
        raise ValueError(f'plan perms: shape {perms.shape}, must be [E={experts}, F]')
    bad = np.flatnonzero((np.sort(perms, axis=1) != np.arange(perms.shape[1])).any(axis=1))
    if bad.size:
        raise ValueError(f'plan perms: row {bad[0]} is no permutation of 0..{perms.shape[1] - 1}')


def _check_router(layer: LayerPlan) -> None:
    if (layer.router is None) == (layer.fresh is None):
        raise ValueError('plan router: give either router [R, E] or a seed `fresh`, not both')
    if layer.router is not None and layer.router.shape != (layer.rows, layer.before):
        raise ValueError(
            f'plan router: shape {layer.router.shape}, must be [R={layer.rows}, E={layer.before}]'
        )
    shift = layer.router_shift
    if shift is not None and (layer.router is None or shift.shape[:-1] != (layer.rows,)):
        raise ValueError(
            f'plan router_shift: shape {shift.shape}, must be [R={layer.rows}, D] beside router'
        )


def _check_sizes(where: str, layer: LayerPlan, experts: int, width: int, hidden: int) -> None:
    if layer.before != experts:
        raise ValueError(f'{where}: mix has {layer.before} columns, the layer {experts} experts')
    if layer.perms is not None and layer.perms.shape[1] != hidden:
        raise ValueError(f'{where}: perms of {layer.perms.shape[1]} hidden units, not F={hidden}')
    if (shift := layer.router_shift) is not None and shift.shape[1] != width:
        raise ValueError(f'{where}: router_shift of width {shift.shape[1]}, not D={width}')


def _layer_from(
    prefix: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> LayerPlan:
    noted = prefix + 'notes/'
    notes = {k.removeprefix(noted): a for k, a in arrays.items() if k.startswith(noted)}
    parts = {name: arrays.get(prefix + name) for name in ARRAYS}
    return LayerPlan(**parts, fresh=meta['fresh'], notes=meta['notes'] | notes)


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{secrets.token_hex(8)}.tmp')
    try:
        with temporary.open('xb') as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (AttributeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: not a plan file, or cut short: {error}') from error
