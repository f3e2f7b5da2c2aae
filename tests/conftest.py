"""What all tests share: marks by folder, real parts, the command, and what a run says at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import Opsctl
from hypothesis import settings
from parts.inventory import COMMAND, PARTS, find_part, missing_parts, parts_are_required
from paths import TESTS

# a run says of a change what the run before it would have said; `make search` looks for new examples
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("new", derandomize=False, deadline=None)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Mark every test by what it needs, which is the folder it lies in: fast, process, real or engine.

    Tests of a file share its servers, so a file goes to one worker; a fast one needs none of that.
    """
    for item in items:
        tier, *rooms = item.path.relative_to(TESTS).parts
        if tier == "real" and rooms[0] == "engine":
            tier = "engine"
        item.add_marker(tier)
        if tier != "fast":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(scope="session")
def part() -> Callable[[str], Path]:
    """Where a real part is; without it the test is skipped, or fails where parts are required."""

    def need(name: str) -> Path:
        found = find_part(name)
        if found is None:
            text = f"{PARTS[name].name} is missing; {COMMAND} brings it"
            if parts_are_required():
                pytest.fail(text)
            pytest.skip(text)
        return found

    return need


@pytest.fixture
def opsctl() -> Iterator[Opsctl]:
    """The command; everything started through it is stopped."""
    runner = Opsctl()
    yield runner
    runner.stop_all()


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Notes a line on what was measured along the way; printed at the end of the run."""
    return lambda line: record_property("measured", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured; name what is missing, loudly."""
    lines = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
        for name, value in report.user_properties
        if name == "measured" and report.when == "call"
    ]
    if lines:
        terminalreporter.section("measured", sep="-")
        for line in lines:
            terminalreporter.line(str(line))
    missing = missing_parts()
    if missing:
        terminalreporter.section("MISSING PARTS: not everything was tested", sep="!", red=True)
        terminalreporter.line(f"Not here: {', '.join(missing)}. Bring them with: {COMMAND}")
