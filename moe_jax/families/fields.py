"""A reader of config.json for every version of transformers.

Versions 4 and 5 name some fields differently; a file may hold both names as long as they agree.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_jax.base.checks import choice, integer, nearest, number
from moe_jax.config import Rope
from moe_jax.config.checks import LIMIT
from moe_jax.config.parts import yarn_magnitude

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

        Raises ValueError that names both if two of them disagree, and if none is given and there
        is no default.
        """
        present = [(name, self.raw[name]) for name in names if self.raw.get(name) is not None]
        for name, value in present[1:]:
            if value != present[0][1]:
                raise ValueError(f'{self.where}: {present[0][0]}={present[0][1]!r} and '
                                 f'{name}={value!r} disagree; keep the one that is right')
        if present:
            return present[0][1]
        if default is NEEDED:
            raise ValueError(f'{self.where}: {" or ".join(names)} is missing')
        return default

    def integer(self, *names: str, default: Any = NEEDED, least: int = 0) -> int:
        """A whole number that is at least `least`, and no larger than any size may be."""
        value = self.get(*names, default=default)
        name = next((name for name in names if self.raw.get(name) is not None), names[0])
        return integer(f'{self.where}: {name}', value, least, LIMIT)

    def number(self, name: str, default: Any = NEEDED) -> float:
        """A finite number that is at least 0."""
        return number(f'{self.where}: {name}', self.get(name, default=default))

    def flag(self, name: str, default: bool) -> bool:
        """True or False."""
        value = self.get(name, default=default)
        if not isinstance(value, bool):
            raise ValueError(f'{self.where}: {name}={value!r}: must be true or false')
        return value

    def only(self, name: str, *valid: Any) -> None:
        """Raise ValueError for any value but these; an absent value is allowed."""
        value = self.raw.get(name)
        if value is not None and value not in valid:
            raise ValueError(f'{self.where}: {name}={value!r} is not supported for this family '
                             f'(only {", ".join(map(repr, valid))})')

    def dtype(self) -> str:
        """The dtype of computation."""
        value = str(self.get('dtype', 'torch_dtype', default='float32')).removeprefix('torch.')
        if value == 'float64':  # such weights are loaded as float32
            return 'float32'
        return choice(f'{self.where}: dtype', value, DTYPES)

    def windows(self, layers: int, otherwise: tuple[int, ...]) -> tuple[int, ...]:
        """The tokens each layer looks back over (0: all), from layer_types if it is given."""
        kinds = self.get('layer_types', default=None)
        if kinds is None:
            return otherwise if any(otherwise) else ()
        valid = {'full_attention': 0, 'sliding_attention': 1}
        if not isinstance(kinds, list) or len(kinds) != layers or not set(
                map(str, kinds)) <= set(valid):
            raise ValueError(f'{self.where}: layer_types={kinds!r}: must be {layers} times '
                             'full_attention or sliding_attention')
        if 'sliding_attention' not in kinds:
            return ()
        window = self.integer('sliding_window')
        return tuple(valid[kind] * window for kind in kinds)

    def rope(self, head_dim: int, theta: float, *, fraction: float = 1.0,
             interleaved: bool = False) -> Rope:
        """The rotary positions, from rope_parameters (5) or rope_theta and rope_scaling (4).

        theta and fraction (the share of rotary channels of a head) are the family's defaults.
        """
        rope = self._rope_fields()
        fraction = rope.number('partial_rotary_factor', default=fraction)
        if not fraction <= 1:
            raise ValueError(f'{rope.where}: {fraction:g} times the channels of a head turn; '
                             'partial_rotary_factor, or rotary_dim / head_dim, is at most 1')
        kind = str(rope.get('rope_type', default='default'))
        if kind not in ROPE_KINDS:
            raise ValueError(f'{rope.where}: rope_type={kind!r} is not supported; '
                             f'{nearest(kind, list(ROPE_KINDS))}')
        own = {'dim': int(head_dim * fraction), 'theta': rope.number('rope_theta', default=theta),
               'interleaved': interleaved, 'kind': ROPE_KINDS[kind]}
        if kind == 'default':
            return Rope(**own)
        length = self.integer('max_position_embeddings', least=1)
        trained = self.integer('original_max_position_embeddings', least=1, default=rope.get(
            'original_max_position_embeddings', default=length))
        own |= {'factor': rope.number('factor', default=length / trained), 'trained': trained}
        if kind == 'llama3':
            own |= {'low_freq': rope.number('low_freq_factor'),
                    'high_freq': rope.number('high_freq_factor')}
        if kind == 'yarn':
            own |= {'fast': rope.number('beta_fast', default=0) or 32.0,
                    'slow': rope.number('beta_slow', default=0) or 1.0,
                    'truncate': rope.flag('truncate', True),
                    'scale': _yarn_scale(rope, own['factor'])}
        return Rope(**own)

    def rope_temperature(self) -> float:
        """The multiplier of DeepSeek's attention scale: the square of YaRN's factor."""
        rope = self._rope_fields()
        slope = rope.number('mscale_all_dim', default=0)
        scaled = rope.get('rope_type', default='default') != 'default'
        if not slope or not scaled:
            return 1.0
        magnitude = yarn_magnitude(rope.number('factor'), slope)
        return magnitude * magnitude

    def _rope_fields(self) -> 'Fields':
        """Every rope field by its version 5 name; ValueError if two places disagree."""
        new, old = (self.get(name, default={}) for name in ('rope_parameters', 'rope_scaling'))
        places = [('rope_parameters.', new), ('rope_scaling.', old),
                  ('', {name: self.raw[name] for name in ('rope_theta', 'partial_rotary_factor')
                        if self.raw.get(name) is not None})]
        values: dict[str, tuple[str, Any]] = {}
        for prefix, fields in places:
            if not isinstance(fields, Mapping) or any(isinstance(v, Mapping)
                                                      for v in fields.values()):
                raise ValueError(f'{self.where}: {prefix[:-1]}={fields!r}: must be one set of '
                                 'numbers for all layers')
            for name, value in fields.items():
                key = 'rope_type' if name == 'type' else name
                if value is None:
                    continue
                if key in values and values[key][1] != value:
                    raise ValueError(f'{self.where}: {values[key][0]}={values[key][1]!r} and '
                                     f'{prefix}{name}={value!r} disagree; keep the one that is '
                                     'right')
                values.setdefault(key, (prefix + name, value))
        return Fields({key: value for key, (_, value) in values.items()}, f'{self.where}, rope')


def _yarn_scale(rope: Fields, factor: float) -> float:
    """The multiplier of cos and sin, given or from the factor (Peng et al. 2023, 3.4)."""
    if rope.get('attention_factor', default=None) is not None:
        return rope.number('attention_factor')
    over, under = (rope.number(name, default=0) for name in ('mscale', 'mscale_all_dim'))
    if over and under:
        return yarn_magnitude(factor, over) / yarn_magnitude(factor, under)
    return yarn_magnitude(factor)
