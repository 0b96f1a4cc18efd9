"""Print a document as one HTML page: pictures inside, no scripts, every string escaped.

Without a template engine: a document is a value of six kinds of block, so that a `match` prints it,
and every string passes through `html.escape` (quotes too) at the one place where its block is
printed. jinja2 would be a dependency of the core, as reports need no extra, and would escape by a
switch that a template can turn off.
"""

import base64
from collections.abc import Iterable
from html import escape

from moe_jax.study.report.document import Block, Bullets, Cell, Figure, Heading, Paragraph, Table

# Even if a string slipped through unescaped, this policy lets no script, frame or remote file load.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

CSS = """
:root { --ink: #1f2430; --soft: #667085; --line: #e3e6eb; --better: #0b6e4f; --worse: #b3261e; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  max-width: 60rem; margin: 3rem auto; padding: 0 1.25rem; background: #fff; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid
var(--line); } p, li { max-width: 46rem; overflow-wrap: anywhere; } li { margin: .35rem 0; } figure
{ margin: 1.75rem 0; } figure img { width: 100%; max-width: 900px; height: auto; display: block; }
figcaption, .note { color: var(--soft); font-size: .875rem; max-width: 46rem; margin: .4rem 0 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; font-variant-
numeric: tabular-nums; } caption { text-align: left; font-weight: 600; padding: .5rem 0; } th, td {
padding: .3rem .75rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 1.5px solid
var(--ink); } tr.rule td { border-top: 1px solid var(--line); } small { display: block; color:
var(--soft); font-size: .75rem; } td.better { color: var(--better); font-weight: 600; } td.worse {
color: var(--worse); font-weight: 600; } td.better small, td.worse small { font-weight: 400; }
"""


def _cell(cell: Cell) -> str:
    tone = f' class="{cell.tone}"' if cell.tone in ('better', 'worse', 'noise') else ''
    detail = f'<small>{escape(cell.detail)}</small>' if cell.detail else ''
    return f'<td{tone}>{escape(cell.text)}{detail}</td>'


def table(value: Table) -> str:
    head = ''.join(f'<th scope="col">{escape(c)}</th>' for c in value.columns)
    rows = []
    for n, row in enumerate(value.rows):
        rule = ' class="rule"' if n in value.rules else ''
        rows.append(f'<tr{rule}>{"".join(_cell(c) for c in row)}</tr>')
    note = f'<p class="note">{escape(value.note)}</p>' if value.note else ''
    return (
        f'<div class="scroll"><table><caption>{escape(value.title)}</caption>'
        f'<thead><tr>{head}</tr></thead>\n<tbody>'
        + '\n'.join(rows)
        + f'</tbody></table></div>{note}'
    )


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f'<h{level}>{escape(text)}</h{level}>'
        case Paragraph(text):
            return f'<p>{escape(text)}</p>'
        case Bullets(items):
            return '<ul>' + '\n'.join(f'<li>{escape(item)}</li>' for item in items) + '</ul>'
        case Figure(_, caption, png):
            data = base64.b64encode(png).decode()
            return (
                f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
                f'<figcaption>{escape(caption)}</figcaption></figure>'
            )
        case Table():
            return table(block)


def render(title: str, blocks: Iterable[Block]) -> str:
    """A complete page."""
    body = '\n'.join(_block(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n'
    )
