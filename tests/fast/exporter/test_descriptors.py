"""The limit of open files is raised as far as is allowed and no further."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from vllm_opsctl.exporter.descriptors import allow_open_files


@pytest.fixture
def few_files() -> Iterator[tuple[int, int]]:
    """A process that may open few files and ask for more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = (256, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, few)
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("wanted", [100, 856, 2**40])
def test_the_limit_is_raised_as_far_as_is_allowed(few_files: tuple[int, int], wanted: int) -> None:
    soft, hard = few_files
    allowed = allow_open_files(wanted)

    assert allowed == max(soft, min(wanted, hard))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (allowed, hard)
