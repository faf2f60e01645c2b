"""`vistrain list` and `vistrain explain`: the index, for people. Imports no torch."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from vistrain.config import index, source_code
from vistrain.errors import ConfigError, nearest

# What can be listed -> the kind of class in the index; None: listed from elsewhere
KINDS: dict[str, str | None] = {
    "configs": None,
    "models": "model",
    "backbones": None,
    "attention": "attention",
    "modules": "modules",
    "datasets": "dataset",
    "tasks": "task",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "callbacks": "callback",
    "loggers": "logger",
    "metrics": None,
    "parts": "",  # every class of ours that has none of the kinds above
}

LONGEST_HINT = 56  # characters of a type on one line; Lightning's list a dozen of classes


def listing(kind: str, pattern: str = "*") -> str:
    """A table with a line for each name of a kind.

    Args:
        kind: of `KINDS`.
        pattern: shell pattern; without wildcards, a part of the name.

    Raises:
        ConfigError: the kind is unknown, or nothing matches.
    """
    if kind not in KINDS:
        raise ConfigError(f"list {kind}", "cannot be listed", nearest(kind, KINDS))
    rows = _rows(kind)
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    found = {
        name: row
        for name, row in rows.items()
        if any(fnmatch.fnmatchcase(n, wanted.lower()) for n in (name.lower(), re.split(r"[./]", name.lower())[-1]))
    }
    if not found:
        _refuse_unindexed(f"list {kind} {pattern}", pattern.strip("*"))
        raise ConfigError(f"list {kind} {pattern}", "nothing matches", nearest(pattern.strip("*"), rows))
    return table([[name, *row] for name, row in found.items()]) + _note(kind)


def _note(kind: str) -> str:
    """Where the names of backbones come from, if it is not the index."""
    if kind != "backbones" or index.made_with_installed("timm"):
        return ""
    made, installed = index.load("versions")["timm"], importlib.metadata.version("timm")
    return f"names are those of the installed timm {installed}; what is known of the models is of timm {made}\n"


def _rows(kind: str) -> dict[str, Sequence[str]]:
    if kind == "configs":
        return {name: _config_row(entry) for name, entry in index.load("configs").items()}
    if kind == "backbones":
        known = index.load("backbones") if index.made_with_installed("timm") else index.backbones_of_timm()
        ours, leaves = index.load("our_backbones"), _leaves()
        return {n: _backbone_row(ours.get(n), leaves.get(n), tags) for n, tags in known.items()}
    if kind == "metrics":
        return {name: [cls] for name, cls in index.load("protocols").items()}
    classes = index.load("classes")
    others = {e["kind"] for e in classes.values() if e["path"].startswith("vistrain.")} - set(KINDS.values())
    kinds = {KINDS[kind]} if KINDS[kind] else others
    entries = {n: e for n, e in classes.items() if e["kind"] in kinds}
    if kind == "attention":
        return {_shortest(e["operator"]): _operator_row(n, e) for n, e in sorted(entries.items())}
    if kind == "modules":
        return {_shortest(e["module"]): _module_row(n, e) for n, e in sorted(entries.items())}
    return {n: [e.get("paper", ""), e["doc"]] if kind == "models" else [e["doc"]] for n, e in entries.items()}


def _backbone_row(entry: dict[str, Any] | None, leaf: dict[str, Any] | None, tags: Sequence[str]) -> list[str]:
    """What is published of ours, and of timm's models that a shipped config trains; the tags of timm's weights."""
    listed = ", ".join(tag for tag in tags if tag)
    if entry is None and leaf is None:
        return ["", "", "", "", "", "", listed]
    if entry is None:
        assert leaf is not None
        reference = leaf.get("reference") or {}
        facts = {**leaf, "image_size": leaf["image_size"][0], "strides": leaf.get("maps", ())}
        entry = {**facts, "paper": reference.get("paper", ""), "top1": reference.get("value")}
    gmacs = f"{entry['gmacs']} G at {entry['image_size']}" if entry["gmacs"] else ""
    top1 = f"top-1 {entry['top1']}" if entry["top1"] else ""
    strides = "strides " + " ".join(map(str, entry["strides"])) if entry["strides"] else "no maps"
    sizes = "any size" if entry.get("any_size") else "one size"
    return [str(entry["paper"]), f"{entry['parameters'] / 1e6:.1f} M", gmacs, top1, strides, sizes, listed]


def _shortest(said: dict[str, Any]) -> str:
    """The shortest name that a host network knows a part by."""
    return min(said["names"], key=lambda name: (len(name), name))


def _operator_row(name: str, entry: dict[str, Any]) -> list[str]:
    said = entry["operator"]
    return [name, entry.get("paper", ""), f"O({said['growth']})", said["sizes"], said["formula"]]


def _module_row(name: str, entry: dict[str, Any]) -> list[str]:
    said = entry["module"]
    return [name, entry.get("paper", ""), said["place"], said["sizes"], said["formula"]]


def _leaves() -> dict[str, dict[str, Any]]:
    """The config that trains each of timm's models: that of its default weights, if there are several."""
    found: dict[str, dict[str, Any]] = {}
    default = index.load("backbones")
    for entry in index.load("configs").values():
        if (entry.get("reference") or {}).get("metric") != "cls/top1" or "parameters" not in entry:
            continue
        name, _, tag = str(entry.get("backbone")).partition(".")
        if name not in found or (default.get(name) or [""])[0] == tag:
            found[name] = entry
    return found


