"""Tools that write into a repository read the package of the same one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[2] / "tools"


def test_a_tool_takes_the_package_that_lies_beside_it_or_none(tmp_path: Path) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name / "vistrain").mkdir(parents=True)
        (tmp_path / name / "vistrain" / "__init__.py").touch()
    (tmp_path / "here" / "tools").mkdir()
    shutil.copy(TOOLS / "checkout.py", tmp_path / "here" / "tools")
    path = os.pathsep.join(map(str, (tmp_path / "elsewhere", tmp_path / "here" / "tools")))

    def run(code: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    taken = run("import checkout, vistrain; print(vistrain.__file__)")
    assert taken.stdout.strip() == str(tmp_path / "here" / "vistrain" / "__init__.py")
    late = run("import vistrain, checkout")
    assert (late.returncode, late.stderr.count("\n")) == (1, 1)
    assert "its tools write there" in late.stderr


def test_tools_that_write_into_the_repository_ask_first() -> None:
    for name in ("make_index", "make_results", "attention_table", "backbone_sizes", "benchmark_attention"):
        lines = (TOOLS / f"{name}.py").read_text().splitlines()
        imports = [line for line in lines if line.startswith(("import vistrain", "from vistrain", "import checkout"))]
        assert imports[0].startswith("import checkout"), name
