"""`moe-jax build-kernels`: compile the native kernels for this processor."""

import time


def build_kernels() -> None:
    """Compile the native kernels, grouped matmuls on CPU, for this machine's processor, once.

    Models with many experts then run faster on CPU: docs/performance.md says by how much. It takes
    seconds and a C++ compiler (GCC 12 or Clang 12 and later; CXX names another than the first one
    installed). Everything works without, and on GPUs and TPUs nothing of it is used. What is
    compiled lies in the cache folder (MOE_JAX_CACHE) and is tried here, without which it is not
    used; a new version of jax or of moe-jax needs it again.
    """
    from moe_jax.kernels import build
    from moe_jax.kernels.trial import TOLERANCE, try_native

    start = time.perf_counter()
    fresh = not build.place().exists()
    path = build.build()
    took = f'compiled in {time.perf_counter() - start:.0f} s' if fresh else 'there already'
    print(f'{path}: {took}')
    try:
        errors = try_native()
    except OSError as reason:
        raise RuntimeError(f'{path}: does not load ({reason}); delete it, and the same command '
                           'compiles it anew') from reason
    for dtype, error in errors.items():
        print(f'{dtype}: relative error {error:.1e} against float64')
        if error > TOLERANCE[dtype]:
            raise RuntimeError(f'{path}: wrong in {dtype}, so that it will not be used; delete it '
                               'and try another compiler (CXX)')
    print('used from now on where JAX runs on the CPU; MOE_JAX_GROUPED=loop does without')
