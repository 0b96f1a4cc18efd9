"""The experts that each domain uses, layer by layer."""

import numpy as np
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """Heat map [domains, E] per layer for the largest model; experts ordered by the domain that
    uses them most.
    """
    del verdict
    if not records.usages:
        return None
    usage = min(records.usages, key=lambda u: (-u.experts, u.seed))
    count = len(usage.layers)
    height = 1.35 + count * (0.55 + 0.23 * len(usage.domains))
    figure, axes = style.canvas(
        height,
        'Do domains have experts of their own?',
        f"Share of a domain's tokens that goes to each of {usage.experts} experts, by layer (seed "
        f'{usage.seed})',
        count,
        1,
    )
    top = 100 * max(float(shares.max()) for shares in usage.layers.values())
    image = None
    for ax, (layer, shares) in zip(axes.flat, usage.layers.items(), strict=True):
        order = np.lexsort((-shares.max(axis=0), shares.argmax(axis=0)))
        image = ax.imshow(100 * shares[:, order], aspect='auto', cmap='YlGnBu', vmin=0, vmax=top)
        ax.set_title(f'layer {layer}')
        ax.set_yticks(range(len(usage.domains)), [style.shorten(d, 16) for d in usage.domains])
        ax.set_xticks(
            range(usage.experts), [str(n) for n in order], fontsize=7 if usage.experts > 16 else 9
        )
        if usage.experts > 40:
            ax.set_xticks([])
        style.frame(ax)
        style.cells(ax, *shares.shape)
    assert image is not None  # a model has a layer
    axes.flat[-1].set_xlabel('expert, ordered by the domain that uses it most')
    bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.015)
    bar.set_label("% of the domain's tokens", color=style.SOFT)
    bar.outline.set_visible(False)
    caption = (
        f'Expert usage by domain in the model of {usage.experts} experts; an even spread would be '
        f'{100 / usage.experts:.1f}% everywhere.'
    )
    return figure, caption
