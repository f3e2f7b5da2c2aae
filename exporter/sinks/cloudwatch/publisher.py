"""The publisher: a thread that turns every interval into data and sees to it that CloudWatch has them."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vllm_opsctl.errors import ConfigError, NeverTaken, OpsError
from vllm_opsctl.exporter.aws import region_of
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.engine import PageSample
from vllm_opsctl.exporter.sinks.cloudwatch.datum import Datum
from vllm_opsctl.exporter.sinks.cloudwatch.emf import EmfSender
from vllm_opsctl.exporter.sinks.cloudwatch.interval import HEARTBEAT, Labels, data_of
from vllm_opsctl.exporter.sinks.cloudwatch.put import PutSender
from vllm_opsctl.exporter.sinks.cloudwatch.spool import Spool
from vllm_opsctl.exporter.sinks.losses import Loss
from vllm_opsctl.exporter.workers import Life

MAX_PAUSE_S = 60.0
"""Longest pause between two attempts while CloudWatch does not answer."""

log = logging.getLogger(__name__)


class Sender(Protocol):
    """Gets data to CloudWatch."""

    def send(self, data: Sequence[Datum], now: float) -> None:
        """
        Send the data of one interval.

        Raises:
            OpsError: It was not taken; it stays in the spool.
            NeverTaken: Some of it never will be, however often it is sent; the rest was taken.
        """


class Publisher:
    """
    Publishes until stopped.

    Args:
        config: Service, objectives, and ``exporter.cloudwatch``.
        take_pages: Gives, by target, the pages since it was called last.
        sender: Where the data go.
        spool: What waits.
        fine_pages: Gives, by target, a page now with all bounds of the tap; none where there is no tap.
        stop: Set to end; the interval that has begun is sent then, once.
        clock: Unix seconds.
    """

    def __init__(
        self,
        config: Config,
        take_pages: Callable[[], Mapping[str, Sequence[PageSample]]],
        sender: Sender,
        spool: Spool,
        *,
        fine_pages: Callable[[], Mapping[str, PageSample]] = dict,
        heartbeat_only: bool = False,
        stop: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._settings = config.exporter.cloudwatch
        self._take_pages = take_pages
        self._sender = sender
        self._spool = spool
        self._stop_event = stop
        self._clock = clock
        self._fine_pages = fine_pages
        self._heartbeat_only = heartbeat_only
        self._last = spool.kept_pages()
        self._last_fine: Mapping[str, PageSample] = {}
        self._failures = 0
        self._refused = 0
        self._not_before = 0.0
        self._random = random.Random()  # noqa: S311 - spreads attempts, no secret

    @property
    def sink(self) -> str:
        """What it is called where several send."""
        return "emf" if self._settings.sink == "emf" else "put"

    unfinished = "CloudWatch does not answer; what it has not taken waits in the spool"
    """What is to be said when the last interval could not be sent in time."""

    @property
    def lost(self) -> Mapping[Loss, int]:
        """Intervals that were lost, whole or in part, since the sidecar began."""
        return {"full": self._spool.lost, "refused": self._refused}

    def run(self, life: Life) -> None:
        """One interval after the other, aligned with the clock, as all sidecars of a fleet are."""
        length = self._settings.interval
        while not life.is_over:
            began = self._clock() // length * length
            life.wait(max(0.0, began + length - self._clock()))
            self._publish(began)

    def _publish(self, began: float) -> None:
        """One interval; a fault of ours is not the end of all publishing."""
        try:
            self.close_interval(began)
            self.send_waiting()
        except Exception:
            log.exception("a fault of the sidecar itself")

    def close_interval(self, began: float) -> None:
        """
        Turn what was read since the last call into data.

        Args:
            began: The interval's start, Unix seconds: the time of its data.
        """
        data: list[Datum] = []
        fine = self._fine_pages()
        for target, pages in self._take_pages().items():
            labels = Labels(
                self._config.service.name, target if self._settings.per_target else None
            )
            try:
                data += data_of(
                    self._last.get(target),
                    pages,
                    t=began,
                    labels=labels,
                    objectives=self._config.objectives,
                    fine=_both(self._last_fine.get(target), fine.get(target)),
                )
            except Exception:
                # one target's pages are no reason to lose the interval of all
                log.exception("%s: a fault of the sidecar itself", target)
            if pages:
                self._last[target] = pages[-1]
        self._last_fine = fine
        if self._heartbeat_only:
            data = [datum for datum in data if datum.metric == HEARTBEAT]
        if data:
            self._spool.add(began, data)
            self._spool.keep_pages(self._last)

    def send_waiting(self) -> None:
        """Send what waits, oldest first; after a failure not before a pause has passed."""
        now = self._clock()
        if now < self._not_before and not self._stop_event.is_set():
            return
        for t, data in list(self._spool.waiting()):
            try:
                self._sender.send(data, now)
            except NeverTaken as problem:
                # what is behind it must not wait for what nobody will ever take
                self._refused += 1
                log.error("CloudWatch: of the interval of %d is lost: %s", t, problem)
            except OpsError as problem:
                self._failures += 1
                if self._failures == 1:
                    log.error("CloudWatch: %s; intervals wait until it takes them", problem)
                longest = min(MAX_PAUSE_S, 2.0**self._failures)
                self._not_before = now + self._random.uniform(0.0, longest)
                return
            self._spool.remove(t)
        if self._failures:
            log.warning("CloudWatch takes data again after %d failed attempts", self._failures)
        self._failures = 0


def _both(old: PageSample | None, new: PageSample | None) -> tuple[PageSample, PageSample] | None:
    return (old, new) if old is not None and new is not None else None


def publisher(
    config: Config,
    environment: Mapping[str, str],
    take_pages: Callable[[], Mapping[str, Sequence[PageSample]]],
    fine_pages: Callable[[], Mapping[str, PageSample]],
    stop: threading.Event,
) -> Publisher:
    """
    The configured publisher of curated metrics.

    Args:
        config: The whole configuration.
        environment: For the region.
        take_pages: Gives, by target, the pages since it was called last.
        fine_pages: Gives, by target, a page now with all bounds of the tap.
        stop: Ends it.

    Raises:
        ConfigError: There is no region, or the spool's folder cannot be made.
        UsageError: boto3 is not installed.
    """
    settings = config.exporter.cloudwatch
    sender: Sender
    # beside OTLP the heartbeat alone is put
    if settings.sink in ("put", "otlp"):
        region = region_of(settings, environment)
        if region is None:
            raise ConfigError(
                [
                    "exporter.cloudwatch.region: not set, and neither is AWS_REGION; write eu-central-1"
                ]
            )
        endpoint = settings.endpoint_url if settings.sink == "put" else None
        sender = PutSender(settings.namespace, region, endpoint)
    else:
        sender = EmfSender(settings.namespace, settings.emf_to)
    folder = Path(settings.spool_dir) if settings.spool_dir is not None else None
    try:
        spool = Spool(folder, max(1, int(settings.spool_keep // settings.interval)))
    except OSError as problem:
        raise ConfigError(
            [f"exporter.cloudwatch.spool_dir: {folder}: {problem.strerror}; choose another folder"]
        ) from None
    return Publisher(
        config,
        take_pages,
        sender,
        spool,
        fine_pages=fine_pages,
        heartbeat_only=settings.sink == "otlp",
        stop=stop,
    )
