"""The target of a program: the platform it is traced for, and the backend that its user asks for.

A mesh in force says which devices it is made of, also where they are a mere description
(`jax.experimental.topologies`, a `jax.sharding.AbstractMesh` with an abstract device), so that a
program can be compiled for machines that are not there. Without a mesh the target is the default
backend of this process.
"""

import os

import jax
from jax.sharding import AbstractDevice

VARIABLE = 'MOE_JAX_GROUPED'


def platform() -> str:
    """The platform of the target's devices: 'cpu', 'gpu', 'tpu'."""
    device = _device()
    return jax.default_backend() if device is None else device.platform


def cores() -> int | None:
    """The multiprocessors of one of the target's devices; None where it does not say."""
    device = _device()
    if device is not None:
        return device.num_cores
    return getattr(jax.local_devices()[0], 'core_count', None)


def requested() -> str:
    """The backend of the grouped matmul that MOE_JAX_GROUPED names, '' where it names none."""
    return os.environ.get(VARIABLE, '')


def _device() -> AbstractDevice | None:
    """The kind of the devices of the mesh in force, inside a `shard_map` too; None without one."""
    return jax.sharding.get_abstract_mesh().abstract_device
