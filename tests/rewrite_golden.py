"""Rewrites the golden verdicts; `make golden` runs it, the review sees what changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORDING = HERE / "recordings" / "kv-preemption-thrash.jsonl.gz"

for output in ("text", "json", "markdown"):
    answer = subprocess.run(
        [
            Path(sys.executable).with_name("opsctl"),
            *("diagnose", "--recording", str(RECORDING), "--output", output),
        ],
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )
    (HERE / "golden" / f"kv-preemption-thrash.{output}").write_text(answer.stdout)
