"""`vistrain explain`: what a name means."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "what a class, a key or a config means"
USAGE = "NAME"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain explain DeformableDETR                its parameters, and the configs that use it
  vistrain explain attention.AxialAttention      an operator: what it computes, costs and takes
  vistrain explain model.num_queries             a key of a config
  vistrain explain trainer                       a section
  vistrain explain det/deformable_detr_r50       a config
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """Explain."""
    from vistrain.config.explain import explanation

    sys.stdout.write(explanation(arguments.name))
    return 0
