"""The published SuperGLUE train and validation splits, from the Hugging Face Hub."""

import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any, cast

from moe_jax.data.tasks import superglue_rows
from moe_jax.data.tasks.example import Task
from moe_jax.data.tasks.local import overlap_note

REPOSITORY = 'aps/super_glue'
# wsc.fixed is the variant whose spans are parts of the text.
CONFIGS = {'boolq': 'boolq', 'cb': 'cb', 'copa': 'copa', 'rte': 'rte', 'record': 'record',
           'wsc': 'wsc.fixed', 'wic': 'wic', 'multirc': 'multirc'}
SECONDS = 3.0


def problem(url: str, seconds: float = SECONDS) -> str:
    """The reason why an HTTP server does not answer within some seconds; '' if it answers."""
    answers = []

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method='HEAD'), timeout=seconds)
            answers.append('')
        except urllib.error.HTTPError:
            answers.append('')
        except OSError as error:
            answers.append(f'{url}: {error}')

    # Name resolution ignores the timeout of a connection, so the whole question gets its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f'{url}: no answer in {seconds:g} s'


def unreachable(name: str, reason: str) -> ConnectionError:
    """The error for a hub that cannot be used, with the other ways to the same data."""
    return ConnectionError(
        f'task hub/{name}: cannot load {REPOSITORY} from the Hugging Face Hub ({reason}). Put its '
        f'train and validation files (.parquet or .jsonl) into DIR/{name} and load task {name!r} '
        f'with data_dir=DIR; or, if the data set is in the local Hugging Face cache, set '
        f'HF_HUB_OFFLINE=1 before Python starts')


def load(name: str) -> Task:
    """SuperGLUE task `name` with its published splits; needs the network or a filled HF cache.

    Raises ConnectionError within five seconds where the hub does not answer.
    """
    # Imported here: it takes a second, and only this source needs it.
    import datasets
    import datasets.config

    # Offline mode is read when datasets is imported. Without it, it retries for 23 seconds.
    if not datasets.config.HF_HUB_OFFLINE:
        reason = problem(f'{datasets.config.HF_ENDPOINT}/api/datasets/{REPOSITORY}')
        if reason:
            raise unreachable(name, reason)
    try:
        table = datasets.load_dataset(REPOSITORY, CONFIGS[name])
    except (OSError, ValueError, RuntimeError) as error:
        raise unreachable(name, str(error)) from error
    parts = {part: superglue_rows.examples(name, cast(Iterable[Mapping[str, Any]], table[part]),
                                           f'{REPOSITORY}/{name} {part}', part)
             for part in ('train', 'validation')}
    note = f'the published train and validation splits; {overlap_note(**parts)}'
    return Task(f'hub/{name}', parts['train'], parts['validation'], note, REPOSITORY)
