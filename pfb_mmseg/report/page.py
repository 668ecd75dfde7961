"""One self-contained HTML page. Every text that comes in is escaped here, and only here."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_STYLE = """
:root { --accent: #2563eb; --ink: #111827; --soft: #6b7280; --line: #e5e7eb; --back: #f9fafb }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 24px 14px 50px }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 0 0 2px }
p { margin: 0 0 12px; color: var(--soft); font-size: .92rem; max-width: 75ch }
.status { margin: 4px 0 20px }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)) }
.tile, section, .note { background: #fff; border: 1px solid var(--line); border-radius: 10px }
.tile { padding: 12px 16px }
.tile b { display: block; font-size: 1.6rem; line-height: 1.3; color: var(--accent) }
.tile span { color: var(--soft); font-size: .85rem }
.note { padding: 10px 16px; margin-top: 12px; border-left: 4px solid var(--accent) }
.columns { columns: 2 25rem; column-gap: 16px; margin-top: 16px }
.columns section { display: inline-block; width: 100% }
section { padding: 15px; margin: 0 0 16px; break-inside: avoid }
section > img { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td { padding: 4px 10px 4px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
td:first-child { min-width: 6em }
.gallery { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)) }
figure { margin: 0; min-width: 0 }
figure img { width: 100%; display: block; border-radius: 6px; background: var(--line) }
figure .gap { aspect-ratio: 4/3; border-radius: 6px; background: var(--line); color: var(--soft);
  display: grid; place-items: center; font-size: .85rem; text-align: center; padding: 8px }
figcaption { font-size: .78rem; color: var(--soft); line-height: 1.35; margin-top: 3px }
figcaption b { display: block; color: var(--ink); font-weight: 500; overflow-wrap: anywhere }
details { margin-top: 8px } summary { cursor: pointer; color: var(--accent) }
pre { overflow-x: auto; font-size: .78rem; background: var(--back); padding: 12px;
  border-radius: 6px }
"""


class Picture(NamedTuple):
    """An image of a gallery: its JPEG (None: the reason is in ``text``), name, and a remark."""

    jpeg: bytes | None
    name: str
    text: str


def page(title: str, status: str, *parts: str) -> str:
    """The whole document; ``parts`` come from the functions below."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{_text(title)}</title><style>{_STYLE}</style></head><body><main>'
        f'<h1>{_text(title)}</h1><p class="status">{_text(status)}</p>{"".join(parts)}'
        '</main></body></html>\n'
    )


def tiles(values: dict[str, str]) -> str:
    """The numbers at the head of the page, by what they mean."""
    cells = ''.join(
        f'<div class="tile"><b>{_text(v)}</b><span>{_text(k)}</span></div>'
        for k, v in values.items()
    )
    return f'<div class="tiles">{cells}</div>'


def notes(sentences: Sequence[str]) -> str:
    return ''.join(f'<div class="note">{_text(sentence)}</div>' for sentence in sentences)


def columns(*sections: str) -> str:
    """Sections in two columns, in one on a phone."""
    return f'<div class="columns">{"".join(sections)}</div>'


def section(heading: str, explanation: str, *parts: str) -> str:
    return (
        f'<section><h2>{_text(heading)}</h2><p>{_text(explanation)}</p>{"".join(parts)}</section>'
    )


def plot(png: bytes, description: str) -> str:
    return f'<img src="{_source(png, "png")}" alt="{_text(description)}">'


def gallery(pictures: Sequence[Picture]) -> str:
    figures = []
    for picture in pictures:
        if picture.jpeg is None:
            shown, remark = f'<div class="gap">{_text(picture.text)}</div>', ''
        else:
            shown = f'<img loading="lazy" src="{_source(picture.jpeg, "jpeg")}" alt="">'
            remark = _text(picture.text)
        figures.append(
            f'<figure>{shown}<figcaption><b>{_text(picture.name)}</b>{remark}</figcaption></figure>'
        )
    return f'<div class="gallery">{"".join(figures)}</div>'


def facts(values: dict[str, str]) -> str:
    rows = ''.join(f'<tr><td>{_text(k)}</td><td>{_text(v)}</td></tr>' for k, v in values.items())
    return f'<table>{rows}</table>'


def folded(heading: str, text: str) -> str:
    return f'<details><summary>{_text(heading)}</summary><pre>{_text(text)}</pre></details>'


def _source(data: bytes, kind: str) -> str:
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def _text(text: str) -> str:
    # Names of files may hold bytes that are no text at all.
    return escape(str(text).encode(errors='replace').decode())
