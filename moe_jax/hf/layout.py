"""Which tensor of a folder is which of our leaves: decided, and checked, from headers alone."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.base.tree import leaves_with_paths
from moe_jax.config import Config
from moe_jax.families import family_of
from moe_jax.families.family import Family, Slot, layer_of
from moe_jax.hf.shards import Shards, Tensor, listed, read_json
from moe_jax.model import decoder

CONFIG = 'config.json'
HEAD = 'lm_head.weight'
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
    raw = read_json(folder / CONFIG)
    family = family_of(raw, str(folder / CONFIG))
    if (quantized := raw.get('quantization_config')) is not None:
        method = quantized.get('quant_method') if isinstance(quantized, dict) else quantized
        raise ValueError(
            f'{folder / CONFIG}: the weights are quantized ({method}); dequantize them first, with '
            'transformers: from_pretrained(..., dtype="bfloat16") with its dequantize option, then '
            'save_pretrained'
        )
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
    missing = [name for name in wanted if name not in shards.tensors]
    shapes = [f'{name} is {list(shards.tensors[name].shape)}, {CONFIG} says {list(shape)}'
              for name, shape in wanted.items()
              if name in shards.tensors and shards.tensors[name].shape != shape]
    extra = [name for name in sorted(shards.tensors.keys() - wanted)
             if not family.is_ignored(name, cfg.layers)]
    faults = [f'missing: {listed(missing)}'] if missing else []
    faults += [f'of another shape: {listed(shapes)}'] if shapes else []
    faults += [f'not known for {family.model_type}: {listed(extra)}'] if extra else []
    if faults:
        raise ValueError(f'{folder}: tensors do not fit {CONFIG}: {"; ".join(faults)}')
    return found


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
