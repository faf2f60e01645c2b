"""`vistrain check`: open every file of the data, and build what a run is built of."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vistrain.commands.shared import allow_option, composed, config_option, import_run, output_path, start_logging
from vistrain.errors import ConfigError

SUMMARY = "look at the data, and at all that a run would refuse, before a GPU is spent on it"
USAGE = "--config FILE [OPTIONS] [KEY=VALUE ...]"
CHANGES = True
EXAMPLES = """\
exit code: 0 if a run can go through and uses everything, 2 if something would be refused or lost; all of it is listed,
what the files lack on stdout, what the config does on stderr, a line for each
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    config_option(parser)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=output_path,
        help="for the report, pictures and plans (default: check/<name>)",
    )
    parser.add_argument(
        "--repair", metavar="FILE", type=Path, help="write a copy of the annotations with mended ids and sizes"
    )
    allow_option(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look at the data, and at what else a run would refuse."""
    found: list[ConfigError] = []
    config = composed(arguments, found=found)
    start_logging(f"check {arguments.config[-1]}")
    from rich.console import Console

    from vistrain.data.base.check import write_report
    from vistrain.run.parts import data_of
    from vistrain.run.rehearsal import Refusals, rehearse

    import_run()
    heard, findings, lines = Refusals(), None, []
    heard.add(found)
    data = None if heard.concern("data") else heard.result(lambda: data_of(config, arguments.allow))
    output = arguments.output or Path("check") / str((config.get("run") or {}).get("name"))
    if data is not None:
        findings = heard.result(lambda: data.check(output))
        if arguments.repair is not None:
            lines += heard.result(lambda: data.repair(arguments.repair)) or []
    if findings is not None:
        Console().print(findings.table(), soft_wrap=True)  # commands to copy stay in one piece
        lines.append(f"{findings.written}: {output}")
    if "model" in config:
        rehearse(config, heard, data, arguments.allow)
    else:
        lines.append("there is no model: the data alone was looked at")
    refused = [message for message, error in heard.found.items() if findings is None or not findings.lists(error)]
    ok = not refused and findings is not None and findings.ok
    if findings is not None:
        write_report({**findings.to_dict(), "ok": ok, "config": refused}, output)
    if not ok:
        listed = findings is not None and not findings.ok
        number = f"{len(refused)} {'reason' if len(refused) == 1 else 'reasons'} on stderr"
        places = [*(["see above"] if listed else []), *([number] if refused else [])]
        lines.append(f"a run would be refused or lose something: {', and '.join(places)}")
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    sys.stderr.write("".join(f"vistrain: {message}\n" for message in refused))
    return 0 if ok else 2
