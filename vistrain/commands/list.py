"""`vistrain list`: what there is."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "what there is"
USAGE = "KIND [PATTERN]"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain list configs
  vistrain list backbones 'cswin*'
  vistrain list attention
  vistrain list modules
  vistrain list optimizers
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    from vistrain.config.explain import KINDS

    parser.usage = f"vistrain list {{{','.join(KINDS)}}} [PATTERN]"
    parser.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="as for file names: 'resnet*'")


def run(arguments: argparse.Namespace) -> int:
    """List."""
    from vistrain.config.explain import listing

    sys.stdout.write(listing(arguments.kind, arguments.pattern))
    return 0
