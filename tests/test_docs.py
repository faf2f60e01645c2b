"""What the pages show is what there is: commands are taken by the parser, shipped configs compose, Python blocks run.

`docs/adding.md` and `docs/backbones.md` are followed by tests of their own.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from vistrain.cli import parse
from vistrain.config import compose

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# In README a line may stand for many: `list configs | models`, `check --config ...`, a name in capitals.
FOLLOWED = ("docs/adding.md", "docs/backbones.md")  # their names are made up by the page
STANDS_FOR_MANY = re.compile(r" \| |\.\.\.|import-data LAYOUT|vistrain:NAME")


def commands_of(page: Path) -> list[str]:
    """The commands that begin a line of a page's code, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", page.read_text())
    code = "\n".join(
        [*re.findall(r"^ {4}(.*)$", joined, re.M), *re.findall(r"```(?:bash|sh)?\n(.*?)```", joined, re.S)]
    )
    return [line.strip() for line in code.splitlines() if re.match(r"\s*vistrain [a-z]", line)]


SHOWN = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands_of(page)})


def test_pages_show_commands() -> None:
    assert len(SHOWN) > 120
    assert sum(bool(STANDS_FOR_MANY.search(line.split("#")[0])) for _, line in SHOWN) < 5


@pytest.mark.parametrize(
    ("page", "line"), [pair for pair in SHOWN if not STANDS_FOR_MANY.search(pair[1].split("#")[0])]
)
def test_a_shown_command_is_one(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)[1:]
    arguments = parse(words)  # argparse ends the process where an option is missing or unknown
    assert arguments.command == words[0]
    configs = vars(arguments).get("config") or []
    if page not in FOLLOWED and configs and all(config.startswith(("vistrain:", "configs/")) for config in configs):
        compose(configs, arguments.overrides)  # refuses keys, types and values that are none


@pytest.mark.parametrize("page", ["python.md"])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
    shutil.copy(ROOT / "tests" / "kept" / "classification.ckpt", tmp_path / "best.ckpt")
    monkeypatch.setenv("VISTRAIN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert {"found", "predictions", "trainer", "levels"} <= names.keys()


def test_every_page_is_in_the_site() -> None:
    listed = set(re.findall(r"([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
            file = page if not target else (page.parent / target)
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
                slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"
