"""Pictures of routing, for notebooks: statistics, plans and error curves in, figures out.

    pictures.usage(stats)                     who uses which expert
    pictures.similarity(stats, 'outputs')     which experts are alike
    pictures.clusters(plan, stats)            what a plan makes of them
    pictures.sensitivity(curves)              which layers can spare experts
    pictures.safe_sparsity(points)            how far it is safe to go

Every function returns a matplotlib Figure and touches no setting of matplotlib. Where there is a
panel per MoE layer, `layers` chooses layers, or how many, evenly spaced. They need the extra
`plot`.
"""

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'moe_jax.pictures draws with matplotlib; install it with: pip install "moe-jax[plot]"',
        name='matplotlib',
    ) from error

from moe_jax.pictures.clusters import clusters
from moe_jax.pictures.safe_sparsity import safe_sparsity
from moe_jax.pictures.sensitivity import sensitivity
from moe_jax.pictures.similarity import similarity
from moe_jax.pictures.usage import usage

__all__ = ['clusters', 'safe_sparsity', 'sensitivity', 'similarity', 'usage']
