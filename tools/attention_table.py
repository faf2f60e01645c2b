"""The tables of attention operators and of modules in docs/attention.md, from what these say of themselves.

python tools/attention_table.py            writes them
python tools/attention_table.py --check    says whether they are up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkout  # noqa: F401  before what imports vistrain

from vistrain.attention.base import AttentionOperator
from vistrain.attention.choice import names, operators, short_name
from vistrain.modules.base import MODULES, PLACES, ConvModule

PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
BEGIN, END = "<!-- operators: written by tools/attention_table.py -->\n", "<!-- end of operators -->\n"
HEAD = (
    "| name | paper | formula | multiply-adds | grows as | maps | padded cells | to know |\n"
    "|---|---|---|---|---|---|---|---|\n"
)
BEGIN_MODULES, END_MODULES = "<!-- modules: written by tools/attention_table.py -->\n", "<!-- end of modules -->\n"
HEAD_MODULES = "| name | paper | formula | cost | stands | maps | to know |\n|---|---|---|---|---|---|---|\n"
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


def name_and_paper(cls: type, known: dict[str, Any]) -> tuple[str, str]:
    """How hosts know it, the shortest first as in `vistrain list`, and the first paper that it or its file names."""
    called = [name for name, other in known.items() if other is cls and name != cls.__name__]
    module = sys.modules[cls.__module__].__doc__ or ""
    paper = ARXIV.search(cls.__doc__ or "") or ARXIV.search(module)
    return (
        ", ".join(f"`{name}`" for name in sorted(called, key=lambda name: (len(name), name))),
        f"[{paper.group()}](https://arxiv.org/abs/{paper.group()})" if paper else "",
    )


def row(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def module_line(cls: type[ConvModule]) -> str:
    """A module's row."""
    known = name_and_paper(cls, MODULES.names())
    cells = [*known, f"`{cls.formula}`", f"`{cls.cost}`", PLACES[cls.place], cls.sizes]
    return row([*cells, f"faithfully: {cls.oddities}" if cls.oddities else ""])


def line(cls: type[AttentionOperator]) -> str:
    """An operator's row."""
    said = {
        "float32": "stays in float32" if cls.float32 else "",
        "axes": f"maps of {' or '.join(map(str, cls.axes))} axes" if cls.axes != (2,) else "",
        "causal": "causal" if cls.causal else "",
        "needs": f"needs {cls.needs}" if cls.needs else "",
        "oddities": f"faithfully: {cls.oddities}" if cls.oddities else "",
    }
    cells = [
        *name_and_paper(cls, names()),
        f"`{cls.formula}`",
        f"`{cls.cost}`",
        cls.growth,
        cls.sizes,
        cls.padding.removeprefix("padded cells "),
        "; ".join(text for text in said.values() if text),
    ]
    return row(cells)


def page() -> str:
    """The page with the tables as they should be."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    rows = "".join(line(cls) for cls in sorted(operators().values(), key=short_name))
    text = before + BEGIN + HEAD + rows + END + rest.split(END)[1]
    before, rest = text.split(BEGIN_MODULES)
    rows = "".join(module_line(cls) for cls in sorted(MODULES.classes().values(), key=MODULES.short_name))
    return before + BEGIN_MODULES + HEAD_MODULES + rows + END_MODULES + rest.split(END_MODULES)[1]


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is not up to date")
    arguments = parser.parse_args(argv)
    written = page()
    if arguments.check:
        return int(written != PAGE.read_text())
    PAGE.write_text(written)
    print(f"{PAGE}: {len(operators())} operators, {len(MODULES.classes())} modules")
    return 0


if __name__ == "__main__":
    sys.exit(main())
