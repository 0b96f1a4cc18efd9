"""Whether a parameter tree is that of a config."""


from moe_jax.base.tree import Params, leaves_with_paths
from moe_jax.config import Config
from moe_jax.model import decoder


def check_params(
    cfg: Config, params: Params, where: str, only: str = ''
) -> None:
    """Raise ValueError unless params have exactly the paths and shapes of the config.

    only: look at the paths with this text in them alone, such as '/moe/'.
    """
    wanted, present = (
        {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(tree) if only in path}
        for tree in (decoder.shapes(cfg), params)
    )
    if wanted == present:
        return
    faults = [f'{p} is missing' for p in wanted.keys() - present.keys()]
    faults += [f'{p} is not in the config' for p in present.keys() - wanted.keys()]
    faults += [
        f'{p} has shape {present[p]}, the config says {wanted[p]}'
        for p in wanted.keys() & present.keys() if wanted[p] != present[p]
    ]
    shown = '; '.join(sorted(faults)[:6]) + ('; ...' if len(faults) > 6 else '')
    raise ValueError(
        f'{where}: params and config disagree in {len(faults)} leaves: {shown}. '
        'After surgery on params use cfg.fit(params).'
    )
