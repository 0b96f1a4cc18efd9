"""Options of questions as the standard harness asks for them, against its wrapper of transformers.

Both get the same `loglikelihood` requests: strings, four options a question, each after the same
context. Ours computes a context once for its options, which is less work and not faster work; 'one
option a question' has nothing to share. The wrapper runs with the faster of transformers' ways to
run experts and at several batch sizes, of which the fastest in the median is the rival, and the one
that goes on to 'one option'. All on the same weights, in float32, on CPU.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from benchmarks import peer_model
from benchmarks.measured import Measured, Results, best, compared, median, rounds, seconds
from benchmarks.peer_model import WAYS, Sizes
from moe_jax.evals.harness import HarnessLM

CONTEXT, ANSWER, OPTIONS = (60, 250), (1, 12), 4  # tokens, both ends included
QUESTIONS, ROUNDS = {'full': 12, 'small': 4}, 3
BATCHES = (8, 16, 32)  # of the wrapper
TARGET, APART = 2.5, 1e-3  # nats
LogProbs = list[tuple[float, bool]]


def run(args: argparse.Namespace) -> Results:
    """Four options a question, then one."""
    sizes = peer_model.mixtral(args.small)._replace(positions=512)
    count = QUESTIONS['small' if args.small else 'full']
    with peer_model.opened(sizes, 'float32', args.seed, partial(write_tokenizer, sizes)) as both:
        tokenizer = AutoTokenizer.from_pretrained(both.folder)
        wrappers = {batch: HFLM(both.peer, tokenizer=tokenizer, batch_size=batch)
                    for batch in BATCHES}
        ours = HarnessLM(str(both.folder))
        rng = np.random.default_rng(args.seed)
        several, single = (requests(rng, sizes, count * OPTIONS // each, each)
                           for each in (OPTIONS, 1))
        way = faster_way(both.peer, wrappers[BATCHES[0]], several)
        both.peer.set_experts_implementation(way)
        results, batch = measure(f'{OPTIONS} options a question', several, ours, wrappers, args,
                               TARGET)
        results += measure('one option a question', single, ours, {batch: wrappers[batch]}, args,
                         None)[0]
    yield (f'{sizes} float32, {len(several)} requests, contexts of {CONTEXT[0]} to {CONTEXT[1]} '
           f'tokens, answers of {ANSWER[0]} to {ANSWER[1]}, {peer_model.versions()}, experts by '
           f'{way}'), results


def measure(what: str, requests: Sequence[Instance], ours: HarnessLM, wrappers: dict[int, HFLM],
            args: argparse.Namespace, target: float | None) -> tuple[list[Measured], int]:
    """What is computed held against each other, then times of ours and every batch size.

    Also gives the batch size that is the rival's fastest.
    """
    runs: dict[str, Callable[[], LogProbs]] = {
        f'{what}, ours': partial(ours.loglikelihood, requests, disable_tqdm=True)}
    for batch, wrapper in wrappers.items():
        runs[f'{what}, transformers, batch {batch}'] = partial(
            wrapper.loglikelihood, requests, disable_tqdm=True)
    first, *rivals = runs
    cold = seconds(runs[first])
    results = differences(what, runs[first](), runs[rivals[0]](), OPTIONS if target else 1)
    taken = rounds(args.rounds or (1 if args.small else ROUNDS), list(runs.values()))
    times = {name: [1000 * t for t in each] for name, each in zip(runs, taken, strict=True)}
    rival = best({name: times[name] for name in rivals})
    batch = list(wrappers)[rivals.index(rival)]
    shared = ', the context computed once' if target else ''
    return [
        *results,
        *compared(f'{what}{shared}, transformers over ours', times[rival], times[first],
                  None if target is None else ('>=', target)),
        *(median(name, each, 'ms') for name, each in times.items()),
        Measured(f'{first}, first time (with compilation)', 1000 * cold, 'ms'),
    ], batch


def differences(what: str, ours: LogProbs, theirs: LogProbs, options: int) -> list[Measured]:
    """The largest difference of a log-probability, and how many questions are answered alike."""
    a, b = (np.array([log_prob for log_prob, _ in results]).reshape(-1, options)
            for results in (ours, theirs))
    results = [Measured(f'{what}, largest difference of a log-probability',
                      float(np.abs(a - b).max()), 'nats', ('<=', APART))]
    if options > 1:
        same = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
        results.append(Measured(f'{what}, share answered alike', same, '', ('>=', 1.0)))
    return results


def faster_way(peer: Any, wrapper: HFLM, requests: Sequence[Instance]) -> str:
    """The way to run experts with which the requests take the least, the second time."""
    def run(way: str) -> LogProbs:
        peer.set_experts_implementation(way)
        return wrapper.loglikelihood(requests, disable_tqdm=True)

    return best(dict(zip(WAYS, rounds(1, [partial(run, way) for way in WAYS]), strict=True)))


def requests(rng: np.random.Generator, sizes: Sizes, count: int, each: int) -> list[Instance]:
    """`count` questions of random words with `each` options, a request for every option."""
    def text(low: int, high: int) -> str:
        return ' '.join(f'w{i}' for i in rng.integers(1, sizes.vocab, rng.integers(low, high + 1)))

    results = []
    for question in range(count):
        context = text(*CONTEXT)
        results += [Instance('loglikelihood', {}, (context, f' {text(*ANSWER)}'), option,
                           ('random', question, 1)) for option in range(each)]
    return results


def write_tokenizer(sizes: Sizes, folder: Path) -> None:
    """A tokenizer whose words are w1, w2, ... and an end token, as many as the model's."""
    words = {'<end>': 0} | {f'w{i}': i for i in range(1, sizes.vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token='<end>'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(['<end>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': '<end>', 'pad_token': '<end>',
        'unk_token': '<end>', 'model_max_length': sizes.positions}))
