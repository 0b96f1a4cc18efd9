"""Reading config.json, whatever version of transformers wrote it.

Versions 4 and 5 name some fields differently; a file may hold both names as long as they agree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_jax.config import Rope, nearest
from moe_jax.config_parts import yarn_magnitude

EXPERTS = ('num_experts', 'num_local_experts', 'n_routed_experts', 'moe_num_experts')
TOPK = ('num_experts_per_tok', 'num_experts_per_token', 'moe_topk', 'moe_k')
DTYPES = ('float32', 'bfloat16', 'float16')
ROPE_KINDS = {'default': 'plain', 'linear': 'linear', 'llama3': 'llama3', 'yarn': 'yarn'}
NEEDED = object()


@dataclasses.dataclass(frozen=True)
class Fields:
    """A config.json: `raw` and, for messages, `where` it is."""

    raw: Mapping[str, Any]
    where: str

    def get(self, *names: str, default: Any = NEEDED) -> Any:
        """The value under any of these names; None counts as absent.

        Raises ValueError where two of them disagree, naming both, or where none is given and there
        is no default.
        """
        given = [(name, self.raw[name]) for name in names if self.raw.get(name) is not None]
        for name, value in given[1:]:
            if value != given[0][1]:
                raise ValueError(f'{self.where}: {given[0][0]}={given[0][1]!r} and {name}={value!r}'
                                 ' disagree; keep the one that is right')
        if given:
            return given[0][1]
        if default is NEEDED:
            raise ValueError(f'{self.where}: {" or ".join(names)} is missing')
        return default

    def integer(self, *names: str, default: Any = NEEDED) -> int:
        """A whole number that is at least 0."""
        value = self.get(*names, default=default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f'{self.where}: {names[0]}={value!r}: must be a whole number, at '
                             'least 0')
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.get(name, default=default)
        if not isinstance(value, bool):
            raise ValueError(f'{self.where}: {name}={value!r}: must be true or false')
        return value

    def only(self, name: str, *valid: Any) -> None:
        """Refuse any value but these; absent is one of them."""
        value = self.raw.get(name)
        if value is not None and value not in valid:
            raise ValueError(f'{self.where}: {name}={value!r} is not supported for this family '
                             f'(only {", ".join(map(repr, valid))})')

    def dtype(self) -> str:
        """The dtype of computation."""
        value = str(self.get('dtype', 'torch_dtype', default='float32')).removeprefix('torch.')
        if value not in DTYPES:
            raise ValueError(f'{self.where}: dtype={value!r}; {nearest(value, DTYPES)}')
        return value

    def windows(self, layers: int, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        """How far each layer looks back (0: all), from layer_types where it is given."""
        kinds = self.get('layer_types', default=None)
        if kinds is None:
            return otherwise if any(otherwise) else ()
        valid = {'full_attention': 0, 'sliding_attention': 1}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(kinds) <= set(valid):
            raise ValueError(f'{self.where}: layer_types={kinds!r}: must be {layers} times '
                             'full_attention or sliding_attention')
        if 'sliding_attention' not in kinds:
            return ()
        window = self.integer('sliding_window')
        return tuple(valid[kind] * window for kind in kinds)

    def rope(self, head_dim: int, theta: float, *, fraction: float = 1.0,
             interleaved: bool = False) -> Rope:
        """The rotary positions, from rope_parameters (5) or rope_theta and rope_scaling (4).

        theta and fraction (the share of a head's channels that turn) are the family's defaults.
        """
        raw = self._rope_fields()
        fraction = float(raw.get('partial_rotary_factor', fraction))
        kind = str(raw.get('rope_type', 'default'))
        if kind not in ROPE_KINDS:
            raise ValueError(f'{self.where}: rope type {kind!r} is not supported; '
                             f'{nearest(kind, list(ROPE_KINDS))}')
        own = {'dim': int(head_dim * fraction), 'theta': float(raw.get('rope_theta', theta)),
               'interleaved': interleaved, 'kind': ROPE_KINDS[kind]}
        if kind == 'default':
            return Rope(**own)
        trained = self.integer('original_max_position_embeddings', default=raw.get(
            'original_max_position_embeddings', self.integer('max_position_embeddings')))
        factor = raw.get('factor')
        if factor is None:
            factor = self.integer('max_position_embeddings') / trained
        own |= {'factor': float(factor), 'trained': trained}
        if kind == 'llama3':
            own |= {'low_freq': float(raw['low_freq_factor']),
                    'high_freq': float(raw['high_freq_factor'])}
        if kind == 'yarn':
            own |= {'fast': float(raw.get('beta_fast') or 32), 'slow': float(
                raw.get('beta_slow') or 1), 'truncate': bool(raw.get('truncate', True)),
                'scale': _yarn_scale(raw, float(factor))}
        return Rope(**own)

    def rope_temperature(self) -> float:
        """What DeepSeek's models multiply the attention scale with: the square of YaRN's factor."""
        raw = self._rope_fields()
        slope = raw.get('mscale_all_dim') or 0
        scaled = raw.get('rope_type', 'default') != 'default'
        return yarn_magnitude(float(raw['factor']), slope)**2 if slope and scaled else 1.0

    def _rope_fields(self) -> dict[str, Any]:
        """Every rope field by its version 5 name; ValueError where two places disagree."""
        new, old = (self.get(name, default={}) for name in ('rope_parameters', 'rope_scaling'))
        places = [('rope_parameters.', new), ('rope_scaling.', old),
                  ('', {name: self.raw[name] for name in ('rope_theta', 'partial_rotary_factor')
                        if self.raw.get(name) is not None})]
        found: dict[str, tuple[str, Any]] = {}
        for prefix, fields in places:
            if not isinstance(fields, Mapping) or any(isinstance(v, Mapping)
                                                      for v in fields.values()):
                raise ValueError(f'{self.where}: {prefix[:-1]}={fields!r}: must be one set of '
                                 'numbers for all layers')
            for name, value in fields.items():
                key = 'rope_type' if name == 'type' else name
                if value is None:
                    continue
                if key in found and found[key][1] != value:
                    raise ValueError(f'{self.where}: {found[key][0]}={found[key][1]!r} and '
                                     f'{prefix}{name}={value!r} disagree; keep the one that is '
                                     'right')
                found.setdefault(key, (prefix + name, value))
        return {key: value for key, (_, value) in found.items()}


def _yarn_scale(raw: Mapping[str, Any], factor: float) -> float:
    """What cos and sin are multiplied with, given or from the factor (Peng et al. 2023, 3.4)."""
    if raw.get('attention_factor') is not None:
        return float(raw['attention_factor'])
    over, under = raw.get('mscale'), raw.get('mscale_all_dim')
    if over and under:
        return yarn_magnitude(factor, over) / yarn_magnitude(factor, under)
    return yarn_magnitude(factor)
