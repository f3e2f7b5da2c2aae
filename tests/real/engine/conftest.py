"""A real vLLM for the tests in this folder, one at a time: they have the machine for themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parts.shared import Servers

ORDER = ("test_vllm", "test_prometheus", "test_cloudwatch", "test_page", "test_boards", "test_tap")
"""Those that share a server come one after the other; the last of them kills it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by `ORDER`: a start takes half a minute."""
    here = Path(__file__).parent
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.parent == here else -1)


@pytest.fixture(scope="session")
def servers(
    part: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Real servers by configuration."""
    running = Servers(part("vllm"), tmp_path_factory.mktemp("vllm"))
    yield running
    running.stop()
