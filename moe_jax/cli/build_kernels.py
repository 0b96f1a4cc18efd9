"""`moe-jax build-kernels`: compile the grouped matrix products of CPUs for this processor."""

import time


def build_kernels() -> None:
    """Compile the grouped matrix products for this machine's processor, once.

    Models with many experts then run faster on CPU: docs/performance.md says by how much. It takes
    seconds and a C++ compiler (GCC 12 or Clang 12 and later; CXX names another than the first one
    installed). Everything works without, and on GPUs and TPUs nothing of it is used. What is
    compiled lies in the cache folder (MOE_JAX_CACHE) and is tried before it is used; a new version
    of jax or of moe-jax asks for it again.
    """
    import jax

    from moe_jax.kernels import build
    from moe_jax.kernels.table import implementation
    from moe_jax.kernels.trial import TOLERANCE, TRIED, trial

    start = time.perf_counter()
    fresh = not build.place().exists()
    path = build.build()
    took = f'compiled in {time.perf_counter() - start:.0f} s' if fresh else 'there already'
    print(f'{path}: {took}')
    for dtype in TRIED['native']:
        try:
            with jax.default_device(jax.local_devices(backend='cpu')[0]):
                error, _ = trial(implementation('native'), dtype)
        except OSError as reason:
            raise RuntimeError(f'{path}: does not load ({reason}); delete it, and the same command '
                               'compiles it anew') from reason
        print(f'{dtype}: relative error {error:.1e} against float64')
        if error > TOLERANCE[dtype]:
            raise RuntimeError(f'{path}: wrong in {dtype}, so that it will not be used; delete it '
                               'and try another compiler (CXX)')
    print('used from now on where JAX runs on the CPU; MOE_JAX_GROUPED=loop does without')
