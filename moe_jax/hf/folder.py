"""The files beside the weights: tokenizer, generation config, provenance, and their keeping.

A native model converted from a Hugging Face checkpoint carries these in its subfolder `hf`,
config.json included, so that it can be exported again.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from moe_jax.hf.layout import CONFIG
from moe_jax.hf.naming import read
from moe_jax.hf.shards import INDEX, SINGLE, Tensor, inside, read_json

SUBFOLDER = 'hf'
KEPT = ('generation_config.json', 'tokenizer*', 'special_tokens_map.json', 'added_tokens.json',
        'vocab.*', 'merges.txt', 'chat_template*', 'LICENSE*', 'NOTICE*', 'USE_POLICY*')
CODE = ('.py', '.so', '.bin', '.pt')


@dataclasses.dataclass(frozen=True)
class SideFiles:
    """A folder with a config.json of transformers, and its tensors if it has the weights too."""

    folder: Path
    tensors: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, path: str | Path) -> 'SideFiles':
        """Those of a Hugging Face checkpoint, or of a native model that came from one."""
        path = Path(path)
        if (path / SUBFOLDER / CONFIG).is_file():
            return cls(path / SUBFOLDER, None)
        if is_hf(path):
            has_weights = (path / SINGLE).exists() or (path / INDEX).exists()
            return cls(path, read(path, tied=False)[0].tensors if has_weights else None)
        raise ValueError(f'{path}: no config.json of transformers here; give the folder that the '
                         'model came from, or one that was converted from it')

    def copy(self, target: Path) -> None:
        """Copy tokenizer, generation config and licenses; never code, nothing from elsewhere."""
        for file in sorted(self.folder.iterdir()):
            known = any(fnmatch(file.name, pattern) for pattern in KEPT)
            if known and file.is_file() and file.suffix not in CODE:
                shutil.copyfile(inside(self.folder, file.name), target / file.name)


def is_hf(path: Path) -> bool:
    """Whether a folder has a config.json that names a model type, as those of transformers do."""
    return (path / CONFIG).is_file() and 'model_type' in read_json(path / CONFIG)
