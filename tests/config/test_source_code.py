"""The package's sources, read without running them."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys

import pytest

from vistrain.config import index, source_code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of three rooms, whose sources are never imported."""
    files = {
        "base/__init__.py": "from vistrain.base.ground import Ground as Floor\n",
        "base/ground.py": '''
class Ground:
    """Ground.

    Args:
        width, height: sides,
            in pixels.
        depth: of the ground.
    """
''',
        "middle.py": '''
from vistrain.base import Floor
class Middle(Floor):
    """Middle.

    Args:
        depth: of the middle.
        base: see `Ground`.
    """
''',
        "top/__init__.py": "",
        "top/last.py": """
from vistrain import middle
from vistrain.middle import Middle
class Top(Middle):
    pass
""",
    }
    for name, text in files.items():
        file = tmp_path / "vistrain" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for cached in (source_code.tree, source_code.origin, source_code._imported):
        cached.cache_clear()
    monkeypatch.setattr(source_code, "PACKAGE", tmp_path / "vistrain")
    yield
    for cached in (source_code.tree, source_code.origin, source_code._imported):
        cached.cache_clear()


def test_bases_are_followed_through_imports(package):
    assert [path for path, _ in source_code.ancestry("vistrain.top.last.Top")] == [
        "vistrain.top.last.Top", "vistrain.middle.Middle", "vistrain.base.ground.Ground"
    ]  # fmt: skip
    assert source_code.docstring("vistrain.top.last.Top") == ""
    assert source_code.docstring("vistrain.middle.Middle").startswith("Middle.")
    assert source_code.docstring("torch.nn.Linear") == ""


def test_a_parameter_is_explained_by_the_nearest_class_that_does(package):
    path = "vistrain.top.last.Top"
    assert source_code.parameter_doc(path, "depth") == "depth: of the middle."
    assert source_code.parameter_doc(path, "height") == "width, height: sides, in pixels."
    assert source_code.parameter_doc(path, "nothing") == ""
    assert source_code.parameter_doc("torch.nn.Linear", "bias") == ""


def test_dependencies_are_what_is_imported_in_the_rooms(package):
    found = source_code.dependencies(["vistrain.top.last"], ["top", "middle", "base"])
    assert found == {"vistrain.top.last", "vistrain.middle", "vistrain.base.ground"}
    assert source_code.dependencies(["vistrain.top.last"], ["top"]) == {"vistrain.top.last"}


def test_sources_say_what_importing_says():
    for name, entry in index.load("classes").items():
        module, _, bare = entry["path"].rpartition(".")
        if module.startswith("vistrain."):
            cls = getattr(importlib.import_module(module), bare)
            ours = [c for c in cls.__mro__ if c.__module__.startswith("vistrain.")]
            found = [path for path, _ in source_code.ancestry(entry["path"])]
            assert set(found) == {f"{c.__module__}.{c.__qualname__}" for c in ours}, name
            assert source_code.docstring(entry["path"]) == inspect.cleandoc(cls.__dict__.get("__doc__") or "")


def test_reading_sources_imports_no_torch():
    code = (
        "import sys; from vistrain.config.source_code import docstring; print(docstring('vistrain.optim.groups.Rule'))"
    )
    code += "; sys.exit('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Args" in made.stdout or "Attributes" in made.stdout
