"""The table of families, computed from the released config of each; docs/families.md shows it."""

from rich.table import Table

from moe_jax.base.text import human
from moe_jax.config import Config
from moe_jax.families import FAMILIES
from moe_jax.families.family import Family
from moe_jax.model.cost import count
from moe_jax.routing.designs.top_k import top_k
from moe_jax.routing.gates import GATE

HEAD = """# Families

This page lists the Hugging Face checkpoints that moe-jax loads and exports. The command
`moe-jax families --markdown` generates it from the tables in `moe_jax/families/`. Sizes are
computed from the released configs.

```sh
moe-jax info FOLDER                              # reads config.json and headers, no weights
moe-jax prune FOLDER --method frequency --experts 32 --stats stats.npz --out SMALL --to hf
moe-jax convert FOLDER NATIVE --to native
```

"""
TAIL = """
If gates are raw, deleting experts enlarges the shares of the remaining experts, because the softmax
has fewer terms. If gates are renormalized, a token whose experts all stay is unaffected. With
router groups, every router group must keep the same number of experts. transformers has no config
for layers with different numbers of experts, so such models can be saved in the native format but
not exported.

A model is named by its folder, or by its id on the Hugging Face hub (`org/name`), which is fetched
into the hub's cache: config, safetensors and tokenizer, never code or pickled weights. An adapter
(LoRA) must be merged into its model first.

Some folders differ from the released ones and load all the same, with a logged line. One prefix
before all names (of DDP, `torch.compile`, FSDP, PEFT or a model with images) is taken off. The base
model's names have no `model.`. A tied head may be stored alone. Buffers, masks and position ids are
left out, and float64 weights become float32. A `quantization_config` beside weights that are all
plain is ignored with a warning. A cast (`dtype=`, `--dtype`) that would turn a finite number into
an infinity is refused, and the log says how many numbers become zero.

These inputs are not supported: quantized weights (8-bit, MXFP4; dequantize them with transformers
first), pickled weights (never opened), rotary scalings other than linear, llama3 and yarn, and
activations other than SiLU.

To add a family, put a file with one `Family` table beside the others and add its name to
`moe_jax/families/__init__.py`. The tests of parity and round trips need a tiny variant of it in
`tests/moe_jax/hf/tiny.py`.
"""


def rows() -> list[tuple[str, ...]]:
    """The rows of the table: family, models, size, active, experts, gates, attention."""
    table = []
    for family in FAMILIES.values():
        cfg = family.config(family.released)
        cost = count(cfg, 1)
        experts = cfg.experts[cfg.moe_layers[0]]
        table.append((
            family.model_type, family.models, human(cost.total), human(cost.active),
            f'{experts}, top {cfg.topk}{_shared(cfg)}', _routing(cfg), _attention(cfg)))
    return table


COLUMNS = ('family', 'models', 'size', 'active', 'experts', 'gates', 'attention')


def table() -> Table:
    """The table for the terminal."""
    out = Table(*COLUMNS, title='families of Hugging Face checkpoints', title_justify='left')
    for row in rows():
        out.add_row(*row)
    return out


def markdown() -> str:
    """The text of docs/families.md."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + '---|' * len(COLUMNS)]
    lines += ['| ' + ' | '.join(row) + ' |' for row in rows()]
    text = HEAD + '\n'.join(lines) + '\n\n## On disk\n\n'
    for family in FAMILIES.values():
        text += _names(family)
    return text + TAIL


def _names(family: Family) -> str:
    """The line of one family: the names of its experts and routers, and its notes."""
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
    return ', a gated shared expert' if cfg.shared_gate else ', a shared expert'


def _routing(cfg: Config) -> str:
    router = top_k(cfg.router, 'a family of transformers')
    parts = [GATE[router.gate].words]
    parts += ['correction bias'] * router.correction + ['router bias'] * router.bias
    if router.groups > 1:
        parts.append(f'{router.groups} router groups, {router.groups_used} used')
    if router.scale != 1:
        parts.append(f'times {router.scale:g}')
    return ', '.join(parts)


def _attention(cfg: Config) -> str:
    if cfg.latent is not None:
        parts = [f'latent (rank {cfg.latent.kv})']
    else:
        parts = [f'{cfg.heads} heads of {cfg.head_dim}, {cfg.kv_heads} key heads']
    if cfg.qk_norm != 'none':
        parts.append(f'q and k normed {"head by head" if cfg.qk_norm == "head" else "as a whole"}')
    rope = cfg.rope
    assert rope is not None  # of every released family
    if cfg.latent is None and rope.dim != cfg.head_dim:
        parts.append(f'{rope.dim} rotary channels')
    parts += ['sliding windows'] * any(cfg.windows) + ['sinks'] * cfg.sinks
    if rope.kind != 'plain':
        parts.append(rope.kind)
    return ', '.join(parts)
