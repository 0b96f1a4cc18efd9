"""Whether a model and its statistics are what a plan can be made from."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moe_jax.base.checks import nearest
from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.model import fingerprint
from moe_jax.model.inputs import each
from moe_jax.model.params import check_params


def check_original(cfg: Config, params: Params, stats: Stats | None) -> None:
    """Refuse, with ValueError, merged models, params of another config, foreign statistics."""
    if shared := [i for i in cfg.moe_layers if cfg.alias(i) is not None]:
        raise ValueError(
            f'router rows of layers {shared} already share experts or stand for dropped ones; plan '
            "from the model before that, or with router_init, gates and replace that keep no rows"
        )
    check_model(cfg, params, stats, 'prune.plan')


def check_model(cfg: Config, params: Params, stats: Stats | None, where: str) -> None:
    """Refuse, with ValueError, params of another config and statistics of another model."""
    check_params(cfg, params, where, only='/moe/')
    if stats is None or not fingerprint.differs(stats.fingerprint, params, cfg, 'these statistics'):
        return
    reason = fingerprint.reason(stats.fingerprint, params, cfg)
    raise ValueError(f'these statistics were taken from another model ({reason}); observe this one')


def of_group(batches: Iterable[Mapping[str, Any]], group: str | None
             ) -> Iterator[Mapping[str, Any]]:
    """All batches; ValueError once they are read if none is of the group that is asked for."""
    seen = set()
    for batch in each(batches, 'batches'):
        seen.add(batch.get('group') or 'all')
        yield batch
    if group is not None and group not in seen:
        raise ValueError(f'group {group!r} is not in the batches; {nearest(group, sorted(seen))}')
