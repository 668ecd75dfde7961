"""One self-contained HTML page. Every text that comes in is escaped here, and only here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
body { max-width: 1100px; margin: 0 auto; padding: 20px 14px 50px; color: #111827;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.15rem; margin: 2em 0 0 }
p, figcaption { margin: 0 0 10px; color: #6b7280; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem }
th, td { padding: 4px 20px 4px 0; border-bottom: 1px solid #e5e7eb; text-align: left }
section > img { width: 100%; max-width: 620px }
.gallery { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) }
figure { margin: 0 }
figure img { width: 100% }
figcaption b { display: block; color: #111827 }
pre { overflow-x: auto; font-size: .8rem }
"""


class Picture(NamedTuple):
    """An image of a gallery: its JPEG, None where there is none to show, its name and a remark."""

    jpeg: bytes | None
    name: str
    remark: str


def page(title: str, sentences: Sequence[str], *parts: str) -> str:
    """The whole document; ``parts`` come from the functions below."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(title)}</title><style>{_STYLE}</style></head><body>'
        f'<h1>{_text(title)}</h1>{"".join(f"<p>{_text(one)}</p>" for one in sentences)}'
        f'{"".join(parts)}</body></html>\n'
    )


def section(heading: str, explanation: str, *parts: str) -> str:
    return (
        f'<section><h2>{_text(heading)}</h2><p>{_text(explanation)}</p>{"".join(parts)}</section>'
    )


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    lines = [f'<tr>{"".join(f"<th>{_text(cell)}</th>" for cell in head)}</tr>'] if head else []
    lines += [f'<tr>{"".join(f"<td>{_text(cell)}</td>" for cell in row)}</tr>' for row in rows]
    return f'<table>{"".join(lines)}</table>'


def plot(png: bytes) -> str:
    return f'<img src="{_source(png, "png")}" alt="">'


def gallery(pictures: Iterable[Picture]) -> str:
    figures = []
    for jpeg, name, remark in pictures:
        image = f'<img loading="lazy" src="{_source(jpeg, "jpeg")}" alt="">' if jpeg else ''
        caption = f'<figcaption><b>{_text(name)}</b>{_text(remark)}</figcaption>'
        figures.append(f'<figure>{image}{caption}</figure>')
    return f'<div class="gallery">{"".join(figures)}</div>'


def folded(heading: str, text: str) -> str:
    return f'<details><summary>{_text(heading)}</summary><pre>{_text(text)}</pre></details>'


def _source(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _text(text: str) -> str:
    # Names of files may hold bytes that are no text at all.
    return escape(str(text).encode(errors='replace').decode())
