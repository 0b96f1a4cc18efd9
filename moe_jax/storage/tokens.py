"""The tokenizer of a model folder, and the tokens that open, close and stop its texts.

Read from tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and
config.json, of a Hugging Face checkpoint, or of the folder `hf` inside a native model.
"""

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from moe_jax.data import tokenizer
from moe_jax.data.tokenizer import OWN, Marks
from moe_jax.hf.folder import SUBFOLDER
from moe_jax.hf.layout import CONFIG
from moe_jax.hf.shards import read_json
from moe_jax.storage.folder import side_file

log = logging.getLogger('moe_jax')
FILE, OPTIONS = 'tokenizer.json', 'tokenizer_config.json'
ENDS = ('generation_config.json', CONFIG)
NAMED = ('<|end|>', '</s>', '<|endoftext|>', '<eos>')  # where nothing else names an end token


@dataclasses.dataclass(frozen=True, eq=False)
class FolderTokenizer:
    """A folder's tokenizer; special tokens written in a text stay text.

    file: its tokenizer.json. marks: the ids that open and close a text. stops: all ids at which
    generation ends.
    """

    file: Path
    encoder: Tokenizer
    marks: Marks
    stops: tuple[int, ...]

    @property
    def own(self) -> bool:
        """Whether it is one that this library trained."""
        return self.marks == OWN and tokenizer.is_own(self.encoder)


def open_tokenizer(model: str | Path) -> FolderTokenizer:
    """The tokenizer of a model folder.

    A text opens with the token that the post-processor of tokenizer.json puts there. Where it puts
    none, another stands there, so that the first token of the text has a past: the bos_token if
    tokenizer_config.json says `add_bos_token` (transformers 5 passes over it, older ones did not),
    else the end token. That is the tokenizer's eos_token, else the first eos_token_id of
    generation_config.json or config.json.
    Raises FileNotFoundError without a tokenizer.json, ValueError where nothing names an end token.
    """
    file = side_file(model, FILE)
    if file is None:
        raise FileNotFoundError(f'{Path(model) / FILE}: no tokenizer; put the one the model was '
                                'trained with there')
    encoder = tokenizer.load_foreign(file)
    options = _options(Path(model))
    ends, named = stop_ids(model), _id(encoder, options, 'eos_token')
    if named is None and not ends and tokenizer.is_own(encoder):
        return FolderTokenizer(file, tokenizer.load(file), OWN, (OWN.end,))
    if named is None and not ends:
        known = (encoder.token_to_id(word) for word in NAMED)
        named = next((id for id in known if id is not None), None)
    if named is None and not ends:
        raise ValueError(f'{model}: no end token is named; set eos_token_id in '
                         f'generation_config.json or eos_token in {OPTIONS}')
    end = ends[0] if named is None else named
    opening = _opening(encoder)
    if opening is None and options.get('add_bos_token'):
        opening = _id(encoder, options, 'bos_token')
    stops = dict.fromkeys([*ends, end])
    return FolderTokenizer(
        file, encoder, Marks(end if opening is None else opening, end), tuple(stops))


def stop_ids(model: str | Path) -> tuple[int, ...]:
    """The ids at which a generated text ends: every eos_token_id of the first file that has one,
    generation_config.json or config.json, in a nested text_config too."""
    for name in ENDS:
        folder = _holding(Path(model), name)
        values = {} if folder is None else read_json(folder / name)
        ids = values.get('eos_token_id')
        if ids is None and isinstance(values.get('text_config'), dict):
            ids = values['text_config'].get('eos_token_id')
        ids = ids if isinstance(ids, list) else [ids]
        if known := tuple(int(id) for id in ids if id is not None):
            return known
    return ()


def load_tokenizer(model: str | Path) -> Any:
    """The tokenizer of a model folder, loaded by transformers; code in the folder is never run.

    Without a tokenizer_config.json the tokens that open and close a text are those of
    `open_tokenizer`.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = _holding(Path(model), OPTIONS)
    loaded = None if folder is None else AutoTokenizer.from_pretrained(folder)
    if loaded is not None and loaded.eos_token_id is not None:
        return loaded
    opened = open_tokenizer(model)
    if loaded is None:
        loaded = PreTrainedTokenizerFast(tokenizer_file=str(opened.file))
    loaded.eos_token = opened.encoder.id_to_token(opened.marks.end)
    if loaded.bos_token is None and opened.marks.begin != opened.marks.end:
        loaded.bos_token = opened.encoder.id_to_token(opened.marks.begin)
    return loaded


def _holding(model: Path, name: str) -> Path | None:
    """The folder that has a Hugging Face file: `hf` inside a native model first."""
    # A native folder's own config.json knows nothing of tokens.
    return next((folder for folder in (model / SUBFOLDER, model) if (folder / name).is_file()),
                None)


def _options(model: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json."""
    options: dict[str, Any] = {}
    for name in ('special_tokens_map.json', OPTIONS):
        folder = _holding(model, name)
        if folder is not None:
            given = read_json(folder / name)
            options |= {key: value for key, value in given.items() if value is not None}
    return options


def _id(encoder: Tokenizer, options: dict[str, Any], name: str) -> int | None:
    """The id of a special token that the options name, as text or as {'content': text}."""
    word = options.get(name)
    word = word.get('content') if isinstance(word, dict) else word
    return None if word is None else encoder.token_to_id(word)


def _opening(encoder: Tokenizer) -> int | None:
    """The id that the tokenizer puts before a text; None where it puts none."""
    # A word of another vocabulary: not every tokenizer makes something of any text.
    probe = Tokenizer(models.WordLevel({'a': 0}, unk_token='a'))
    probe.post_processor = encoder.post_processor
    encoding = probe.encode('a')
    added = itertools.takewhile(lambda pair: pair[1], zip(
        encoding.ids, encoding.special_tokens_mask, strict=True))
    before = [id for id, _ in added]
    if len(before) > 1:
        log.warning('the tokenizer opens a text with %d tokens, %s; texts open with the last',
                    len(before), [encoder.id_to_token(id) for id in before])
    return before[-1] if before else None
