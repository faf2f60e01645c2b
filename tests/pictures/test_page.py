"""Pages of headings, tables and pictures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from vistrain.pictures.page import Code, Heading, Page, Picture, Table, Text


def page(folder: Path) -> Page:
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "large noise.png")
    Image.fromarray(noise[:8, :8]).save(folder / "small.png")
    return Page(
        "<b>run</b>",
        [
            Heading("a & b"),
            Text("*no* [link](x) <script>alert(1)</script>"),
            Text("in passing", note=True),
            Code("vistrain fit a=<b>\nsecond"),
            Table(("name", "value"), [["a|b", "1"], ["c", "2"]], numbers=("value",)),
            Picture(folder / "small.png", 'a "small" one'),
            Picture(folder / "large noise.png", "large"),
        ],
    )


class Tags(HTMLParser):
    """The tags of a page, and what of them is still open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_one_file_and_nothing_in_it_is_markup(tmp_path: Path) -> None:
    files = page(tmp_path).write(tmp_path / "report.html")
    assert [file.name for file in files] == ["report.html", "report.md"]
    text, tags = files[0].read_text(), Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.seen
    assert "b" not in tags.seen
    assert "http" not in text  # it loads nothing
    assert re.findall(r"data:image/(\w+);", text) == ["png", "jpeg"]
    assert len(text) < 1_400_000  # the large one is 1.5 MB
    assert '<td class="number">1</td>' in text


def test_markdown_links_to_pictures_and_escapes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    text = page(tmp_path).markdown(tmp_path / "sub")
    assert "![large](../large%20noise.png)" in text
    assert r"\*no\* \[link\](x) \<script\>" in text
    assert "| a\\|b | 1 |" in text
    assert "    vistrain fit a=<b>\n    second" in text
