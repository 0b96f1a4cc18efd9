"""Tasks as token ids: packed rows to fine-tune on, contexts and options to score.

Every sequence opens with a token that gives the first real token a past, the end token where the
tokenizer puts none there; training sequences close with the end token. B rows, T length.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer

from moe_jax.data.encode import Encoded, encode
from moe_jax.data.packing import pack
from moe_jax.data.tasks.example import Example
from moe_jax.data.tokenizer import END, OWN, SPECIALS, Marks

# How far to look for the edge of a word before cutting inside one (or in a text without spaces).
WORD_TOKENS = 32


class Prompt(NamedTuple):
    """Token ids of an example: the context with the opening token before it, and each option."""

    context: list[int]
    options: list[list[int]]


def known(tokenizer: Tokenizer, marks: Marks | None) -> Marks:
    """The marks given, or our own; an error asks for another tokenizer's."""
    if marks is None and tokenizer.token_to_id(SPECIALS[END]) != END:
        raise ValueError(f'the tokenizer has no {SPECIALS[END]!r}; pass marks=Marks(begin, end), '
                         'the ids that open and that close a text in it')
    return OWN if marks is None else marks


def seam(context: str, tokens: Sequence[tuple[int, int, int]], places: range, otherwise: int,
         ) -> int:
    """The first position whose token opens a word, or at least a character."""
    for place in places[:WORD_TOKENS]:
        start = tokens[place][1]
        if context[start].isspace() or context[start - 1].isspace():
            return place
    return next((place for place in places if tokens[place][1] >= tokens[place - 1][2]), otherwise)


def fit(example: Example, encoding: Encoding, budget: int) -> list[int]:
    """The token ids of a context, whole tokens taken out of its clips until `budget` suffices.

    Clips are shortened in their order, each at the end it need not keep, between words if they
    can be and never inside a character; everything else stays. Raises ValueError where that is
    not enough.
    """
    tokens = [(id, *span) for id, span in zip(encoding.ids, encoding.offsets, strict=True)]
    for clip in example.clips:
        over = len(tokens) - budget
        # A byte-level token may carry the space before its word, hence before the clip.
        inside = [place for place, (_, start, end) in enumerate(tokens)
                  if clip.start - 1 <= start < clip.end and clip.start < end <= clip.end]
        if over <= 0 or not inside:
            continue
        first, last = inside[0], inside[-1] + 1
        cut = min(over, last - first)
        if clip.keep == 'head':
            first = seam(example.context, tokens, range(last - cut, first, -1), first)
        else:
            last = seam(example.context, tokens, range(first + cut, last), last)
        del tokens[first:last]
    if len(tokens) > budget:
        raise ValueError(f'example {example.id}: the prompt without what may be shortened takes '
                         f'{len(tokens)} tokens and only {budget} are left beside the answer; '
                         f'a length {len(tokens) - budget} longer would do')
    return [id for id, _, _ in tokens]


def tokenized(examples: Sequence[Example], tokenizer: Tokenizer, length: int,
              ) -> Iterable[tuple[list[int], list[list[int]]]]:
    """For each example its context, fitted beside the longest option, and its options, as ids."""
    if not examples:
        raise ValueError('no examples to encode; is the task empty?')
    texts = sorted({choice for example in examples for choice in example.choices})
    ids = {text: encoding.ids for text, encoding in zip(
        texts, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True)}
    contexts = tokenizer.encode_batch([example.context for example in examples],
                                      add_special_tokens=False)
    for example, encoding in zip(examples, contexts, strict=True):
        options = [ids[choice] for choice in example.choices]
        # The opening and the closing token take two places.
        budget = length - 2 - max(map(len, options))
        yield fit(example, encoding, budget), options


def encode_train(examples: Sequence[Example], tokenizer: Tokenizer, length: int, *,
                 marks: Marks | None = None) -> dict[str, np.ndarray]:
    """Rows to fine-tune on: several examples to a row, weight 1 on the right answer and its end.

    Returns tokens int32, segments int32, weights float32, each [B, T]; weights[b, t] is that of
    predicting tokens[b, t]. `marks`: what opens and closes a text where the tokenizer is not
    ours.
    """
    begin, end = known(tokenizer, marks)
    ids, answered, sizes = [], [], [0]
    for example, (context, options) in zip(examples, tokenized(examples, tokenizer, length),
                                           strict=True):
        answer = [*options[example.label], end]
        ids += [begin, *context, *answer]
        answered += [0] * (1 + len(context)) + [1] * len(answer)
        sizes.append(1 + len(context) + len(answer))
    offsets = np.cumsum(sizes)
    rows = pack(Encoded(np.array(ids), offsets), length)
    # Equal sizes are packed alike, so the marks of the answers land with their tokens.
    weights = pack(Encoded(np.array(answered), offsets), length)['tokens']
    return {**rows, 'weights': weights.astype(np.float32)}


def encode_score(examples: Sequence[Example], tokenizer: Tokenizer, length: int, *,
                 marks: Marks | None = None) -> list[Prompt]:
    """Prompts to score, in order of examples; context and any option take up to `length` tokens."""
    begin = known(tokenizer, marks).begin
    return [Prompt([begin, *context], options)
            for context, options in tokenized(examples, tokenizer, length)]


def encode_text(texts: Sequence[str], tokenizer: Tokenizer, length: int, *,
                marks: Marks | None = None) -> dict[str, np.ndarray]:
    """Plain texts as packed rows in which every token but the opening one is predicted once.

    Returns tokens, segments, weights, each [B, T], exactly as pretraining text is packed.
    """
    if not any(text.strip() for text in texts):
        raise ValueError('no text to encode; is the task empty?')
    return pack(encode(tokenizer, texts, known(tokenizer, marks).begin), length)
