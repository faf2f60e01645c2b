"""`vistrain explain`: what a name means."""

from __future__ import annotations

import argparse
import sys

from vistrain.errors import shown

SUMMARY = "what a class, a backbone, a key or a config means"
USAGE = "NAME"
CHANGES = False
EXAMPLES = """\
examples:
  vistrain explain DeformableDETR                its parameters, and the configs that use it
  vistrain explain attention.AxialAttention      an operator: what it computes, costs and takes
  vistrain explain casvit_xs                     a backbone, and what model.backbone.args may hold
  vistrain explain model.num_queries             a key of a config
  vistrain explain trainer                       a section
  vistrain explain det/deformable_detr_r50       a config
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", metavar="NAME")


def run(arguments: argparse.Namespace) -> int:
    """Explain."""
    from vistrain.config import index
    from vistrain.config.explain import explanation, listing, table

    name = arguments.name
    if name.partition(".")[0] not in index.load("backbones") or name in index.load("configs"):
        sys.stdout.write(explanation(name))
        return 0
    from vistrain.backbones.create import arguments_of  # loads torch, which no other explanation needs

    taken = arguments_of(name)
    sys.stdout.write(f"{listing('backbones', name.partition('.')[0] + '*')}\n")
    sys.stdout.write("model.backbone.args may hold (defaults are the class's; a variant has its own):\n")
    sys.stdout.write(table([[f"  {key}", shown(default)] for key, default in taken.items()]))
    return 0
