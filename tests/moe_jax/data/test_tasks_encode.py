"""Encoding: rows say exactly the prompt and the option, weights stand on the answer alone."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_jax.data import prompts, tokenizer
from moe_jax.data.tasks import encode
from moe_jax.data.tasks.example import Example
from moe_jax.data.tokenizer import Marks

PASSAGE = 'The old wall of the yard fell down, and no mason would lay its stones again. '


@pytest.fixture(scope='module')
def encoder(tmp_path_factory) -> Tokenizer:
    text = (PASSAGE + 'Input: Question: is the wall high? Options: (A) no (B) yes Output: ') * 4
    return tokenizer.train([text], 400, tmp_path_factory.mktemp('tok') / 'tokenizer.json')


def example(number: int, passage: str, *, task: str = 'boolq') -> Example:
    choices = (' no', ' yes')
    fields = {'passage': passage, 'question': f'is wall {number} high', 'sentence': passage}
    context, clips = prompts.render(task, fields, choices)
    return Example(f'e{number}', context, choices, number % 2, f'g{number}', clips)


def decoded(encoder: Tokenizer, ids: np.ndarray) -> str:
    return encoder.decode(ids.tolist(), skip_special_tokens=False)


def test_training_rows_hold_each_example_once_with_weight_on_answer_and_end(encoder):
    examples = [example(i, PASSAGE[:7 * i + 3].strip()) for i in range(9)]
    packed = encode.encode_train(examples, encoder, 128)
    tokens, segments, weights = (packed[name] for name in ('tokens', 'segments', 'weights'))
    assert [array.dtype for array in packed.values()] == [np.int32, np.int32, np.float32]
    assert tokens.shape == segments.shape == weights.shape
    assert len(tokens) < len(examples)
    found = {}
    for row in range(len(tokens)):
        for segment in range(1, segments[row].max() + 1):
            here = segments[row] == segment
            whole = decoded(encoder, tokens[row][here])
            answer = decoded(encoder, tokens[row][here & (weights[row] == 1)])
            found[whole] = answer
    assert found == {f'<|end|>{e.context}{e.answer}<|end|>': f'{e.answer}<|end|>'
                     for e in examples}
    assert set(np.unique(weights)) == {0, 1}
    assert not weights[segments == 0].any() and not tokens[segments == 0].any()


@pytest.mark.parametrize('length', [40, 64, 200, 300])
def test_prompts_rebuild_every_context_and_option(encoder, length):
    examples = [example(i, PASSAGE * (i + 1)) for i in range(5)]
    prompts = encode.encode_score(examples, encoder, length)
    assert len(prompts) == 5
    for one, (context, options) in zip(examples, prompts, strict=True):
        assert context[0] == tokenizer.END
        assert len(context) + max(map(len, options)) <= length
        assert tuple(encoder.decode(option) for option in options) == one.choices
        head, tail = one.context.split('\n', 1)
        first, rest = encoder.decode(context[1:]).split('\n', 1)
        assert rest == tail  # question, options and 'Output:' survive
        assert head.startswith(first)
        if length == 300 and one is examples[0]:
            assert first == head


def test_training_and_scoring_see_the_same_shortened_prompt(encoder):
    one = example(1, PASSAGE * 9)
    train = encode.encode_train([one], encoder, 64)
    (context, options), = encode.encode_score([one], encoder, 64)
    whole = context + options[one.label]
    assert train['tokens'][0, :len(whole)].tolist() == whole
    assert train['tokens'][0, len(whole)] == tokenizer.END


@pytest.mark.parametrize(('task', 'keeps'), [('boolq', 'head'), ('sst2', 'tail')])
def test_a_passage_is_cut_between_words_at_the_end_it_need_not_keep(encoder, task, keeps):
    passage = 'Quartz jackdaws vexed Kyiv; zephyrs hummed, and big phlox withered quickly.'
    one = example(0, passage, task=task)
    whole = encoder.encode(one.context, add_special_tokens=False)
    for budget in range(len(whole.ids) - 1, len(whole.ids) - 40, -1):
        ids = encode.fit(one, whole, budget)
        assert budget - 12 <= len(ids) <= budget
        kept = encoder.decode(ids).split('\n')[0].removeprefix('Input:').split()
        words = passage.split()
        assert kept == (words[:len(kept)] if keeps == 'head' else words[len(words) - len(kept):])
    assert encode.fit(one, whole, len(whole.ids)) == whole.ids


def test_a_cut_never_splits_a_character(encoder):
    one = example(0, '壁が庭に倒れた石工はもう石を積まない' * 3)  # three bytes each, no spaces
    whole = encoder.encode(one.context, add_special_tokens=False)
    for budget in range(len(whole.ids) - 1, len(whole.ids) - 20, -1):
        text = encoder.decode(encode.fit(one, whole, budget))
        assert '\ufffd' not in text and text.endswith('Output:')


def test_clips_are_shortened_in_their_order_and_then_it_is_an_error(encoder):
    one = example(0, PASSAGE.strip())
    whole = encoder.encode(one.context, add_special_tokens=False)
    tail = encoder.encode(one.context[one.clips[0].end:], add_special_tokens=False).ids
    bare = encoder.decode(encode.fit(one, whole, len(tail) + 3))
    assert bare == f'Input:{one.context[one.clips[0].end:]}'
    shorter = encoder.decode(encode.fit(one, whole, len(tail)))
    assert shorter.startswith('Input:\nQuestion:') and 'is wall' not in shorter
    assert shorter.endswith('high?\nOptions: (A) no (B) yes\nOutput:')
    with pytest.raises(ValueError, match=r'example e0: .* takes \d+ tokens and only 5'):
        encode.fit(one, whole, 5)
    with pytest.raises(ValueError, match='example e0'):
        encode.encode_train([one], encoder, 16)


def test_text_is_packed_as_pretraining_text_is(encoder):
    texts = [PASSAGE * 3, 'A wall.']
    packed = encode.encode_text(texts, encoder, 32)
    predicted = packed['tokens'][packed['weights'] == 1]
    ids = [encoder.encode(text, add_special_tokens=False).ids for text in texts]
    assert len(predicted) == sum(map(len, ids))
    assert sorted(predicted.tolist()) == sorted(id for text in ids for id in text)
    assert packed['tokens'].shape[1] == 32


def test_nothing_to_encode_is_an_error(encoder):
    for call in (encode.encode_train, encode.encode_score):
        with pytest.raises(ValueError, match='no examples'):
            call([], encoder, 64)
    for texts in ([], ['', ' \n']):
        with pytest.raises(ValueError, match='no text'):
            encode.encode_text(texts, encoder, 64)


def test_another_tokenizer_needs_its_own_tokens_named(encoder):
    foreign = Tokenizer(models.WordLevel({'?': 0, 'no': 1, 'yes': 2, '.': 3}, unk_token='?'))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    one = Example('e', 'yes no', (' no', ' yes'), 1, 'g')
    with pytest.raises(ValueError, match='pass marks='):
        encode.encode_train([one], foreign, 16)
    packed = encode.encode_train([one], foreign, 16, marks=Marks(0, 3))
    assert packed['tokens'][0, :5].tolist() == [0, 2, 1, 2, 3]
    assert packed['weights'][0].tolist() == [0, 0, 0, 1, 1] + [0] * 11
    prompt, = encode.encode_score([one], foreign, 16, marks=Marks(0, 3))
    assert prompt == ([0, 2, 1], [[1], [2]])
    packed = encode.encode_text(['yes no', 'no'], foreign, 8, marks=Marks(0, 3))
    assert packed['tokens'].ravel()[:5].tolist() == [0, 2, 1, 0, 1]


def test_every_prompt_ends_where_the_answer_begins_and_clips_its_own_fields():
    for task, template in prompts.TEMPLATES.items():
        names = [name for name, _ in template.clips]
        fields = {name: f'<{name}>' for name in names} | {
            'ask': 'why', 'pronoun': 'he', 'noun': 'Ann', 'word': 'lay'}
        context, clips = prompts.render(task, fields, (' no', ' yes'))
        assert context.startswith('Input: ') and context.endswith('\nOutput:')
        assert [context[clip.start:clip.end] for clip in clips] == [f'<{n}>' for n in names]
        if '{options}' in template.text:
            assert 'Options: (A) no (B) yes\n' in context
    with pytest.raises(KeyError, match="no prompt for task 'walls'"):
        prompts.render('walls', {}, ())
    with pytest.raises(KeyError, match="needs the field 'passage'"):
        prompts.render('boolq', {}, (' no', ' yes'))
    with pytest.raises(ValueError, match='27 choices'):
        prompts.options([f' {i}' for i in range(27)])
