"""Batches as users have them: every function that reads text takes every natural form, or says why.

B rows, T tokens.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
import train
from moe_jax.model.inputs import each, named, weighed
from tests.train.train_tiny import DROPLESS

CFG = DROPLESS.replace(capacity_eval=None, experts=(4,))
PARAMS = moe_jax.init(CFG, jax.random.key(0))
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, 64, (4, 12)).astype(np.int32)
MASK = np.arange(12) < np.array([12, 9, 5, 12])[:, None]
OPTIONS = train.TrainOptions(steps=1, batch=4, length=12, peak_lr=1e-2, warmup=0)


def fitted(batches):
    return train.fit(CFG, PARAMS, list(each(batches, 'fit')), OPTIONS)[1][-1]['loss']


# What reads text, and a number that depends on all that was read.
READERS = {
    'observe': lambda b: moe_jax.observe(CFG, PARAMS, b).layer(0)['input_sum'].sum(),
    'compare': lambda b: moe_jax.compare(CFG, PARAMS, CFG, PARAMS, b).mean('nats'),
    'Reference': lambda b: moe_jax.Reference.of(CFG, PARAMS, b).compare(CFG, PARAMS).mean('nats'),
    'reconstruction': lambda b: moe_jax.reconstruction(
        CFG, PARAMS, CFG.replace(topk=1), PARAMS, b)['all'][0].local,
    'plan_layerwise': lambda b: prune.plan_layerwise('expert_drop', PARAMS, CFG, b, experts=2)[
        1]['layer_0']['moe']['experts']['up'].sum(),
    'fit': fitted,
}
FORMS = {
    'our names': {'tokens': TOKENS, 'mask': MASK},
    'names of transformers': {'input_ids': TOKENS, 'attention_mask': MASK.astype(np.int64)},
    'as an encoding': collections.UserDict(input_ids=TOKENS, attention_mask=MASK.astype(int)),
    'lists': {'tokens': TOKENS.tolist(), 'mask': MASK.tolist()},
    'arrays of JAX': {'tokens': jnp.asarray(TOKENS), 'segments': jnp.asarray(MASK, jnp.int32)},
    'another integer': {'tokens': TOKENS.astype(np.int64), 'mask': MASK},
    'odd ids on padding': {'tokens': np.where(MASK, TOKENS, -100), 'mask': MASK},
}
BARE = {
    'no mask': [{'tokens': TOKENS}],
    'an array': [TOKENS],
    'lists of ids': [TOKENS.tolist()],
    'one dict': {'tokens': TOKENS},
    'one array': TOKENS,
}


@pytest.fixture(scope='module', params=READERS)
def reader(request):
    read = READERS[request.param]
    return read, {whole: float(read([{'tokens': TOKENS, 'mask': mask}]))
                  for whole, mask in ((False, MASK), (True, np.ones_like(MASK)))}


def test_every_form_says_the_same(reader):
    read, expected = reader
    for name, form in FORMS.items():
        assert float(read([form])) == expected[False], name
    for name, batches in BARE.items():
        assert float(read(batches)) == expected[True], name
    assert float(read(batch for batch in BARE['no mask'])) == expected[True]


@pytest.mark.parametrize('batches, message', [
    ([{'text': 'a cat'}], r"a batch has \['text'\]; a batch is a dict of 'tokens' int \[B, T\]"),
    ([TOKENS[0]], 'a batch is a ndarray with 1 axes'),
    (['a cat'], 'a batch is a str with 0 axes'),
    ('a cat', "batches='a cat' holds no batches"),
    (None, 'batches=None holds no batches'),
    (3, 'batches=3 holds no batches'),
    ([{'tokens': TOKENS, 'mask': MASK[:2]}], r'tokens \(4, 12\) and mask or segments \(2, 12\)'),
    ([{'tokens': TOKENS + 0.5}], 'tokens are float64 and must be integers'),
    ([{'tokens': TOKENS + 60}], r'token ids \d+..\d+ do not fit vocab=64'),
    ([{'tokens': TOKENS - 60}], r'token ids -\d+..\d+ do not fit vocab=64'),
])
def test_what_is_no_batch_is_refused_by_all(reader, batches, message):
    with pytest.raises(ValueError, match=message):
        reader[0](batches)


def test_labels_become_weights():
    labels = np.where(RNG.random(TOKENS.shape) < 0.5, TOKENS, -100)
    batch = named({'input_ids': TOKENS, 'labels': labels}, 'here')
    assert set(batch) == {'tokens', 'weights'}
    np.testing.assert_array_equal(batch['weights'], labels >= 0)
    with pytest.raises(ValueError, match=r'labels .* must be input_ids .*, or -100'):
        named({'input_ids': TOKENS, 'labels': TOKENS + 1}, 'here')


def test_without_weights_each_token_with_a_past_counts_once():
    segments = np.array([[1, 1, 2, 2, 2, 0], [0, 1, 1, 0, 2, 3]])
    np.testing.assert_array_equal(weighed(None, segments, 'here'), [
        [0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -1.0])
def test_weights_that_cannot_be_are_refused_before_a_step(bad):
    weights = np.ones(TOKENS.shape, np.float32)
    weights[1, 3] = bad
    for name, read in (('fit', fitted), ('compare', READERS['compare'])):
        with pytest.raises(ValueError, match=r'weights .*finite and at least 0'):
            read([{'tokens': TOKENS, 'weights': weights}])
        with pytest.raises(ValueError, match=r'weights \(4, 3\) must be \[B, T\]'):
            read([{'tokens': TOKENS, 'weights': weights[:, :3]}]), name


def test_training_names_the_ids_and_takes_nothing_that_cannot_resume():
    for bad in (64, -1, -100):
        tokens = TOKENS.copy()
        tokens[0, 5] = bad
        for kind in (np.asarray, jnp.asarray):
            rows = {'tokens': kind(tokens), 'segments': kind(np.ones_like(tokens)),
                    'weights': kind(np.ones(tokens.shape, np.float32))}
            with pytest.raises(ValueError, match=r'step 0: token ids .* do not fit vocab=64'):
                train.fit(CFG, PARAMS, [rows], OPTIONS)
    with pytest.raises(ValueError, match='batches is a generator: give a list of batches'):
        train.fit(CFG, PARAMS, (rows for _ in range(2)), OPTIONS)


def test_apply_and_score_look_at_ids_unless_they_are_traced():
    for call in (moe_jax.apply, moe_jax.score):
        for tokens in (TOKENS + 60, TOKENS[:0], TOKENS[0], TOKENS + 0.5):
            with pytest.raises(ValueError, match=r'tokens? '):
                call(CFG, PARAMS, tokens)
        np.testing.assert_array_equal(call(CFG, PARAMS, TOKENS.tolist()),
                                      call(CFG, PARAMS, jnp.asarray(TOKENS)))
    traced = jax.jit(lambda tokens: moe_jax.apply(CFG, PARAMS, tokens))
    assert np.isfinite(traced(TOKENS + 60)).all()


def test_ids_on_padding_that_no_row_has_do_no_harm_on_a_device_either():
    rows = {'tokens': np.where(MASK, TOKENS, -100), 'segments': MASK.astype(np.int32),
            'weights': MASK.astype(np.float32)}
    losses = [train.fit(CFG, PARAMS, [jax.tree.map(kind, batch)], OPTIONS)[1][-1]['loss']
              for batch in (rows, rows | {'tokens': np.where(MASK, TOKENS, 0)})
              for kind in (np.asarray, jnp.asarray)]
    assert len(set(losses)) == 1 and np.isfinite(losses[0])


def test_a_mask_of_bools_beside_tokens_on_a_device():
    expected = moe_jax.apply(CFG, PARAMS, TOKENS, MASK.astype(np.int32))
    np.testing.assert_array_equal(
        moe_jax.apply(CFG, PARAMS, jnp.asarray(TOKENS), jnp.asarray(MASK)), expected)


def test_a_teacher_is_not_asked_about_ids_it_does_not_know():
    rows = {'tokens': TOKENS + 60, 'segments': MASK.astype(np.int32)}
    with pytest.raises(ValueError, match=r'teach: token ids .* do not fit vocab=64'):
        train.teach(CFG, PARAMS, rows, batch=4)


def test_that_the_balancing_bias_stays_is_logged(caplog):
    cfg = CFG.replace(gate='sigmoid_topk_renorm', correction=True)
    train.fit(cfg, moe_jax.init(cfg, jax.random.key(0)), [{'tokens': TOKENS}], OPTIONS)
    assert 'the balancing bias of the routers (correction) stays as it is' in caplog.text


def test_prompts_are_lists_or_an_array():
    made = moe_jax.generate(CFG, PARAMS, TOKENS, max_new=2)
    assert made == moe_jax.generate(CFG, PARAMS, TOKENS.tolist(), max_new=2)
    for prompts in (TOKENS[0], TOKENS[None], [[[1]]]):
        with pytest.raises(ValueError, match=r'prompts are lists of token ids|at least one token'):
            moe_jax.generate(CFG, PARAMS, prompts, max_new=2)


def test_nothing_reads_the_row_that_padding_points_to():
    """Row 0 of the table is NaN, and no token has id 0."""
    broken = jax.tree.map(lambda leaf: leaf, PARAMS)
    broken['embed'] = dict(broken['embed'], tokens=broken['embed']['tokens'].at[0].set(np.nan))
    # The head is not tied here, or logits of id 0 would be NaN whatever is read.
    cfg = CFG.replace(tied=False)
    params, broken = (p | {'head': {'kernel': PARAMS['embed']['tokens']}} for p in (PARAMS, broken))
    batch = {'tokens': np.where(MASK, TOKENS, 0), 'mask': MASK}
    for p in (params, broken):
        logits = np.asarray(moe_jax.apply(cfg, p, batch['tokens'], MASK.astype(np.int32)))
        kept = logits[MASK], moe_jax.score(cfg, p, *batch.values())
        seen = moe_jax.observe(cfg, p, [batch], gradients=True).layer(0)
        made = moe_jax.generate(cfg, p, [row[mask].tolist() for row, mask in zip(
            TOKENS[:, :8], MASK[:, :8], strict=True)], max_new=2)
        trained, history = train.fit(cfg, p, [batch], OPTIONS)
        embedded = trained['embed']['tokens'][1:]
        found = [*kept, *seen.values(), np.array(made), embedded, trained['layer_0'],
                 history[0]['loss']]
        if p is params:
            expected = found
    jax.tree.map(np.testing.assert_array_equal, found, expected)
