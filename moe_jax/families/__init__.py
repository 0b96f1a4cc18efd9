"""The Hugging Face architectures that load and export; each is one file with one `Family` table.

To add one, put a file with a FAMILY beside these and its name in MODULES. The contract tests
(released sizes, parity with transformers, round trips) then run it too.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from moe_jax.base.checks import nearest
from moe_jax.families.family import Family

MODULES = ('mixtral', 'olmoe', 'qwen2_moe', 'qwen3_moe', 'granitemoe', 'glm4_moe', 'dots1',
           'minimax_m2', 'deepseek_v2', 'deepseek_v3', 'gpt_oss')
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (import_module(f'moe_jax.families.{name}').FAMILY for name in MODULES)
}


def family_of(raw: Mapping[str, Any], where: str = 'config.json') -> Family:
    """The family that a config.json names; ValueError listing the supported ones for any other."""
    kind = raw.get('model_type')
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f'{where}: model_type={kind!r} is not supported; {nearest(str(kind), list(FAMILIES))}. '
            'A family is one file: see moe_jax/families/__init__.py for how to add one'
        )
    return FAMILIES[kind]
