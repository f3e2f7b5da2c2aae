"""Prints a benchmark's table and writes build/bench/<name>.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One measured number beside its reference, both measured in this run."""

    metric: str
    value: float
    unit: str
    reference: str
    reference_value: float

    @property
    def ratio(self) -> float:
        """Value over reference."""
        return self.value / self.reference_value


def report(name: str, subject: str, rows: Sequence[Row]) -> None:
    """Print and write the rows."""
    print(f"\n{name}: {subject}")
    for row in rows:
        print(
            f"  {row.metric:44} {row.value:9.3f} {row.unit:4}  "
            f"{row.ratio:6.2f} x {row.reference} ({row.reference_value:.3f} {row.unit})"
        )
    folder = ROOT / "build" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    data = [asdict(row) | {"ratio": row.ratio} for row in rows]
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
