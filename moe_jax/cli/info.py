"""`moe-jax info`: what a model is and costs."""

from moe_jax.cli.shared import Positional


def info(model: Positional[str], /, experts: int | None = None, tokens: int | None = None) -> None:
    """Print exact parameters, active parameters, bytes and FLOPs per token, from shapes alone.

    Args:
        model: a preset (tiny, cpu_small, h100, gpt2_124m, gpt2_354m), a hub id (org/name) or a
            model's folder, native or of transformers (its config.json and headers are read and held
            against each other).
        experts: experts in every MoE layer; 0 is the dense model (presets only).
        tokens: tokens in a row, for the attention's share of the FLOPs (default: all positions).
    """
    from rich.console import Console

    from moe_jax.cli.model_table import config_of, table, weights_note

    Console().print(table(config_of(model, experts), model, tokens))
    if (note := weights_note(model)) is not None:
        print(note)
