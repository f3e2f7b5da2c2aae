"""Prints the 25 slowest tests of JUnit reports, with their fixtures; `make test` runs it."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

SHOWN = 25


def slowest(reports: list[Path]) -> list[tuple[float, str]]:
    """Seconds and name of the slowest tests, slowest first."""
    found = [
        (float(case.get("time", "0")), f"{case.get('classname')}::{case.get('name')}")
        for report in reports
        if report.is_file()
        for case in ElementTree.parse(report).iter("testcase")  # noqa: S314 - written by pytest
    ]
    return sorted(found, reverse=True)[:SHOWN]


if __name__ == "__main__":
    print(f"the {SHOWN} slowest tests:")
    for seconds, name in slowest([Path(argument) for argument in sys.argv[1:]]):
        print(f"{seconds:8.1f} s  {name}")
