import jax
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from tokenizers import Tokenizer, models, pre_tokenizers

from moe_jax.data.encode import Encoded
from moe_jax.data.tasks.example import Example
from moe_jax.evals import multiple_choice, perplexity
from moe_jax.evals.multiple_choice import Questions
from moe_jax.evals.perplexity import Texts
from moe_jax.evals.scores import Scores
from moe_jax.model import decoder

WORDS = list('abcdefghijklmnopqrst')
POSITIONS = 64


@pytest.fixture(scope='module')
def lm(cfg, draw):
    cfg = cfg.replace(positions=POSITIONS, experts=(4, 0))
    return cfg, draw(cfg, seed=2)


@pytest.fixture(scope='module')
def log_probs(lm):
    """log_probs(ids): of each token but the first of one sequence, alone in its row."""
    cfg, params = lm
    apply = jax.jit(decoder.apply, static_argnums=0)

    def alone(ids):
        tokens, segments = np.zeros((2, 1, POSITIONS), np.int32)
        tokens[0, :len(ids)], segments[0, :len(ids)] = ids, 1
        logits = np.asarray(apply(cfg, params, tokens, segments)[0], np.float64)
        table = log_softmax(logits, axis=-1)
        return np.array([table[t, ids[t + 1]] for t in range(len(ids) - 1)])

    return alone


@pytest.fixture(scope='module')
def tokenizer():
    vocab = {'<|pad|>': 0, '<|end|>': 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    found = Tokenizer(models.WordLevel(vocab, unk_token='a'))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return found


@pytest.fixture(scope='module')
def examples():
    rng, found = np.random.default_rng(3), []
    for i in range(11):
        context = ' '.join(rng.choice(WORDS, 1 + i))
        options = [f' {w}' if i % 2 else f' {w} {w}' for w in rng.permutation(WORDS)[:2 + i % 3]]
        found.append(Example(f'x{i}', context, tuple(options), i % 2, f'g{i // 2}'))
    return found


def by_loop(examples, log_probs):
    """(log-likelihood, correct) of each example, option by option, row by row."""
    for example in examples:
        context = [1] + [WORDS.index(w) + 2 for w in example.context.split()]
        sums = []
        for choice in example.choices:
            answer = [WORDS.index(w) + 2 for w in choice.split()]
            sums.append(log_probs(context + answer)[-len(answer):].sum())
        best = max(range(len(sums)), key=lambda o: sums[o])
        yield sums[example.label] - logsumexp(sums), float(best == example.label)


@pytest.mark.parametrize('rows', [1, 8])
def test_multiple_choice_by_a_plain_loop_at_any_batch_size(
        lm, log_probs, tokenizer, examples, rows):
    found = multiple_choice.evaluate(
        *lm, Questions.encode(examples, tokenizer, POSITIONS), rows=rows)
    exact = np.array(list(by_loop(examples, log_probs)))
    np.testing.assert_allclose(found.log_likelihood, exact[:, 0], atol=1e-4)
    np.testing.assert_array_equal(found.correct, exact[:, 1])
    assert found.ids == tuple(f'x{i}' for i in range(11))
    assert found.groups == tuple(f'g{i // 2}' for i in range(11))
    assert found.accuracy == pytest.approx(exact[:, 1].mean())
    assert 0 < found.accuracy < 1
    assert dict(found) == {'log_likelihood': found.mean, 'accuracy': found.accuracy}


def test_equal_options_share_the_probability_and_the_first_wins(lm, tokenizer):
    cfg, params = lm
    flat = {**params, 'norm_final': {'scale': np.zeros(8, np.float32),
                                     'bias': np.zeros(8, np.float32)}}
    questions = Questions.encode(
        [Example('0', 'a', (' b', ' c', ' d'), 0, ''), Example('1', 'a', (' b', ' c'), 1, '')],
        tokenizer, POSITIONS)
    found = multiple_choice.evaluate(cfg, flat, questions)
    np.testing.assert_allclose(found.log_likelihood, [-np.log(3), -np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(found.correct, [1, 0])


@pytest.fixture(scope='module')
def documents():
    """Five documents, each beginning with <|end|>; the fourth is <|end|> alone, one is long."""
    rng = np.random.default_rng(4)
    return [[1, *rng.integers(2, 23, size).tolist()] for size in (5, 30, 9, 0, 12)]


@pytest.mark.parametrize('rows', [1, 3])
def test_perplexity_by_a_loop_over_documents(lm, log_probs, documents, rows):
    length = 16
    encoded = Encoded(np.concatenate(documents),
                      np.cumsum([0] + [len(document) for document in documents]))
    names = tuple(f'd{i}' for i in range(5))
    found = perplexity.evaluate(*lm, Texts.encode(encoded, names, names[::-1], length), rows=rows)
    exact, weight = [], []
    for document in documents:
        windows = [document[s:s + length] for s in range(0, len(document) - 1, length - 1)]
        every = np.concatenate([log_probs(window) for window in windows] or [np.zeros(0)])
        assert len(every) == len(document) - 1
        if len(every):
            exact.append(every.mean())
            weight.append(len(every))
    assert found.ids == ('d0', 'd1', 'd2', 'd4') and found.groups == ('d4', 'd3', 'd2', 'd0')
    np.testing.assert_allclose(found.log_likelihood, exact, atol=1e-4)
    np.testing.assert_array_equal(found.weight, weight)
    mean = np.dot(exact, weight) / sum(weight)
    assert found.mean == pytest.approx(mean, abs=1e-4) and found.accuracy is None
    assert dict(found)['perplexity'] == pytest.approx(np.exp(-mean), rel=1e-4)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r'1 of 2 examples have no finite .* first is b'):
        Scores(('a', 'b'), ('', ''), np.array([-1.0, np.nan]), np.ones(2))


def test_examples_longer_than_the_model_are_refused(lm, tokenizer, examples):
    cfg, params = lm
    with pytest.raises(ValueError, match='takes 14 tokens; the model has 12 positions'):
        multiple_choice.evaluate(cfg.replace(positions=12), params,
                                 Questions.encode(examples, tokenizer, POSITIONS))


def test_no_examples_are_refused(tokenizer):
    with pytest.raises(ValueError, match='no examples'):
        Questions.encode([], tokenizer, POSITIONS)
