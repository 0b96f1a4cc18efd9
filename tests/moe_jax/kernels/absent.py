"""Meshes of devices that are not there."""

from jax.sharding import AbstractDevice, AbstractMesh, AxisType


def mesh_of(platform, cores=None, **axes):
    """A mesh of devices of a platform; of one device by default."""
    axes = axes or {'data': 1}
    return AbstractMesh(tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes),
                        abstract_device=AbstractDevice(f'a {platform}', cores, platform))
