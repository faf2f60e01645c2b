"""The package's own sources, read without running them: docstrings, base classes, and what a module depends on."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def file_of(module: str) -> Path | None:
    """The file of a module of ours; None if there is none of this name."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if module.partition(".")[0] == PACKAGE.name and file.is_file():
            return file
    return None


@functools.cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module of ours."""
    file = file_of(module)
    assert file is not None, module
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def origin(module: str, name: str) -> tuple[str, str]:
    """Module and name under which a name of one of our modules was defined: imports are followed.

    The module itself where it does not import the name. A name that is a module is `(module, "")`.
    """
    if file_of(f"{module}.{name}") is not None:
        return f"{module}.{name}", ""
    if file_of(module) is None:
        return module, name
    for imported, names in _imported(module):
        for original, alias in names:
            if alias == name:
                return origin(imported, original)
    return module, name


def ancestry(path: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """A class of ours and its base classes of ours, nearest first, as dotted path and definition."""
    module, _, name = path.rpartition(".")
    if file_of(module) is None:
        return
    for node in tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield path, node
            for base in node.bases:
                expression = base.value if isinstance(base, ast.Subscript) else base  # Factory[nn.Module]
                if isinstance(expression, ast.Name):
                    yield from ancestry(".".join(origin(module, expression.id)))


def docstring(path: str) -> str:
    """The docstring of a class of ours; empty for others, and where there is none."""
    return next(((ast.get_docstring(node) or "") for _, node in ancestry(path)), "")


def parameter_doc(path: str, name: str) -> str:
    """What the `Args` of a class of ours say of a parameter, or those of the base that it comes from; on one line."""
    return next((doc for _, node in ancestry(path) if (doc := entry_of_args(ast.get_docstring(node) or "", name))), "")


def entry_of_args(doc: str, name: str) -> str:
    """What a docstring's `Args` say of a parameter, on one line; several may share an entry: `height, width: ...`."""
    block = re.search(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)+)", inspect.cleandoc(doc), re.M)
    for entry in re.split(r"\n(?=    \S)", block.group(1)) if block else []:
        names, colon, text = entry.partition(":")
        if colon and name in re.split(r"[,\s]+", names.strip()):
            return f"{' '.join(names.split())}: {' '.join(text.split())}"
    return ""


def dependencies(modules: Iterable[str], rooms: Iterable[str]) -> set[str]:
    """Modules of these rooms that some modules of theirs are made of: themselves, and what they import, at any depth.

    Args:
        modules: dotted names.
        rooms: names of packages in `vistrain`; modules elsewhere are not followed.
    """
    within = tuple(f"{PACKAGE.name}.{room}" for room in rooms)
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in found or file_of(module) is None or not module.startswith(within):
            continue
        found.add(module)
        waiting += [origin(imported, name)[0] for imported, names in _imported(module) for name, _ in names]
    return found


@functools.cache
def _imported(module: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The `from ... import` of ours in a module: where from, and names with what they are called there."""
    return [
        (node.module, [(alias.name, alias.asname or alias.name) for alias in node.names])
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == PACKAGE.name
    ]
