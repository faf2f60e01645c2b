"""The table of published against counted sizes in docs/backbones.md.

    python tools/backbone_sizes.py            writes it; a minute
    python tools/backbone_sizes.py --check    says whether it is up to date

A difference is explained by `Published.why` in the family's file, or mended there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import checkout  # noqa: F401  before what imports vistrain

from vistrain.backbones.staged import Published, ours, published
from vistrain.run.profile import counted

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
BEGIN, END = "<!-- sizes: written by tools/backbone_sizes.py -->\n", "<!-- end of sizes -->\n"
HEAD = (
    "| variant | pixels | parameters, 10^6: printed, counted | multiply-adds, 10^9: printed, counted | difference |\n"
    "|---|---|---|---|---|\n"
)
LARGEST = 0.01  # difference that needs no explanation


def difference(printed: float, found: float) -> float:
    """How far a number is from those that would be printed so, by rounding or by cutting, as a share of the printed."""
    unit = 10 ** -len(str(printed).partition(".")[2])
    return max(printed - unit / 2 - found, found - printed - unit, 0.0) / printed


def count(name: str) -> tuple[float, float]:
    """A variant's parameters and multiply-adds, at the size and in the form that its authors' numbers are of."""
    row = published(name)
    return counted(name, row.size, row.fused, **row.counted)


def differences(row: Published, parameters: float, gmacs: float) -> float:
    """The larger of those of parameters and multiply-adds."""
    return max(difference(row.parameters, parameters), difference(row.gmacs, gmacs) if row.gmacs else 0.0)


def line(name: str, parameters: float, gmacs: float) -> str:
    """A variant's row of the table, with what was counted of it."""
    row = published(name)
    of = " merged" * row.fused + "".join(f" `{key}: {str(value).lower()}`" for key, value in row.counted.items())
    share = differences(row, parameters, gmacs)
    note = f"{share:.1%}" + (f": {row.why}" if row.why else "")
    printed = "–" if row.gmacs is None else row.gmacs
    return f"| `{name}`{of} | {row.size} | {row.parameters}, {parameters:.3f} | {printed}, {gmacs:.3f} | {note} |\n"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if the page is not up to date")
    arguments = parser.parse_args(argv)
    names = list(ours())
    lines = ""
    for i, name in enumerate(names, start=1):
        print(f"{i}/{len(names)} {name}", file=sys.stderr)
        lines += line(name, *count(name))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    written = before + BEGIN + HEAD + lines + END + rest.split(END)[1]
    if arguments.check:
        return int(written != page)
    PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
