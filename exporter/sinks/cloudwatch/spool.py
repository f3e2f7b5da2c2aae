"""
What waits to be sent, on disk if there is a folder for it: an outage or a restart loses nothing.

Every interval is a file that goes when CloudWatch has taken it. Beside them lie the last pages that
were counted: written after the interval's file, so that a crash in between counts one interval twice
and none not at all.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_opsctl.exporter.engine import EngineKey, EngineSample, Histogram, PageSample
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, Statistics

_PAGES = "pages.json"

log = logging.getLogger(__name__)


class Spool:
    """
    The waiting intervals, oldest first.

    Args:
        folder: Where they lie; None keeps them in memory alone.
        max_intervals: Bound; the oldest go first.
    """

    def __init__(self, folder: Path | None, max_intervals: int) -> None:
        self._folder = folder
        self._max = max_intervals
        self._waiting: dict[float, tuple[Datum, ...]] = {}
        #: intervals that had to go unsent because the spool was full
        self.lost = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob("interval-*.json")):
                self._load(file)

    def add(self, t: float, data: Sequence[Datum]) -> None:
        """
        Put an interval at the end; what waits of it already stays.

        Args:
            t: Its start, Unix seconds.
            data: All of it.
        """
        whole = self._waiting[t] = (*self._waiting.get(t, ()), *data)
        if self._folder is not None:
            _write(self._file(t), [asdict(datum) for datum in whole])
        while len(self._waiting) > self._max:
            oldest = min(self._waiting)
            log.error("the spool is full: the interval of %d is lost", oldest)
            self.remove(oldest)
            self.lost += 1

    def waiting(self) -> Iterator[tuple[float, tuple[Datum, ...]]]:
        """Everything that waits, oldest first."""
        for t in sorted(self._waiting):
            yield t, self._waiting[t]

    def remove(self, t: float) -> None:
        """An interval was taken."""
        self._waiting.pop(t, None)
        if self._folder is not None:
            self._file(t).unlink(missing_ok=True)

    def keep_pages(self, pages: Mapping[str, PageSample]) -> None:
        """
        Remember the last pages that were counted.

        Args:
            pages: By target.
        """
        if self._folder is not None:
            _write(self._folder / _PAGES, {name: asdict(page) for name, page in pages.items()})

    def kept_pages(self) -> dict[str, PageSample]:
        """The last pages that were counted, by target; empty when there are none, or none readable."""
        if self._folder is None:
            return {}
        try:
            data = json.loads((self._folder / _PAGES).read_text(encoding="utf-8"))
            return {name: _page(page) for name, page in data.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            log.error("%s: not readable (%s); counting begins anew", self._folder / _PAGES, problem)
            return {}

    def _file(self, t: float) -> Path:
        assert self._folder is not None
        return self._folder / f"interval-{t:015.3f}.json"

    def _load(self, file: Path) -> None:
        try:
            data = [_datum(one) for one in json.loads(file.read_text(encoding="utf-8"))]
            self._waiting[float(file.stem.removeprefix("interval-"))] = tuple(data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
            log.error("%s: not readable (%s); left alone", file, problem)


def _write(path: Path, data: object) -> None:
    """Whole or not at all, also when the machine stops."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as out:
        json.dump(data, out)
        out.flush()
        os.fsync(out.fileno())
    new.replace(path)


def _datum(data: Mapping[str, Any]) -> Datum:
    statistics = data["statistics"]
    return Datum(
        **{
            **data,
            "dimensions": tuple((name, text) for name, text in data["dimensions"]),
            "statistics": None if statistics is None else Statistics(**statistics),
            "values": tuple(data["values"]),
            "counts": tuple(data["counts"]),
        }
    )


def _page(data: Mapping[str, Any]) -> PageSample:
    return PageSample(
        t=data["t"], target=data["target"], engines=tuple(_engine(one) for one in data["engines"])
    )


def _engine(data: Mapping[str, Any]) -> EngineSample:
    histograms = {
        name: Histogram(tuple(one["bounds"]), tuple(one["counts"]), one["sum"])
        for name, one in data["histograms"].items()
    }
    return EngineSample(**{**data, "key": EngineKey(*data["key"]), "histograms": histograms})