def _config_row(entry: dict[str, Any]) -> list[str]:
    reference = entry.get("reference") or {}
    parameters = f"{entry['parameters'] / 1e6:.1f} M" if "parameters" in entry else ""
    published = f"{reference['metric']} {reference['value']}" if "value" in reference else ""
    return [entry.get("backbone") or "", parameters, published, entry["title"]]


def table(rows: Iterable[Sequence[str]], indent: str = "") -> str:
    """Columns two spaces apart; the last one is as long as it is."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    used = [i for i, width in enumerate(widths) if width]
    return "".join(
        (indent + "  ".join(row[i].ljust(widths[i]) for i in used)).rstrip() + "\n" for row in rows
    )  # fmt: skip


def explanation(name: str) -> str:
    """What a class, a section, a dotted key or a config is.

    Raises:
        ConfigError: it is none of these.
    """
    classes, configs = index.load("classes"), index.load("configs")
    short = index.canonical(name)
    by_bare_name = {n.rpartition(".")[2]: n for n in classes}
    short = by_bare_name.get(short, short)
    part = {"attention": "operator", "modules": "module"}  # what they say of themselves, by kind
    operators = {o: n for n, e in classes.items() if e["kind"] in part for o in e[part[e["kind"]]]["names"]}
    room, _, last = short.rpartition(".")
    short = operators.get(last, short) if short not in classes and room in ("", *part) else short
    if short in classes:
        return _explain_class(short, classes[short])
    config = name.removeprefix("vistrain:").removesuffix(".yaml").removeprefix("configs/")
    if config in configs:
        return _explain_config(config, configs[config])
    section, _, key = name.partition(".")
    if section in index.SECTIONS:
        return _explain_key(section, key) if key else _explain_section(section)
    path, users = _base(last)
    if users:
        return _explain_base(last, path, users)
    _refuse_unindexed(f"explain {name}", last)
    names = [*classes, *by_bare_name, *operators, *index.SECTIONS, *configs]
    raise ConfigError(f"explain {name}", "no such class, key or config", nearest(name, names))


def _explain_class(name: str, entry: dict[str, Any]) -> str:
    doc = source_code.docstring(entry["path"]) or entry["doc"]
    lines = [f"{name}  ({entry['path']})", ""]
    lines += [textwrap.indent(doc, "  "), ""]
    if entry["kind"] == "attention":
        lines += [table(_facts_of_operator(entry["operator"]), "  ")]
    if entry["kind"] == "modules":
        lines += [table(_facts_of_module(entry["module"]), "  ")]
    lines += ["  parameters:", _parameter_table(entry).rstrip("\n")]
    docs = (source_code.parameter_doc(entry["path"], key) for key in entry["parameters"] if _inherited(entry, key))
    inherited = list(dict.fromkeys(text for text in docs if text))
    if inherited:
        lines += ["", "  from its base:", *(textwrap.indent(textwrap.fill(t, 110), "    ") for t in inherited)]
    users = [n for n, c in index.load("configs").items() if name in c.get("classes", ())]
    if users:
        lines += ["", "  used by:", *(f"    vistrain:{n}" for n in users)]
    return "\n".join(lines) + "\n"


def _base(name: str) -> tuple[str, list[str]]:
    """The path of a base class of ours that no config names, and which classes of its room stand on it."""
    root = source_code.PACKAGE
    files = [file for file in root.rglob("*.py") if f"class {name}(" in file.read_text(encoding="utf-8")]
    for file in files[:1]:
        module = ".".join((root.name, *file.relative_to(root).with_suffix("").parts))
        room = ".".join(module.split(".")[:2])
        entries = [(n, e["path"]) for n, e in index.load("classes").items() if e["path"].startswith(f"{room}.")]
        path = f"{module}.{name}"
        return path, [n for n, p in entries if any(base == path for base, _ in source_code.ancestry(p))]
    return "", []


def _explain_base(name: str, path: str, users: Sequence[str]) -> str:
    doc = textwrap.indent(source_code.docstring(path), "  ")
    return f"{name}  ({path})\n\n{doc}\n\n  base of:\n" + "".join(f"    {user}\n" for user in users)


def _refuse_unindexed(where: str, name: str) -> None:
    """Refuse the name of an operator or a module, or of a file of them, that the index does not know yet.

    Raises:
        ConfigError: there is one.
    """
    for room in ("attention", "modules"):
        for file in (source_code.PACKAGE / room).glob("*.py"):
            source = file.read_text(encoding="utf-8")
            if name and (file.stem == name or re.search(rf"^class {re.escape(name)}\b", source, re.M)):
                problem = f"vistrain/{room}/{file.name} is there, and not in the index of names"
                raise ConfigError(where, problem, "run `make index`; host networks know it already")


def _facts_of_operator(said: dict[str, Any]) -> list[list[str]]:
    """What an attention operator says of itself, a line for each."""
    facts = {
        "names": ", ".join(said["names"]),
        "formula": said["formula"],
        "cost": f"{said['cost']} multiply-adds of N tokens and C channels; grows as {said['growth']}",
        "maps": said["sizes"] + ("" if "axes" not in said else f"; of {' or '.join(map(str, said['axes']))} axes"),
        "padding": said["padding"],
        "precision": "stays in float32" if said.get("float32") else "",
        "order": "causal: a token sees earlier ones alone" if said.get("causal") else "",
        "training": said.get("needs", ""),
        "oddities": said.get("oddities", ""),
    }
    return [[name, value] for name, value in facts.items() if value]


def _facts_of_module(said: dict[str, Any]) -> list[list[str]]:
    """What a module of convolutional hosts says of itself, a line for each."""
    facts = {"names": ", ".join(said["names"]), **{key: said.get(key, "") for key in ("formula", "cost", "place")}}
    facts |= {"maps": said["sizes"], "oddities": said.get("oddities", "")}
    return [[name, value] for name, value in facts.items() if value]


def _inherited(entry: dict[str, Any], key: str) -> bool:
    return not source_code.entry_of_args(source_code.docstring(entry["path"]), key)


def _parameter_table(entry: dict[str, Any]) -> str:
    rows = []
    for key, parameter in entry["parameters"].items():
        hint = parameter.get("hint", "")
        if index.FACTS.search(hint):
            default = "given by the data"
        elif "default" in parameter:
            default = f"= {_yaml(parameter['default'])}"
        else:
            default = f"= {parameter['built']}(...)" if "built" in parameter else "required"
        lines = textwrap.wrap(hint, LONGEST_HINT, break_long_words=False) or [""]
        rows += [[key, lines[0], default], *(["", line, ""] for line in lines[1:])]
    return table(rows, "    ") if rows else "    none\n"


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _explain_config(name: str, entry: dict[str, Any]) -> str:
    classes = dict(zip(("model", "task", "data"), entry.get("classes", ()), strict=False))
    measured = {k: v for k, v in entry.items() if k not in ("title", "classes", "reference")}
    facts = {**classes, **measured, **(entry.get("reference") or {})}
    file = index.config_root() / f"{name}.yaml"
    return f"vistrain:{name}  ({file})\n\n  {entry['title']}\n\n" + table(facts.items(), "  ")


def _explain_section(section: str) -> str:
    known = index.load("classes")
    lines = f"{section}: {index.SECTIONS[section]}\n"
    if section in index.PLAIN_SECTIONS:
        return lines + "\n  keys: " + ", ".join(index.PLAIN_SECTIONS[section]) + "\n"
    if section == "trainer":
        return lines + "\n" + _parameter_table(known[index.TRAINER])
    kind = {"callbacks": "callback", "data": "dataset"}.get(section, section)
    rows = [[name, entry["doc"]] for name, entry in known.items() if entry["kind"] == kind]
    return lines + ("\n  classes:\n" + table(rows, "    ") if rows else "")


def _explain_key(section: str, key: str) -> str:
    """A key of a section: which classes take it, as what, and what their docstrings say of it."""
    known, last = index.load("classes"), key.rpartition(".")[2]
    if f"{section}.{key}" in index.ELSEWHERE:
        return f"{section}.{key} is not set: {index.ELSEWHERE[f'{section}.{key}']}\n"
    if section in index.PLAIN_SECTIONS and key in index.PLAIN_SECTIONS[section]:
        return f"{section}.{key}: a key of {section}, {index.SECTIONS[section]}\n"
    kind = {"callbacks": "callback", "data": "dataset"}.get(section, section)
    takers = {n: e for n, e in known.items() if last in e["parameters"] and (e["kind"] == kind or "." in key)}
    if "." in key:  # a part inside: only classes that are parts, or that a part's key names
        takers = {n: e for n, e in takers.items() if e["path"].startswith("vistrain.") or e["kind"] == kind}
    if not takers:
        names = {f"{section}.{p}" for e in known.values() if e["kind"] == kind for p in e["parameters"]}
        raise ConfigError(f"{section}.{key}", "no class of this section takes it", nearest(f"{section}.{key}", names))
    lines = [f"{section}.{key}", ""]
    for name, entry in takers.items():
        parameter = {"parameters": {last: entry["parameters"][last]}}
        lines.append(
            f"  {name}\n{_parameter_table(parameter)}" + _indented(source_code.parameter_doc(entry["path"], last))
        )
    return "\n".join(lines)


def _indented(doc: str) -> str:
    """What a docstring says of a parameter, below it."""
    text = doc.partition(": ")[2]
    return textwrap.indent(textwrap.fill(text, 110), "      ") + "\n" if text else ""
