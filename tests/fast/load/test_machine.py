"""The model that real servers serve fits the machine: a step lasts about as long on all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from load.scenarios import SCENARIOS
from parts.machine import WITH_AVX512, WITHOUT_AVX512, ModelFit, model_fit


@pytest.mark.parametrize(
    ("text", "fit"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_bf16\n", WITH_AVX512),
        ("processor\t: 0\nflags\t\t: fpu avx avx2\n", WITHOUT_AVX512),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", WITHOUT_AVX512),
        ("", WITHOUT_AVX512),
    ],
    ids=["AVX-512", "AVX2", "Arm", "nothing"],
)
def test_the_model_fits_the_cores(tmp_path: Path, text: str, fit: ModelFit) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text, encoding="ascii")

    assert model_fit(cpuinfo) == fit


def test_a_system_without_cpuinfo_has_no_avx512(tmp_path: Path) -> None:
    assert model_fit(tmp_path / "none") == WITHOUT_AVX512


def test_an_overload_changes_the_arrivals_of_its_incident_and_nothing_else() -> None:
    overload = SCENARIOS["queue-overload"]

    faster = overload.with_arrivals("incident", 40.0)

    assert faster.phase("incident").arrivals_per_s == 40.0
    assert faster.phase("healthy") == overload.phase("healthy")
    assert (faster.slots, faster.flags) == (8, overload.flags)
