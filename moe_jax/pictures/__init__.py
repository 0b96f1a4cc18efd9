"""Pictures of routing, for notebooks: statistics, plans and error curves in, figures out.

    pictures.usage(stats)                     share of each data group per expert
    pictures.similarity(stats, 'outputs')     similarity of experts
    pictures.clusters(plan, stats)            clusters that a plan merges or drops
    pictures.sensitivity(curves)              error of each layer by experts kept
    pictures.safe_sparsity(points)            quality and the recommended stop

Every function returns a matplotlib Figure and changes no setting of matplotlib. In pictures with a
panel per MoE layer, `layers` selects layers, or a number of layers, evenly spaced. The functions
need the extra `plot`.
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
