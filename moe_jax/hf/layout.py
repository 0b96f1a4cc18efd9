"""Which tensor of a folder is which of our leaves: decided, and checked, from headers alone."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.base.tree import leaves_with_paths
from moe_jax.config import Config
from moe_jax.families import family_of
from moe_jax.families.family import Family, Slot, layer_of
from moe_jax.hf.manifest import check_digests
from moe_jax.hf.naming import HEAD
from moe_jax.hf.shards import (
    COUNTS,
    DEQUANTIZE,
    DTYPES,
    INDEX,
    SHOWN_TENSORS,
    SINGLE,
    Shards,
    Tensor,
    grouped,
    inside,
    listed,
    read_json,
)
from moe_jax.model import decoder

CONFIG = 'config.json'
SCALES = re.compile(r'[._](scale|scale_inv|scales|absmax|zero_point|zeros|SCB)$')  # of quantized
AHEAD = r'(eh_proj|enorm|hnorm|shared_head)\.'  # of modules for multi-token prediction alone


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our leaves: path, shape, and the slot and tensors (one for each expert, or one)."""

    path: str
    shape: tuple[int, ...]
    slot: Slot
    names: tuple[str, ...]


def read_config(folder: Path) -> tuple[Config, Family, dict[str, Any]]:
    """Config, family and raw config.json of a folder; no weights are looked at, no code is run."""
    raw = read_json(inside(folder, CONFIG))
    check_digests(folder, (CONFIG,))
    family = family_of(raw, str(folder / CONFIG))
    if raw.get('quantization_config') is not None and any(
            (folder / name).exists() for name in (SINGLE, INDEX)):
        Shards(folder)  # refuses what is quantized; a section left over beside plain weights is not
    return family.config(raw, str(folder / CONFIG)), family, raw


def leaves(cfg: Config, family: Family, tensors: Mapping[str, Tensor] | None = None) -> list[Leaf]:
    """Every leaf of a config with its place; of alternatives, the one that `tensors` has.

    tensors None: the family's own layout, for a folder yet to be written.
    """
    plan = []
    for path, leaf in leaves_with_paths(decoder.shapes(cfg)):
        layer, shape = layer_of(path), tuple(leaf.shape)
        slots = family.candidates(path)
        chosen = next((slot for slot in slots if tensors is not None
                       and slot.names(layer, 1)[0] in tensors), slots[0])
        plan.append(Leaf(path, shape, chosen, tuple(chosen.names(layer, shape[0]))))
    return plan


def check(folder: Path, cfg: Config, family: Family, shards: Shards) -> list[Leaf]:
    """The leaves of a folder; ValueError with everything that is missing, extra or misshapen."""
    _check_layers(folder, cfg, family, shards)
    found, wanted = leaves(cfg, family, shards.tensors), {}
    for leaf in found:
        wanted |= dict.fromkeys(leaf.names, leaf.slot.disk_shape(leaf.shape))
    if cfg.tied and HEAD in shards.tensors:
        wanted[HEAD] = (cfg.vocab, cfg.width)
    tensors = shards.tensors
    missing = [name for name in wanted if name not in tensors]
    misshapen: dict[str, list[str]] = {}
    for name, shape in wanted.items():
        if name in tensors and tensors[name].shape != shape:
            misshapen.setdefault(f'is {list(tensors[name].shape)}, {CONFIG} says {list(shape)}',
                                 []).append(name)
    others = [name for name in wanted if name in tensors
              and tensors[name].dtype not in DTYPES.values()]
    extra = [tensors[name].name for name in sorted(tensors.keys() - wanted)
             if not is_ignored(family, name, tensors[name], cfg.layers)]
    faults = [f'missing: {listed(missing)}{_headless(cfg, missing)}'] if missing else []
    faults += [f'of another shape: {listed(grouped(misshapen))}'] if misshapen else []
    faults += [f'no floating-point numbers: {listed(others, SHOWN_TENSORS)}'] if others else []
    faults += [f'not known for {family.model_type}: {listed(extra)}'] if extra else []
    if any(SCALES.search(name) for name in extra):
        faults.append(f'scales of quantized weights are among them; {DEQUANTIZE}')
    if faults:
        raise ValueError(f'{folder}: tensors do not fit {CONFIG}: {"; ".join(faults)}')
    return found


def is_ignored(family: Family, name: str, tensor: Tensor, layers: int) -> bool:
    """Whether a tensor that is no leaf may stay unread: a buffer, a mask, a layer to predict ahead.
    """
    return tensor.dtype in COUNTS or family.is_ignored(name, layers)


def _headless(cfg: Config, missing: list[str]) -> str:
    """What to do about a head that is all that is missing."""
    if missing != [HEAD] or cfg.tied:
        return ''
    return (' (all but the head is here, as where the base model was saved alone: save it with its '
            'head, or set tie_word_embeddings to true where the head is the embedding)')


def warn_of_section(folder: Path, raw: Mapping[str, Any]) -> None:
    """Warn of a section about quantization that is left over beside tensors which are all plain."""
    section = raw.get('quantization_config')
    if section is not None:
        method = section.get('quant_method') if isinstance(section, dict) else section
        warnings.warn(f'{folder / CONFIG}: has quantization_config ({method}), and no tensor is '
                      'quantized; the section is ignored. Delete it: it is left over',
                      stacklevel=4)


def _check_layers(folder: Path, cfg: Config, family: Family, shards: Shards) -> None:
    """Compare the number of layers first: an absurd one would take long to spell out.

    Modules for multi-token prediction are numbered like layers, but have tensors of their own.
    """
    numbers = _layers('', shards)
    if family.predicts_ahead:
        numbers -= _layers(AHEAD, shards)
    if (count := max(numbers, default=-1) + 1) != cfg.layers:
        raise ValueError(f'{folder}: the tensors have {count} layers, {CONFIG} says {cfg.layers}')


def _layers(kind: str, shards: Shards) -> set[int]:
    """The layers with a tensor whose name goes on as `kind` says."""
    matches = (re.match(rf'model\.layers\.(\d{{1,9}})\.{kind}', name) for name in shards.tensors)
    return {int(match[1]) for match in matches if match}
