"""The names of a folder's tensors as the families have them, whatever wrapper saved them.

What transformers itself loads is read alike: the base model without its `model.`, and a tied head
alone. Beyond that, one prefix before all names (of DDP, torch.compile, FSDP, PEFT or a model with
images around this one) is taken off where it is the same for all.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from moe_jax.hf.shards import SHOWN_TENSORS, Shards, listed

BODY, EMBED, HEAD = 'model.', 'model.embed_tokens.weight', 'lm_head.weight'
# Parts of a name that wrappers put anywhere in it: DDP, torch.compile, FSDP, checkpointing.
WRAPPER = re.compile(r'(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_forward_module|'
                     r'_checkpoint_wrapped_module)\.')
LAYERS = re.compile(r'((?:[^.]+\.)*?)layers\.\d')
HEADS = re.compile(r'((?:[^.]+\.)*?)lm_head\.')
ADAPTER = re.compile(r'\.(lora_\w+|base_layer|modules_to_save|original_module)\.')
MERGE = ("merge it into its model first, with PEFT: "
         "AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload(), then "
         'save_pretrained(NEW), and give that folder')


def read(folder: Path, tied: bool) -> tuple[Shards, list[str]]:
    """The tensors of a folder under the families' names, and what was made of other names.

    tied: whether the head is the embedding, so that either stands for both. Raises ValueError,
    naming them, for prefixes that differ and for tensors of an adapter.
    """
    shards = Shards(folder)
    adapter = [name for name in shards.tensors if ADAPTER.search(name)]
    if adapter:
        raise ValueError(f'{folder}: holds {len(adapter)} tensors of an adapter '
                         f'({listed(adapter, SHOWN_TENSORS)}); {MERGE}')
    names = {name: WRAPPER.sub('', name) for name in shards.tensors}
    body = _prefix(folder, 'the layers', BODY, LAYERS, names.values())
    head = _prefix(folder, 'the head', '', HEADS, names.values())
    names = {name: _bare(bare, body, head) for name, bare in names.items()}
    notes = _notes(names)
    if tied and EMBED not in names.values() and HEAD in names.values():
        names = {name: EMBED if bare == HEAD else bare for name, bare in names.items()}
        notes.append(f'{HEAD} is the embedding too, which {folder.name} has under no other name')
    _check_distinct(folder, names)
    return shards.renamed(names), notes


def _prefix(folder: Path, what: str, usual: str, pattern: re.Pattern[str], names: Iterable[str]
            ) -> str:
    """What stands before the pattern's word in all names: `usual` where any name has it."""
    prefixes = {match[1] for name in names if (match := pattern.match(name))}
    if usual in prefixes or not prefixes:
        return usual
    if len(prefixes) > 1:
        raise ValueError(f'{folder}: {what} stand under several prefixes, '
                         f'{listed(sorted(map(repr, prefixes)))}, and none is {usual!r}; save the '
                         'language model alone, with the names that transformers gives it')
    return prefixes.pop()


def _bare(name: str, body: str, head: str) -> str:
    """A name with the families' prefix in place of its own."""
    if name.startswith(f'{head}lm_head.'):
        return name.removeprefix(head)
    return BODY + name.removeprefix(body) if name.startswith(body) else name


def _notes(names: Mapping[str, str]) -> list[str]:
    changed = [name for name, bare in names.items() if bare != name]
    if not changed:
        return []
    return [f'{len(changed)} names are read without the prefix of what they were saved from, '
            f'such as {changed[0]} as {names[changed[0]]}']


def _check_distinct(folder: Path, names: Mapping[str, str]) -> None:
    """Refuse two tensors that would have one name."""
    first: dict[str, str] = {}
    for name, bare in names.items():
        if bare in first:
            raise ValueError(f'{folder}: {first[bare]} and {name} are one tensor but for what a '
                             'wrapper adds to names; keep one of the two')
        first[bare] = name
