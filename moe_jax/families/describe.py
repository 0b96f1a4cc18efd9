"""The table of families, computed from each one's released config; docs/families.md is made of it.
"""

from rich.table import Table

from moe_jax.base.text import human
from moe_jax.config import Config
from moe_jax.families import FAMILIES
from moe_jax.families.family import Family
from moe_jax.model.cost import count
from moe_jax.routing.designs.top_k import top_k
from moe_jax.routing.gates import GATE

HEAD = """# Families

What of Hugging Face transformers loads and exports. This page is made of the tables in
`moe_jax/families/` (`moe-jax families --markdown`); sizes are computed from the released configs.

```sh
moe-jax info FOLDER                              # reads config.json and headers, no weights
moe-jax prune FOLDER --method frequency --experts 32 --stats stats.npz --out SMALL --to hf
moe-jax convert FOLDER NATIVE --to native
```

"""
TAIL = """
Where gates are raw, deleting experts makes the shares of those that stay larger, as the softmax has
fewer terms; where they are renormalised, a token all of whose experts stay is untouched. With
router groups, every group must keep equally many experts. Layers that keep different numbers of
experts have no config in transformers: they are exported only uniformly, and saved natively as they
are.

Not read: quantised weights (8-bit, MXFP4; dequantise them with transformers first), pickled weights
(never opened), rotary scalings other than linear, llama3 and yarn, activations other than SiLU.

To add a family, put a file with one `Family` table beside the others and its name into
`moe_jax/families/__init__.py`; the tests of parity and round trips need a tiny variant of it in
`tests/hf/tiny.py`.
"""


def rows() -> list[tuple[str, ...]]:
    """family, models, size, active per token, experts, routing, attention."""
    found = []
    for family in FAMILIES.values():
        cfg = family.config(family.released)
        cost = count(cfg, 1)
        experts = cfg.experts[cfg.moe_layers[0]]
        found.append((
            family.model_type, family.models, human(cost.total), human(cost.active),
            f'{experts}, top {cfg.topk}{_shared(cfg)}', _routing(cfg), _attention(cfg)))
    return found


COLUMNS = ('family', 'models', 'size', 'active', 'experts', 'gates', 'attention')


def table() -> Table:
    """For the terminal."""
    out = Table(*COLUMNS, title='families of transformers', title_justify='left')
    for row in rows():
        out.add_row(*row)
    return out


def markdown() -> str:
    """docs/families.md."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows()]
    text = HEAD + '\n'.join(lines) + '\n\n## On disk\n\n'
    for family in FAMILIES.values():
        text += _names(family)
    return text + TAIL


def _names(family: Family) -> str:
    """One family's notes and the names of its experts and routers."""
    names: dict[str, list[str]] = {}
    for slot in family.slots:
        if '/moe/' in slot.path and 'shared' not in slot.path and 'bias' not in slot.path:
            names.setdefault(slot.name.removeprefix('model.layers.{l}.'), []).append(
                slot.path.rsplit('/', 1)[1])
    listed = ', '.join(f'`{name}` ({", ".join(parts)})' for name, parts in names.items())
    notes = f' {family.notes}' if family.notes else ''
    return (f'- **{family.model_type}** (`{family.architecture}`, experts counted in '
            f'`{family.expert_field}`): {listed}.{notes}\n')


def _shared(cfg: Config) -> str:
    if not cfg.shared_hidden:
        return ''
    return ', a gated shared one' if cfg.shared_gate else ', a shared one'


def _routing(cfg: Config) -> str:
    router = top_k(cfg.router, 'a family of transformers')
    parts = [GATE[router.gate].words]
    parts += ['correction bias'] * router.correction + ['router bias'] * router.bias
    if router.groups > 1:
        parts.append(f'{router.groups} groups, {router.groups_used} used')
    if router.scale != 1:
        parts.append(f'times {router.scale:g}')
    return ', '.join(parts)


def _attention(cfg: Config) -> str:
    if cfg.latent is not None:
        parts = [f'latent (rank {cfg.latent.kv})']
    else:
        parts = [f'{cfg.heads} heads of {cfg.head_dim}, {cfg.kv_heads} for keys']
    if cfg.qk_norm != 'none':
        parts.append(f'q and k normed {"head by head" if cfg.qk_norm == "head" else "as a whole"}')
    rope = cfg.rope
    assert rope is not None  # of every released family
    if cfg.latent is None and rope.dim != cfg.head_dim:
        parts.append(f'{rope.dim} channels turn')
    parts += ['sliding windows'] * any(cfg.windows) + ['sinks'] * cfg.sinks
    if rope.kind != 'plain':
        parts.append(rope.kind)
    return ', '.join(parts)
