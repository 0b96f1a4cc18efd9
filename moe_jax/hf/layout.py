"""Which tensor of a folder is which of our leaves: decided, and checked, from headers alone."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax import model
from moe_jax.config import Config
from moe_jax.families import family_of
from moe_jax.families.family import Family, Slot, layer_of
from moe_jax.hf.shards import Shards, Tensor, listed, read_json
from moe_jax.tree import leaves_with_paths

CONFIG = 'config.json'


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our leaves: path, shape, and the slot and tensors (one for each expert, or one)."""

    path: str
    shape: tuple[int, ...]
    slot: Slot
    names: tuple[str, ...]


def read_config(folder: Path) -> tuple[Config, Family, dict[str, Any]]:
    """Config, family and raw config.json of a folder; no weights are looked at, no code is run."""
    raw = read_json(folder / CONFIG)
    family = family_of(raw, str(folder / CONFIG))
    if (quantised := raw.get('quantization_config')) is not None:
        method = quantised.get('quant_method') if isinstance(quantised, dict) else quantised
        raise ValueError(
            f'{folder / CONFIG}: the weights are quantised ({method}); dequantise them first, with '
            'transformers: from_pretrained(..., dtype="bfloat16") with its dequantize option, then '
            'save_pretrained'
        )
    return family.config(raw, str(folder / CONFIG)), family, raw


def leaves(cfg: Config, family: Family, tensors: Mapping[str, Tensor] | None = None) -> list[Leaf]:
    """Every leaf of a config with its place; of alternatives, the one that `tensors` has.

    tensors None: the family's own layout, for a folder yet to be written.
    """
    found = []
    for path, leaf in leaves_with_paths(model.shapes(cfg)):
        layer, shape = layer_of(path), tuple(leaf.shape)
        slots = family.candidates(path)
        chosen = next((slot for slot in slots if tensors is not None
                       and slot.names(layer, 1)[0] in tensors), slots[0])
        found.append(Leaf(path, shape, chosen, tuple(chosen.names(layer, shape[0]))))
    return found


def check(folder: Path, cfg: Config, family: Family, shards: Shards) -> list[Leaf]:
    """The leaves of a folder; ValueError with everything that is missing, extra or misshapen."""
    _check_layers(folder, cfg, family, shards)
    found = leaves(cfg, family, shards.tensors)
    missing, shapes, used = [], [], set()
    for leaf in found:
        wanted = leaf.slot.disk_shape(leaf.shape)
        for name in leaf.names:
            used.add(name)
            if name not in shards.tensors:
                missing.append(name)
            elif (shape := shards.tensors[name].shape) != wanted:
                shapes.append(f'{name} is {list(shape)}, {CONFIG} says {list(wanted)}')
    extra = [name for name in sorted(shards.tensors.keys() - used)
             if not family.is_ignored(name, cfg.layers) and not _tied(cfg, name)]
    faults = [f'missing: {listed(missing)}'] if missing else []
    faults += [f'of another shape: {listed(shapes)}'] if shapes else []
    faults += [f'not known for {family.model_type}: {listed(extra)}'] if extra else []
    if faults:
        raise ValueError(f'{folder}: tensors do not fit {CONFIG}: {"; ".join(faults)}')
    return found


def _tied(cfg: Config, name: str) -> bool:
    return cfg.tied and name == 'lm_head.weight'


def _check_layers(folder: Path, cfg: Config, family: Family, shards: Shards) -> None:
    """Compare the number of layers first: an absurd one would take long to spell out."""
    numbers = [int(match[1]) for name in shards.tensors
               if (match := re.match(r'model\.layers\.(\d+)\.', name))
               and not family.is_ignored(name, cfg.layers)]
    if (count := max(numbers, default=-1) + 1) != cfg.layers:
        raise ValueError(f'{folder}: the tensors have {count} layers, {CONFIG} says {cfg.layers}')
