"""Figures of a study report: a table from name to the function that draws it."""

from collections.abc import Callable

from moe_jax.pictures import style
from moe_jax.study.report.document import Figure
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.figures import (
    answer,
    embedding,
    latency,
    methods,
    quality,
    recovery,
    threshold,
    usage,
)

# Each returns (matplotlib figure, caption), or None when its records are not there yet.
FIGURES: dict[str, Callable] = {
    'answer': answer.draw,
    'quality': quality.draw,
    'threshold': threshold.draw,
    'methods': methods.draw,
    'recovery': recovery.draw,
    'latency': latency.draw,
    'usage': usage.draw,
    'embedding': embedding.draw,
}


def draw(records: Records, verdict: Verdict) -> tuple[Figure, ...]:
    """Draws every figure that the records allow."""
    drawn = []
    with style.look():
        for name, function in FIGURES.items():
            made = function(records, verdict)
            if made is not None:
                figure, caption = made
                drawn.append(Figure(name, caption, style.png(figure)))
    return tuple(drawn)
