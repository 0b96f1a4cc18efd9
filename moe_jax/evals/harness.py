"""Our models under EleutherAI's lm-evaluation-harness (the `eval` extra).

The harness makes the requests and the metrics; this file has log-likelihoods, rolling
log-likelihoods and greedy generation, with the same truncation as its own wrapper of transformers.
A prefix that requests share, such as the context of options, is computed once.
"""

import logging
from collections.abc import Callable
from typing import Any, cast

import jax
from jinja2 import TemplateError
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from moe_jax.hf.hub import located
from moe_jax.inference.continuations import score_continuations
from moe_jax.inference.generate import Sampling, generate
from moe_jax.storage import folder as storage
from moe_jax.storage.tokens import load_tokenizer, stop_ids

log = logging.getLogger('moe_jax')
MAX_NEW = 256


@register_model('moe-jax')
class HarnessLM(TemplateLM):
    """A model folder behind the interface of the harness; `model` is its path, or a hub id.

    batch: rows of the model's longest length that are scored together (shorter ones: more).
    """

    def __init__(self, model: str, batch: int = 8, dtype: str | None = None) -> None:
        super().__init__()
        model = str(located(model))
        self.cfg, self.params = storage.load(model, dtype=dtype)
        self.tokenizer = load_tokenizer(model)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f'{model}: its tokenizer names no eos_token; set it in '
                             'tokenizer_config.json')
        self.stops = {*stop_ids(model), self.eot_token_id}
        self.batch = batch

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The context of a text without one: the token that begins a text, or that ends one."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def max_length(self) -> int:
        """The maximum number of tokens in a row."""
        return self.cfg.positions

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer in the harness's cache of requests."""
        return self.tokenizer.name_or_path.replace('/', '__')

    def apply_chat_template(self, chat_history: list[dict[str, str]],
                            add_generation_prompt: bool = True) -> str:
        """A conversation as the tokenizer's own template writes it.

        Where the template refuses a system message, that message is left out, as the harness's own
        wrapper does, and the log says so.
        """
        def written(history: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt)

        try:
            return written(chat_history)
        except TemplateError as error:
            rest = [message for message in chat_history if message['role'] != 'system']
            if len(rest) == len(chat_history):
                raise
            log.warning('the chat template takes no system message (%s); it is left out', error)
            return written(rest)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any
                   ) -> list[int]:
        """Token ids; special tokens as the tokenizer wants them, but no second beginning token."""
        prefix = self.tokenizer.decode(self.prefix_token_id)
        if add_special_tokens is None and prefix and string.startswith(prefix):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {'add_special_tokens': add_special_tokens}
        return self.tokenizer.encode(string, **options)

    def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]],
                              disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        with tqdm(total=len(requests), disable=disable_tqdm, desc='log-likelihoods') as bar:
            scored = score_continuations(
                self.cfg, self.params, [(context, rest) for _, context, rest in requests],
                batch=self.batch, progress=cast(Callable[[int], None], bar.update))
        return list(zip(scored.log_prob.tolist(), scored.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False
                              ) -> list[float]:
        """Log-probability of whole texts: every token once, in windows of the longest length."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners = []
        for i, request in enumerate(requests):
            text, = request.args
            for window in get_rolling_token_windows(
                    token_list=self.tok_encode(text), prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (log_prob, _) in zip(
                owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[i] += log_prob
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow the contexts, up to a stop string or the end of text."""
        generated = [''] * len(requests)
        by_options: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_options.setdefault(repr(request.args[1]), []).append(i)
        with tqdm(total=len(requests), disable=disable_tqdm, desc='texts') as bar:
            for same in by_options.values():
                same.sort(key=lambda i: -len(requests[i].args[0]))
                for first in range(0, len(same), self.batch):
                    part = same[first:first + self.batch]
                    texts = self._texts([requests[i].args[0] for i in part],
                                        requests[part[0]].args[1])
                    for i, text in zip(part, texts, strict=True):
                        generated[i] = text
                    bar.update(len(part))
        return generated

    def _texts(self, contexts: list[str], options: dict[str, Any]) -> list[str]:
        chosen = cast(dict[str, Any], normalize_gen_kwargs(dict(options), MAX_NEW))
        eos = self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False)
        until = handle_stop_sequences(chosen.get('until'), eos=eos)
        room = self.max_length - chosen['max_gen_toks']
        if room < 1:
            raise ValueError(f'max_gen_toks={chosen["max_gen_toks"]}: the model has '
                             f'{self.max_length} positions for context and answer together')
        warmth = float(chosen.get('temperature') or 0.0)
        sampling = Sampling(temperature=warmth if chosen['do_sample'] else 0.0,
                            top_k=chosen.get('top_k') or 0, top_p=chosen.get('top_p') or 1.0)
        made = generate(
            self.cfg, self.params, [self.tok_encode(text)[-room:] for text in contexts],
            max_new=chosen['max_gen_toks'], stop=self.stops, sampling=sampling,
            key=jax.random.key(0), stop_when=lambda ids: any(
                word in self.tokenizer.decode(ids) for word in until if word),
        )
        return [postprocess_generated_text(
            self.tokenizer.decode(ids, skip_special_tokens=True), until, None) for ids in made]
