"""A report as a value, which html.py, markdown.py and console.py print.

Text here is raw, straight from records; each printer escapes it in its own way.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A value, an optional second line, and a tone ('better', 'worse', 'noise' or '')."""

    text: str
    detail: str = ''
    tone: str = ''


@dataclass(frozen=True)
class Table:
    """A grid whose first column labels the rows; `rules` are rows that start a new block."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ''
    rules: tuple[int, ...] = ()


@dataclass(frozen=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """A drawn picture: `name` is its file stem, `caption` explains it."""

    name: str
    caption: str
    png: bytes


Block = Heading | Paragraph | Bullets | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, then bullets; plain text, escaped only by whoever prints it."""

    title: str
    paragraphs: tuple[str, ...] = ()
    bullets: tuple[str, ...] = ()
