"""AWS's own linter accepts the template with PromQL alarms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cloudwatch_fleet import config, text_of

AWS = {"cloudwatch": {"sink": "otlp", "region": "eu-central-1"}}
OTLP = config(exporter=AWS)


def test_cfn_lint_is_content(tmp_path: Path) -> None:
    path = tmp_path / "cloudwatch.yaml"
    path.write_text(text_of(OTLP))
    lint = Path(sys.executable).with_name("cfn-lint")
    ran = subprocess.run([lint, path], capture_output=True, text=True, check=False)

    assert (ran.returncode, ran.stdout) == (0, "")
