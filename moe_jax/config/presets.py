"""Named model sizes; each takes any expert count."""

from moe_jax.base.checks import nearest
from moe_jax.config import Config


def _every_other(layers: int, experts: int) -> tuple[int, ...]:
    """Experts in every other layer beginning with the first (UNCURL); `experts=0` is dense."""
    return tuple(experts if i % 2 == 0 else 0 for i in range(layers))


def _gpt2(experts: int, *, layers: int, width: int, heads: int) -> Config:
    return Config(
        vocab=50257, positions=1024, width=width, heads=heads, mlp_hidden=4 * width,
        expert_hidden=4 * width, experts=_every_other(layers, experts), dtype='bfloat16',
    )


def gpt2_354m(experts: int = 8) -> Config:
    """The paper's backbone: 24 layers, width 1024, 16 heads; 354M parameters when dense."""
    return _gpt2(experts, layers=24, width=1024, heads=16)


def gpt2_124m(experts: int = 8) -> Config:
    """GPT-2 small: 12 layers, width 768, 12 heads; 124M parameters when dense.

    The paper's table lists this model with width 1024, which 124M parameters and 12 heads do not
    fit (it would have 204M): width 768 is meant.
    """
    return _gpt2(experts, layers=12, width=768, heads=12)


def h100(experts: int = 8) -> Config:
    """A mid-size decoder for studies of minutes on one GPU: 8 layers, width 512, bf16."""
    return Config(
        vocab=8192, positions=512, width=512, heads=8, mlp_hidden=2048, expert_hidden=2048,
        experts=_every_other(8, experts), dtype='bfloat16',
    )


def cpu_small(experts: int = 8) -> Config:
    """A decoder that learns real text in minutes on two cores: 4 layers, width 32.

    Small enough that capacity, not time, is what it lacks after a few million tokens: only then
    can the number of experts matter.
    """
    return Config(
        vocab=1024, positions=128, width=32, heads=2, mlp_hidden=128, expert_hidden=128,
        experts=_every_other(4, experts),
    )


def tiny(experts: int = 4) -> Config:
    """The smallest model with every part, for tests and smoke runs: 2 layers, width 32."""
    return Config(
        vocab=512, positions=128, width=32, heads=2, mlp_hidden=64, expert_hidden=64,
        experts=_every_other(2, experts),
    )


PRESETS = {f.__name__: f for f in (tiny, cpu_small, h100, gpt2_124m, gpt2_354m)}


def preset(name: str, *, experts: int | None = None) -> Config:
    """The named model with `experts` in each MoE layer (None: its default; 0: dense)."""
    if name not in PRESETS:
        raise ValueError(f'no preset {name!r}; {nearest(name, list(PRESETS))}')
    if experts is not None and not 0 <= experts <= 65536:
        raise ValueError(f'experts={experts}: give 0 (dense) to 65536')
    return PRESETS[name]() if experts is None else PRESETS[name](experts)
