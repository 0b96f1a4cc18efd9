"""A user's own texts as a corpus: DIR/<domain>/**/*.txt and the like, one document per file."""

from collections.abc import Iterator
from pathlib import Path

from moe_jax.data.documents import Document

SUFFIXES = frozenset({'.txt', '.md', '.rst', '.py', '.tex'})


def domains(folder: Path) -> tuple[str, ...]:
    """The sub-folders that hold text files, sorted: the domains."""
    return tuple(sorted(inner.name for inner in folder.iterdir()
                        if inner.is_dir() and not inner.name.startswith('.')
                        and any(_files(inner))))


def documents(folder: Path, domain: str) -> Iterator[Document]:
    """One document per UTF-8 text file below DIR/<domain>; empty files are skipped.

    A byte order mark is no part of the text.
    """
    for path in _files(folder / domain):
        try:
            text = path.read_text(encoding='utf-8-sig').strip()
        except UnicodeDecodeError as error:
            raise ValueError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start}); '
                             f'convert it, as with "iconv -t utf-8"') from error
        if text:
            name = path.relative_to(folder / domain).as_posix().replace('#', '_')
            yield Document(f'{domain}/{name}', domain, text)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob('*')
                  if path.suffix.lower() in SUFFIXES and path.is_file())
