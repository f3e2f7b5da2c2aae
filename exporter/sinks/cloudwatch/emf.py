"""
Embedded metric format: one JSON object a line, which CloudWatch Logs turns into metrics.

Source:
    Specification of the embedded metric format in the CloudWatch user guide: 100 metrics a directive,
    30 dimensions a set, 256 KB an event. Values with counts and statistics are written as the
    OpenTelemetry collector's awsemfexporter writes them, for arrays end at 100 elements.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vllm_opsctl.errors import AwsError
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum, Dimensions, accepted

MAX_METRICS = 100
"""Metrics of one directive."""

MAX_VALUES = 100
"""Elements of an array."""

MAX_BYTES = 256_000
"""Of one line."""

_CONNECT_S = 5.0
_CLOSE_S = 1.0
"""An agent that has closed nothing by then has not complained either."""


def lines_of(namespace: str, data: Sequence[Datum], now: float) -> Iterator[str]:
    """
    Data as lines: those of the same dimensions and time share one.

    Args:
        namespace: Of all metrics.
        data: Of any number.
        now: Unix seconds.
    """
    groups: dict[tuple[Dimensions, float], list[Datum]] = {}
    for datum in accepted(data, now, MAX_VALUES):
        groups.setdefault((datum.dimensions, datum.t), []).append(datum)
    for (dimensions, t), group in groups.items():
        yield from _lines(namespace, dimensions, t, group)


def _lines(
    namespace: str, dimensions: Dimensions, t: float, group: Sequence[Datum]
) -> Iterator[str]:
    batch: dict[str, Datum] = {}
    size = 0
    for datum in group:
        length = len(json.dumps(_value(datum))) + 200
        # a name can stand in a line once; what was split goes into several
        full = len(batch) == MAX_METRICS or size + length > MAX_BYTES or datum.metric in batch
        if batch and full:
            yield _line(namespace, dimensions, t, batch)
            batch, size = {}, 0
        batch[datum.metric] = datum
        size += length
    if batch:
        yield _line(namespace, dimensions, t, batch)


def _line(namespace: str, dimensions: Dimensions, t: float, batch: dict[str, Datum]) -> str:
    directive = {
        "Namespace": namespace,
        "Dimensions": [[name for name, _ in dimensions]],
        "Metrics": [{"Name": name, "Unit": datum.unit} for name, datum in batch.items()],
    }
    document = {
        "_aws": {"Timestamp": round(t * 1000), "CloudWatchMetrics": [directive]},
        **dict(dimensions),
        **{name: _value(datum) for name, datum in batch.items()},
    }
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def _value(datum: Datum) -> Any:
    if datum.statistics is not None:
        one = datum.statistics
        return {"Min": one.least, "Max": one.most, "Sum": one.total, "Count": one.count}
    if datum.counts == (1.0,):
        return datum.values[0]
    return {
        "Values": list(datum.values),
        "Counts": list(datum.counts),
        "Min": min(datum.values),
        "Max": max(datum.values),
        "Sum": sum(v * n for v, n in zip(datum.values, datum.counts, strict=True)),
        "Count": sum(datum.counts),
    }


class EmfSender:
    """
    Writes lines to stdout, a file, or the CloudWatch agent's socket.

    Args:
        namespace: Of all metrics.
        to: ``stdout``, a path, ``tcp://HOST:PORT`` or ``udp://HOST:PORT``.
    """

    def __init__(self, namespace: str, to: str) -> None:
        self._namespace = namespace
        self._to = to

    def send(self, data: Sequence[Datum], now: float) -> None:
        """
        Write the data of one interval.

        Args:
            data: Of any number.
            now: Unix seconds.

        Raises:
            AwsError: It could not be written.
        """
        lines = list(lines_of(self._namespace, data, now))
        try:
            if self._to == "stdout":
                sys.stdout.write("".join(f"{line}\n" for line in lines))
                sys.stdout.flush()
            elif "://" in self._to:
                self._to_agent(lines)
            else:
                with Path(self._to).open("a", encoding="utf-8") as out:
                    out.writelines(f"{line}\n" for line in lines)
        except OSError as problem:
            raise AwsError(f"exporter.cloudwatch.emf_to: {self._to}: {problem}") from None

    def _to_agent(self, lines: Sequence[str]) -> None:
        parts = urlsplit(self._to)
        address = parts.hostname or "127.0.0.1", parts.port or 25888
        if parts.scheme == "udp":
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as out:
                for line in lines:
                    out.sendto(f"{line}\n".encode(), address)
            return
        with socket.create_connection(address, timeout=_CONNECT_S) as out:
            out.sendall("".join(f"{line}\n" for line in lines).encode())
            out.shutdown(socket.SHUT_WR)
            out.settimeout(_CLOSE_S)
            # what the agent had not read when it went is lost, and only its closing tells
            with suppress(TimeoutError):
                out.recv(1)
