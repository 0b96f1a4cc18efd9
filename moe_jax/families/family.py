"""The description of a model family: how to read its config.json and where each leaf is on disk.

A family is one `Family` table, used to load a checkpoint and to write one. E
experts, D model width, F hidden width; {l} in a name is the layer, {e} the expert.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from moe_jax.config import Config
from moe_jax.families.fields import Fields

# Buffers that transformers computes, and that some versions and wrappers saved: turning
# frequencies, positions, causal masks.
BUFFER = re.compile(r'(.+\.)?(rotary_emb\.\w+|position_ids|masked_bias|'
                    r'(causal|attention|attn)_mask|self_attn\.(bias|mask))')


@dataclasses.dataclass(frozen=True)
class Part:
    """The share of a tensor on disk that a leaf is: the `index`-th of `count` along `axis`.

    strided: every count-th row, beginning with row `index`; otherwise the index-th block of rows.
    """

    axis: int
    index: int
    count: int
    strided: bool = False

    def of(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """The slices of a tensor of this shape that the leaf is."""
        if self.strided:
            mine = slice(self.index, None, self.count)
        else:
            size = shape[self.axis] // self.count
            mine = slice(self.index * size, (self.index + 1) * size)
        return (*(slice(None),) * self.axis, mine)


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of a leaf on disk: our path, the tensor's name, and the conversion between them.

    A name with {e} is one tensor per expert, stacked to the leaf's axis 0. transposed: the last two
    axes are swapped (disk stores [out, in], we store [in, out]). part: the leaf is a share of the
    tensor, taken before the transposition.
    """

    path: str
    name: str
    transposed: bool = False
    part: Part | None = None

    @property
    def per_expert(self) -> bool:
        """Whether every expert has a tensor of its own."""
        return '{e}' in self.name

    def names(self, layer: int | None, count: int) -> list[str]:
        """The tensors on disk of one leaf: one for each expert, or a single one."""
        if not self.per_expert:
            return [self.name.format(l=layer)]
        return [self.name.format(l=layer, e=e) for e in range(count)]

    def disk_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of (each) tensor on disk, from the leaf's."""
        shape = list(leaf[1:] if self.per_expert else leaf)
        if self.transposed:
            shape[-1], shape[-2] = shape[-2], shape[-1]
        if self.part is not None:
            shape[self.part.axis] *= self.part.count
        return tuple(shape)

    def from_disk(self, tensor: np.ndarray) -> np.ndarray:
        """A tensor on disk as the leaf, or one expert's row of it; a view."""
        if self.part is not None:
            tensor = tensor[self.part.of(tensor.shape)]
        return np.swapaxes(tensor, -1, -2) if self.transposed else tensor

    def to_disk(self, leaf: np.ndarray, tensor: np.ndarray) -> None:
        """Write the leaf, or one expert's row of it, into its share of a tensor on disk."""
        target = tensor if self.part is None else tensor[self.part.of(tensor.shape)]
        target[...] = np.swapaxes(leaf, -1, -2) if self.transposed else leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of Hugging Face transformers.

    read: config.json to Config. slots: in order of preference; of the slots with one path, the
    first whose tensor the folder has is used, and the first of all in a new folder. expert_field:
    the field of config.json with the number of experts (the name written if it has none).
    predicts_ahead: layers after the last are modules for multi-token prediction, which are no part
    of the decoder and are not loaded. released: the config of a well-known model, from which the
    table of families is computed; models and notes are for people.
    """

    model_type: str
    architecture: str
    read: Callable[[Fields], Config]
    slots: tuple[Slot, ...]
    expert_field: str
    released: Mapping[str, Any]
    models: str
    notes: str = ''
    predicts_ahead: bool = False

    def config(self, raw: Mapping[str, Any], where: str = 'config.json') -> Config:
        """The Config of a config.json; ValueError naming a field whose value is impossible."""
        return self.read(Fields(raw, where))

    def candidates(self, path: str) -> list[Slot]:
        """The slots of a leaf's path, in order of preference; never empty."""
        slots = self._by_path().get(template(path), [])
        if not slots:
            raise KeyError(f'family {self.model_type}: no slot for {path}')
        return slots

    def is_ignored(self, name: str, layers: int) -> bool:
        """Whether a tensor is known not to belong to a decoder of so many layers."""
        return is_buffer(name) or self.is_ahead(name, layers)

    def is_ahead(self, name: str, layers: int) -> bool:
        """Whether a tensor is of a module for multi-token prediction."""
        match = re.match(r'model\.layers\.(\d+)\.', name)
        return self.predicts_ahead and match is not None and int(match[1]) >= layers

    def _by_path(self) -> dict[str, list[Slot]]:
        table: dict[str, list[Slot]] = {}
        for slot in self.slots:
            table.setdefault(slot.path, []).append(slot)
        return table


def is_buffer(name: str) -> bool:
    """Whether a tensor of this name is computed, whatever its dtype, and no parameter."""
    return BUFFER.fullmatch(name) is not None


def template(path: str) -> str:
    """'layer_3/attn/q' as 'layer_{l}/attn/q'."""
    return re.sub(r'^layer_\d+/', 'layer_{l}/', path)


def layer_of(path: str) -> int | None:
    """The layer a path is in; None above the layers."""
    match = re.match(r'layer_(\d+)/', path)
    return int(match[1]) if match else None
