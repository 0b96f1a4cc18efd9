"""What a model is and costs, as a table for people."""

from pathlib import Path

from rich.table import Table

from moe_jax.base.text import human
from moe_jax.base.tree import count_params
from moe_jax.config import Config
from moe_jax.config.presets import PRESETS, preset
from moe_jax.hf.folder import is_hf
from moe_jax.hf.hub import located
from moe_jax.hf.load import open_folder
from moe_jax.model.cost import count, idle
from moe_jax.model.decoder import shapes
from moe_jax.storage import folder


def config_of(model: str, experts: int | None = None) -> Config:
    """The config of a preset's name or of a saved model's folder."""
    if model in PRESETS or not _is_path(model):
        return preset(model, experts=experts)
    if experts is not None:
        raise ValueError(f'{model} is a saved model and has the experts it has; --experts is for '
                         'presets')
    return folder.config_of(model)


def _is_path(model: str) -> bool:
    """Whether a name is meant for a folder, or for the id of a model on the hub."""
    return '/' in model or Path(model).exists()


def weights_note(model: str) -> str | None:
    """What the headers of a Hugging Face checkpoint say, if it is one; no weights are read."""
    if model in PRESETS or not is_hf(path := located(model)):
        return None
    source = open_folder(path)
    files = len({tensor.file for tensor in source.shards.tensors.values()})
    return (f'{source.family.model_type} ({source.family.architecture}): '
            f'{len(source.shards.tensors):,} tensors in {files} files, '
            f'{source.bytes / 1e9:.3g} GB; loading takes at most {source.largest / 1e9:.3g} GB '
            'more. Config and tensors agree')


def table(cfg: Config, name: str, tokens: int | None = None) -> Table:
    """Totals, then every layer: experts, router rows, parameters, of which active per token."""
    if tokens is not None and not 1 <= tokens <= cfg.positions:
        raise ValueError(f'tokens={tokens}: give 1 to {cfg.positions}, the positions of the model')
    cost, length = count(cfg, tokens), tokens or cfg.positions
    out = Table(title=f'{name}: {human(cost.total)} parameters', title_justify='left',
                show_footer=True)
    out.add_column('layer', footer='total')
    out.add_column('experts', justify='right')
    out.add_column('router rows', justify='right')
    out.add_column('parameters', justify='right', footer=f'{cost.total:,}')
    out.add_column('active per token', justify='right', footer=f'{cost.active:,}')
    by_key = shapes(cfg)
    heads = () if cfg.tied else ('head',)
    for key in ('embed', *(f'layer_{i}' for i in range(cfg.layers)), 'norm_final', *heads):
        tree = by_key[key]
        total = count_params(tree)
        index = int(key.removeprefix('layer_')) if key.startswith('layer_') else None
        experts = cfg.experts[index] if index is not None else 0
        if not experts:
            out.add_row(key, 'dense' if index is not None else '', '', f'{total:,}', f'{total:,}')
            continue
        assert index is not None  # what is no layer has no experts
        active = total - idle(cfg, tree['moe'])
        out.add_row(key, str(experts), str(cfg.router_rows(index)), f'{total:,}', f'{active:,}')
    out.caption = (
        f'{cost.bytes / 1e9:.3g} GB in float32, {cost.bytes / 2e9:.3g} GB in bfloat16; '
        f'{cost.flops:,} FLOPs per token forward in rows of {length} tokens, '
        f'{3 * cost.flops:,} in training'
    )
    out.caption_justify = 'left'
    return out
