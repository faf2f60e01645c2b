"""A page of headings, texts, tables and pictures, as one HTML file that opens offline, and as Markdown."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from vistrain.writing import whole_file

EMBEDDED_BYTES = 600_000  # a larger picture is embedded as JPEG
STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #667; --line: #d9dde3; --ground: #fff; --band: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --soft: #9aa2ad; --line: #3a4048; --ground: #16191d; --band: #1f2429; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); max-width: 1080px;
       margin: 2em auto; padding: 0 1.2em; overflow-wrap: anywhere; }
h1 { font-size: 1.7em; margin-bottom: .2em; } h2 { font-size: 1.2em; margin: 2em 0 .6em; }
p { margin: .5em 0; } p.note { color: var(--soft); }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25em 1.2em .25em .3em; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.number, th.number { text-align: right; }
pre { background: var(--band); padding: .8em 1em; overflow-x: auto; border-radius: 6px; font-size: 13px; }
figure { margin: 1em 0; } figcaption { color: var(--soft); }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Heading:
    """Of a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `note` is what is said in passing."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows below headings; columns named in `numbers` stand to the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A picture file and what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Code | Table | Picture


@dataclass
class Page:
    """Blocks below a title; any text may be in them, nothing of it is markup."""

    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        """Append blocks."""
        self.blocks += blocks

    def write(self, path: Path) -> list[Path]:
        """Write `path` with the ending `.html`, pictures in it, and with `.md`, which links to them.

        Returns:
            Both files.

        Raises:
            DataError: one cannot be written.
        """
        files = [path.with_suffix(".html"), path.with_suffix(".md")]
        for file, text in zip(files, (self.html(), self.markdown(path.parent)), strict=True):
            with whole_file(file) as partial:
                partial.write_text(text, encoding="utf-8", errors="replace")
        return files

    def html(self) -> str:
        """One file, which loads nothing from anywhere."""
        body = "\n".join(map(_html, self.blocks))
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
        )

    def markdown(self, folder: Path) -> str:
        """GitHub's Markdown.

        Args:
            folder: of the file; pictures are linked relative to it.
        """
        return "\n\n".join([f"# {_escaped(self.title)}", *(_markdown(block, folder) for block in self.blocks)]) + "\n"


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text, note):
            return f"<p{' class=note' if note else ''}>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Table(headings, rows, numbers):
            kinds = [' class="number"' if heading in numbers else "" for heading in headings]
            lines = [_row("th", headings, kinds), *(_row("td", row, kinds) for row in rows)]
            return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"
        case Picture(path, caption):
            kind, data = _embedded(path)
            source = f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
            text = html.escape(caption)
            return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _row(tag: str, cells: Sequence[str], kinds: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for c, k in zip(cells, kinds, strict=True)) + "</tr>"


def _embedded(path: Path) -> tuple[str, bytes]:
    """Kind and bytes of a picture, small enough for a page."""
    data = path.read_bytes()
    if len(data) <= EMBEDDED_BYTES:
        return ("jpeg" if path.suffix in (".jpg", ".jpeg") else "png"), data
    smaller = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(smaller, "JPEG", quality=85)
    return "jpeg", smaller.getvalue()


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"## {_escaped(text)}"
        case Text(text, note):
            return f"*{_escaped(text)}*" if note else _escaped(text)
        case Code(text):
            return "\n".join(f"    {line}" for line in text.splitlines())
        case Table(headings, rows, numbers):
            rule = ["---:" if heading in numbers else "---" for heading in headings]
            lines = [list(map(_escaped, headings)), rule, *(list(map(_escaped, row)) for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Picture(path, caption):
            link = os.path.relpath(path, folder).replace(" ", "%20")
            return f"![{_escaped(caption)}]({link})\n\n{_escaped(caption)}"


def _escaped(text: str) -> str:
    """Without what Markdown would take for markup."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
