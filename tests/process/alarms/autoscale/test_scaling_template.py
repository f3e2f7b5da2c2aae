"""AWS's own linter accepts what the scaling template becomes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from scaled_resource import KINDS, scaled

from vllm_opsctl.alarms.autoscale.template import scaling_of, template_text


@pytest.mark.parametrize("kind", KINDS)
def test_cfn_lint_is_content(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "autoscaling.yaml"
    path.write_text(template_text(scaling_of(scaled(KINDS[kind]))), encoding="utf-8")

    answer = subprocess.run(
        [Path(sys.executable).parent / "cfn-lint", path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout
