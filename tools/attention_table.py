"""The table of attention operators in docs/attention.md, from what the operators say of themselves.

python tools/attention_table.py            writes it
python tools/attention_table.py --check    says whether it is up to date
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from vistrain.attention.base import AttentionOperator
from vistrain.attention.choice import names, operators, short_name

PAGE = Path(__file__).parents[1] / "docs" / "attention.md"
BEGIN, END = "<!-- operators: written by tools/attention_table.py -->\n", "<!-- end of operators -->\n"
HEAD = (
    "| name | paper | formula | multiply-adds | grows as | maps | padded cells | to know |\n"
    "|---|---|---|---|---|---|---|---|\n"
)
ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")


def line(cls: type[AttentionOperator]) -> str:
    """An operator's row."""
    known = [name for name, other in names().items() if other is cls and name != cls.__name__]
    module = sys.modules[cls.__module__].__doc__ or ""
    paper = ARXIV.search(cls.__doc__ or "") or ARXIV.search(module)
    said = {
        "float32": "stays in float32" if cls.float32 else "",
        "axes": f"maps of {' or '.join(map(str, cls.axes))} axes" if cls.axes != (2,) else "",
        "causal": "causal" if cls.causal else "",
        "needs": f"needs {cls.needs}" if cls.needs else "",
        "oddities": f"faithfully: {cls.oddities}" if cls.oddities else "",
    }
    cells = [
        ", ".join(f"`{name}`" for name in sorted(known, key=lambda name: (name != short_name(cls), name))),
        f"[{paper.group()}](https://arxiv.org/abs/{paper.group()})" if paper else "",
        f"`{cls.formula}`",
        f"`{cls.cost}`",
        cls.growth,
        cls.sizes,
        cls.padding.removeprefix("padded cells "),
        "; ".join(text for text in said.values() if text),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    rows = "".join(line(cls) for cls in sorted(operators().values(), key=short_name))
    return before + BEGIN + HEAD + rows + END + rest.split(END)[1]


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is not up to date")
    arguments = parser.parse_args(argv)
    written = page()
    if arguments.check:
        return int(written != PAGE.read_text())
    PAGE.write_text(written)
    print(f"{PAGE}: {len(operators())} operators")
    return 0


if __name__ == "__main__":
    sys.exit(main())
