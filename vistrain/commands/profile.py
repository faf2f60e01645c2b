"""`vistrain profile`: what a network costs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from vistrain.commands.shared import allow_option, composed, config_option, import_run, start_logging
from vistrain.errors import ConfigError

SUMMARY = "parameters, multiply-adds, speed and memory of a network, and of its parts"
USAGE = "(BACKBONE | --config FILE) [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
examples:
  vistrain profile swin_tiny_patch4_window7_224
  vistrain profile attention_pyramid_micro attention=halo        arguments of the backbone; of --config, its keys
  vistrain profile nat_mini --size 512 768 --batch 8 --device cuda --precision bf16
  vistrain profile -c vistrain:demo/detection --size 256 --json
  vistrain profile resnet50 --repeats 0                          parameters and multiply-adds alone, in seconds

Weights are random. Multiply-adds are of one image; speed is of --batch images, median of --repeats passes.
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("name", metavar="BACKBONE", nargs="?", help="as `vistrain list backbones` names it")
    config_option(parser)
    parser.add_argument(
        "--size", type=int, nargs="+", metavar="N", help="side, or all sides (height and width), of images in pixels"
    )
    parser.add_argument("--batch", type=int, default=1, help="images at a time (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps; an accelerator if there is one")
    parser.add_argument("--precision", default="32", help="32, bf16 or 16 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="passes to time (default: %(default)s); 0: count alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Count and measure."""
    if arguments.name is not None and "=" in arguments.name:  # a change to the config, which stands first
        arguments.overrides, arguments.name = [arguments.name, *arguments.overrides], None
    if (arguments.name is None) == (not arguments.config):
        raise ConfigError("profile", "which network?", "give the name of a backbone, or --config FILE")
    name: str = arguments.name or ""
    config, args = (composed(arguments) if arguments.config else None), {}
    if name:
        from vistrain.config import index

        index.check_backbone(name, "profile")
        args = _arguments_of_backbone(arguments.overrides)
    start_logging()
    import_run()
    from rich.console import Console

    from vistrain.run.profile import profile_backbone, profile_config

    options = {key: vars(arguments)[key] for key in ("size", "batch", "device", "precision", "repeats")}
    if config is None:
        found = profile_backbone(name, args=args, **options)
    else:
        found = profile_config(config, allow=arguments.allow, **options)
    if arguments.json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=1) + "\n")
    else:
        Console().print(found.table())
    return 0


def _arguments_of_backbone(changes: Sequence[str]) -> dict[str, Any]:
    """What `KEY=VALUE` says beside the name of a backbone.

    Raises:
        ConfigError: it names a section of a config.
    """
    from vistrain.config import index
    from vistrain.config.compose import parse_overrides

    args = parse_overrides(changes)
    for change in changes:
        key = change.partition("=")[0]
        if "." in key and key.partition(".")[0] in index.SECTIONS:
            short = change.removeprefix("model.backbone.args.")
            remedy = f"write {short}" if short != change else "give --config FILE, whose keys these are"
            raise ConfigError(key, "there is no config: KEY=VALUE are arguments of the backbone", remedy)
    return args
