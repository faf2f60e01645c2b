"""Shell completion: scripts that ask `vistrain completion --line`, which reads the index alone and imports no torch."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vistrain.config import index

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


def candidates(line: str) -> list[str]:
    """What can stand where a command line ends.

    Args:
        line: as typed so far, from `vistrain` to the cursor; a space at its end asks for the next word.
    """
    from vistrain.cli import build_parser
    from vistrain.config.explain import KINDS

    words = line.split(" ")
    last, before = words[-1], [w for w in words[1:-1] if w]
    known = index.load()
    command = before[0] if before else ""
    previous = before[-1] if before else ""
    if not command:
        names: Iterable[str] = _commands(build_parser())
    elif previous in ("-c", "--config"):
        names = [f"vistrain:{n}" for n in known["configs"]] + _files(last, (".yaml", ".yml"))
    elif previous == "--resume":
        names = sorted(p.parent.as_posix() for p in Path().glob("runs/*/last.ckpt"))
    elif previous in ("--ckpt", "--weights"):
        names = _files(last, (".ckpt", ".pth", ".pt", ".safetensors"))
    elif command == "list":
        names = KINDS if len(before) == 1 else []
    elif command == "explain":
        names = [*known["classes"], *index.SECTIONS, *known["configs"]] if len(before) == 1 else []
    elif command == "completion":
        names = SCRIPTS
    elif last.startswith("-"):
        names = options_of(build_parser(), command)
    else:
        names = _keys(last, before)
    return sorted(n for n in names if n.startswith(last))


def options_of(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The options of a command."""
    made = _commands(parser).get(command)
    return (
        [o for action in made._actions for o in action.option_strings if action.help != argparse.SUPPRESS]
        if made
        else []
    )


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions[0].choices)


def _files(start: str, endings: Sequence[str]) -> list[str]:
    """Files with these endings, and folders, in the folder that a word has come to."""
    folder = start.rpartition("/")[0] + "/" if "/" in start else ""
    entries = sorted(Path(folder or ".").glob("*"))
    return [f"{folder}{p.name}{'/' if p.is_dir() else ''}" for p in entries if p.is_dir() or p.suffix in endings]


def _keys(word: str, before: Sequence[str]) -> list[str]:
    """Dotted keys of the config on the line one level at a time, or values of the key that a word has come to."""
    key, equals, _ = word.partition("=")
    path = key.split(".")
    node, hint = _descend(_composed(before), path[:-1])
    parameters = _parameters(node, ".".join(path[:-1]), hint)
    if equals:
        return [f"{key}={value}" for value in _values(path, parameters.get(path[-1], {}))]
    start = ".".join([*path[:-1], ""]) if path[:-1] else ""
    inside = {k for k, v in (node or {}).items() if isinstance(v, dict)}
    names = index.SECTIONS if not path[:-1] else {**dict.fromkeys(node or {}), **parameters}
    nodes = inside | (set(index.SECTION_HINTS) if not path[:-1] else set())
    return [f"{start}{name}{'.' if name in nodes else '='}" for name in names]


def _composed(before: Sequence[str]) -> dict[str, Any]:
    from vistrain.config import compose
    from vistrain.errors import VistrainError

    files = [after for word, after in itertools.pairwise(before) if word in ("-c", "--config")]
    try:
        return compose(files, [w for w in before if "=" in w and not w.startswith("-")])
    except VistrainError:  # half a command line may well be wrong
        return {}


def _descend(config: dict[str, Any], path: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The node at a path, and the type hint that it stands under."""
    node: Any = config
    hint = index.SECTION_HINTS.get(path[0], "") if path else ""
    for i, key in enumerate(path):
        if i:
            hint = _parameters(node, ".".join(path[:i]), hint).get(key, {}).get("hint", "")
        node = node.get(key) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else {}), hint


def _parameters(node: dict[str, Any] | None, where: str, hint: str) -> dict[str, Any]:
    from vistrain.errors import VistrainError

    try:
        entry = index.entry_of_node(node or {}, where, hint)
    except VistrainError:
        return {}
    found: dict[str, Any] = entry["parameters"] if entry else {}
    return {name: p for name, p in found.items() if f"{where}.{name}" not in index.ELSEWHERE}


def _values(path: Sequence[str], parameter: dict[str, Any]) -> list[str]:
    known = index.load()
    if path[-1] == "type":
        kinds = {"data": "dataset", "callbacks": "callback"}
        kind = kinds.get(path[0], path[0]) if len(path) == 2 or path[0] == "callbacks" else None
        return [name for name, entry in known["classes"].items() if kind is None or entry["kind"] == kind]
    if path[-2:] == ["backbone", "name"]:
        return [n for arch, tags in known["backbones"].items() for n in (arch, *(f"{arch}.{t}" for t in tags))]
    hint = parameter.get("hint", "")
    return ["true", "false"] if hint == "bool" else []
