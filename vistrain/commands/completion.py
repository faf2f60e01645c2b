"""`vistrain completion`: scripts for shells that ask `vistrain completion --line`, which reads the index alone."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

SUMMARY = "print a completion script for a shell"
USAGE = "{bash,zsh,fish}"
CHANGES = False
EXAMPLES = """\
to turn it on:
  bash:  vistrain completion bash > ~/.local/share/bash-completion/completions/vistrain
  zsh:   vistrain completion zsh > "${fpath[1]}/_vistrain"
  fish:  vistrain completion fish > ~/.config/fish/completions/vistrain.fish
"""
# Each script passes the words up to the cursor; candidates come back one a line. Bash splits words at `=` and `:`, so
# it passes the line as it is, and drops from the candidates what stands before the last of these.
SCRIPTS = {
    "bash": """\
_vistrain() {
    local line="${COMP_LINE:0:COMP_POINT}" cur="${COMP_WORDS[COMP_CWORD]}" word before IFS=$'\\n'
    word="${line##* }"
    [[ $cur == [=:] ]] && cur=""
    before="${word%"$cur"}"
    COMPREPLY=($(vistrain completion --line "$line" 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$before"}")
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then compopt -o default; fi
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -F _vistrain vistrain
""",
    "zsh": """\
#compdef vistrain
_vistrain() {
    local -a found
    found=("${(@f)$(vistrain completion --line "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then compadd -Q -S '' -- $found; else _files; fi
}
compdef _vistrain vistrain
""",
    "fish": """\
function __vistrain_complete
    vistrain completion --line (commandline -cp) 2>/dev/null
end
complete -c vistrain -a '(__vistrain_complete)'
""",
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what the command takes."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), nargs="?", default="bash")
    parser.add_argument("--line", help=argparse.SUPPRESS)  # what the scripts ask: the command line up to the cursor


def run(arguments: argparse.Namespace) -> int:
    """Print a script, or what its script asks for."""
    if arguments.line is None:
        sys.stdout.write(SCRIPTS[arguments.shell])
    else:
        sys.stdout.write("".join(f"{c}\n" for c in candidates(arguments.line, arguments.parser)))
    return 0


def candidates(line: str, parser: argparse.ArgumentParser) -> list[str]:
    """What can stand where a command line ends.

    Args:
        line: as typed so far, from `vistrain` to the cursor; a space at its end asks for the next word.
        parser: of all commands, with their options.
    """
    from vistrain.config import index
    from vistrain.config.explain import KINDS
    from vistrain.internals.argparse import commands_of, options_of

    words = line.split(" ")
    last, before = words[-1], [w for w in words[1:-1] if w]
    command = before[0] if before else ""
    previous = before[-1] if before else ""
    if not command:
        names: Iterable[str] = commands_of(parser)
    elif previous in ("-c", "--config"):
        names = [f"vistrain:{n}" for n in index.load("configs")] + _files(last, (".yaml", ".yml"))
    elif previous == "--resume":
        names = sorted(p.parent.as_posix() for p in Path().glob("runs/*/last.ckpt"))
    elif previous in ("--ckpt", "--weights"):
        names = _files(last, (".ckpt", ".pth", ".pt", ".safetensors"))
    elif command == "list":
        names = KINDS if len(before) == 1 else []
    elif command == "explain":
        names = [*index.load("classes"), *index.SECTIONS, *index.load("configs")] if len(before) == 1 else []
    elif command == "completion":
        names = SCRIPTS
    elif last.startswith("-"):
        parsers = commands_of(parser)
        names = options_of(parsers[command]) if command in parsers else []
    else:
        names = _keys(last, before)
    return sorted(n for n in names if n.startswith(last))


def _files(start: str, endings: Sequence[str]) -> list[str]:
    """Files with these endings, and folders, in the folder that a word has come to."""
    folder = start.rpartition("/")[0] + "/" if "/" in start else ""
    entries = sorted(Path(folder or ".").glob("*"))
    return [f"{folder}{p.name}{'/' if p.is_dir() else ''}" for p in entries if p.is_dir() or p.suffix in endings]


def _keys(word: str, before: Sequence[str]) -> list[str]:
    """Dotted keys of the config on the line one level at a time, or values of the key that a word has come to."""
    from vistrain.config import index

    key, equals, _ = word.partition("=")
    path = key.split(".")
    where = ".".join(path[:-1])
    composed = _composed(before)
    node = index.node_at(composed, where) if where else None
    parameters = node.settable if node else {}
    if equals:
        return [f"{key}={value}" for value in _values(path, parameters.get(path[-1], {}))]
    written = _at(composed, path[:-1]) | ({name: {} for name in index.LOGGERS} if where == "logger" else {})
    inside = {k for k, v in written.items() if isinstance(v, dict)}
    names = {**dict.fromkeys(written), **parameters} if where else index.SECTIONS
    nodes = inside if where else {*inside, *index.SECTION_HINTS}
    return [f"{where}{'.' if where else ''}{name}{'.' if name in nodes else '='}" for name in names]


def _composed(before: Sequence[str]) -> dict[str, Any]:
    from vistrain.config import compose
    from vistrain.errors import VistrainError

    files = [after for word, after in itertools.pairwise(before) if word in ("-c", "--config")]
    try:
        return compose(files, [w for w in before if "=" in w and not w.startswith("-")])
    except VistrainError:  # half a command line may well be wrong
        return {}


def _at(config: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The mapping at a path; empty where there is none."""
    node: Any = config
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _values(path: Sequence[str], parameter: dict[str, Any]) -> list[str]:
    from vistrain.config import index

    if path[-1] == "type":
        kinds = {"data": "dataset", "callbacks": "callback"}
        kind = kinds.get(path[0], path[0]) if len(path) == 2 or path[0] in ("callbacks", "logger") else None
        return [name for name, entry in index.load("classes").items() if kind is None or entry["kind"] == kind]
    if path[-2:] == ["backbone", "name"]:
        return [n for arch, tags in index.load("backbones").items() for n in (arch, *(f"{arch}.{t}" for t in tags))]
    hint = parameter.get("hint", "")
    return ["true", "false"] if hint == "bool" else []
