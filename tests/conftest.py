"""What the last lines of a run say: which files took longest, and how many parity tests were run; a run that lost some
of those fails. Files of long tests come first, so that no worker process is left with one when the others are done."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from parity import fixtures

PARITY = Path(__file__).parent / "parity"
EXPECTED = PARITY / "expected.txt"
LONG = Path(__file__).parent / "long.txt"
FILES = 10  # of the longest ones are told
SECONDS = 1.0  # from which a test is long


class Durations:
    """Seconds that each file takes; the longest are told ("What a paper costs", docs/architecture.md). With
    `--note-long`, tests of a second or more are listed in `tests/long.txt`, and files that make things so long for all
    of their tests: `make test-fast` leaves them out."""

    def __init__(self, noted: bool) -> None:
        self.seconds: Counter[str] = Counter()
        self.tests: Counter[str] = Counter()
        self.noted, self.long = noted, set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, test and tear-down report each for itself."""
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration
        self.tests[file] += report.when == "call"
        if report.duration >= SECONDS:
            self.long.add(report.nodeid if report.when == "call" else file)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the list, in the process that saw all tests."""
        if self.noted and not hasattr(session.config, "workeroutput"):
            first = "# Tests of a second or more, and files that take that before their first: written by `make long`"
            LONG.write_text("\n".join([first, *sorted(self.long)]) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        """After pytest's own list of single tests."""
        yield
        if len(self.seconds) > 1:
            whole = sum(self.seconds.values())
            terminalreporter.write_sep("=", f"slowest of {len(self.seconds)} files, of {whole:.0f}s in all")
            for file, seconds in self.seconds.most_common(FILES):
                terminalreporter.write_line(f"{seconds:.2f}s {self.tests[file]:5} tests  {file}")


class ParityCount:
    """Which parity tests ran, were skipped and were deselected."""

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self.skipped: set[str] = set()
        self.deselected: set[str] = set()
        self.lost: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Everything below tests/parity is a parity test."""
        for item in items:
            if PARITY in item.path.parents:
                item.add_marker("parity")

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """`-k` and `-m` leave tests out on purpose."""
        self.deselected |= {item.nodeid for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test ran if its body did, whatever came of it."""
        if "parity" not in report.keywords:
            return
        if report.skipped:
            self.skipped.add(report.nodeid)
        elif report.when == "call":
            self.ran.add(report.nodeid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker process of pytest-xdist has ended: what it left out was left out here, too."""
        self.deselected |= set(getattr(node, "workeroutput", {}).get("deselected", ()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail a whole run that had the fixtures and did not run everything on the committed list."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:  # a worker sees a part of the tests; who started it counts
            output["deselected"] = sorted(self.deselected)
            return
        if fixtures.folder() is None or not _whole(session.config):
            return
        expected = [line for line in EXPECTED.read_text().splitlines() if line and not line.startswith("#")]
        self.lost = [name for name in expected if name not in self.ran | self.deselected]
        if self.lost and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
        """Outermost, so that only pytest's closing line comes after it."""
        yield
        for name in self.lost:
            terminalreporter.write_line(f"parity: did not run {name}", red=True)
        terminalreporter.write_line(f"parity: {len(self.ran)} run, {len(self.skipped)} skipped")


def _whole(config: pytest.Config) -> bool:
    """Whether all tests were asked for, and none were only listed."""
    asked = [Path(config.invocation_params.dir, argument.split("::")[0]).resolve() for argument in config.args]
    tests = Path(__file__).parent.resolve()
    covers = any("::" not in a and path in (tests, *tests.parents) for a, path in zip(config.args, asked, strict=True))
    return covers and not config.option.collectonly and not config.option.ignore


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make long` asks for."""
    parser.addoption("--note-long", action="store_true", help=f"write {LONG.name}: tests of {SECONDS:g} s or more")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the counter; an environment variable that points nowhere is an error, not a reason to skip."""
    os.fsync = lambda descriptor: None  # no test outlives a power cut, and each file would wait for the disk
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` would have runs ignore what tests send them
    config.addinivalue_line("markers", "parity: equality with stored results of the authors' code")
    if (problem := fixtures.problem()) is not None:
        raise pytest.UsageError(problem)
    config.pluginmanager.register(Durations(config.option.note_long), "file-durations")
    config.pluginmanager.register(ParityCount(), "parity-count")


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that hold slow tests come first, each in one piece: fixtures are made once for a file. What is listed as
    long is marked."""
    listed = set(LONG.read_text().splitlines()) if LONG.is_file() else set()
    for item in items:
        if {item.nodeid, item.nodeid.partition("::")[0]} & listed:
            item.add_marker("long")
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Ten thousand tests, and what they import, stay: the garbage collector need not walk through them each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At the end all goes as usual; C++ bindings tell of what is left."""
    gc.unfreeze()
