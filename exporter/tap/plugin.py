"""
What vLLM loads: the entry point ``vllm.stat_logger_plugins`` named ``opsctl_tap``.

An exception out of ``record()`` ends the whole server (vllm/v1/engine/async_llm.py,
output_handler, 0.32.0), so none gets out: the first one ends the tap, with one line in the log.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import AggregateStatLoggerBase

from vllm_opsctl.exporter.tap.facts import engine_facts
from vllm_opsctl.exporter.tap.folder import UnsafeFolder
from vllm_opsctl.exporter.tap.identity import identity_of
from vllm_opsctl.exporter.tap.settings import directory_from
from vllm_opsctl.exporter.tap.writer import PageWriter

if TYPE_CHECKING:
    from pathlib import Path

# below vLLM's own, so that the line stands in vLLM's log in vLLM's form
log = logging.getLogger("vllm.opsctl_tap")

_DISABLE_FLAG = "--disable-log-stats"
_MAX_TOLD = 500


class Tap(AggregateStatLoggerBase):  # type: ignore[misc]
    """
    The statistics pages of one API process, one per engine.

    Of the aggregate kind, for the adapter around the other kind does not pass on sleep and rejections
    (vllm/v1/metrics/loggers.py, PerEngineStatLoggerAdapter, 0.33.0).
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self._config = vllm_config
        self._pages: dict[int, PageWriter] = {}
        try:
            if any(_is_disable_flag(argument) for argument in sys.argv):
                # for vLLM it is enough that the plugin is there, so this is said of one that is off too
                log.warning(
                    "opsctl tap: %s is given, but vLLM collects statistics for every stat logger plugin; "
                    "VLLM_PLUGINS without opsctl_tap stops that",
                    _DISABLE_FLAG,
                )
            directory = directory_from(os.environ)
            if directory is None:
                log.info("opsctl tap: off (OPSCTL_TAP)")
            else:
                self._open(directory, engine_indexes)
        except UnsafeFolder as problem:
            self._pages = {}
            log.warning("opsctl tap: off, the server is not affected: %s", _one_line(problem))
        except Exception as problem:
            self._give_up(problem)

    def _open(self, directory: Path, engine_indexes: list[int]) -> None:
        facts = engine_facts(self._config, sys.argv)
        parallel = getattr(self._config, "parallel_config", None)
        for engine in engine_indexes:
            self._pages[engine] = PageWriter(
                directory, identity_of(engine, parallel), facts, on_failure=self._give_up
            )
        atexit.register(self._close)
        paths = ", ".join(str(page.path) for page in self._pages.values())
        log.info("opsctl tap: statistics on %s", paths)

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """One step of one engine; called on vLLM's event loop."""
        try:
            page = self._pages.get(engine_idx)
            if page is not None:
                page.record(scheduler_stats, iteration_stats, mm_cache_stats)
        except Exception as problem:
            self._give_up(problem)

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """
        Sleep mode: 1 is asleep, whatever the base class calls the argument.

        Source:
            vllm/v1/metrics/loggers.py, PrometheusStatLogger.record_sleep_state, 0.33.0.
        """
        try:
            for page in self._pages.values():
                page.record_sleep(asleep=sleep == 1, level=level)
        except Exception as problem:
            self._give_up(problem)

    def record_admission_rejection(self, reason: str) -> None:
        """Admission control refused a request; of the server, so it stands on its first page."""
        try:
            for page in list(self._pages.values())[:1]:
                page.record_rejection(reason)
        except Exception as problem:
            self._give_up(problem)

    def log_engine_initialized(self) -> None:
        """The number of KV blocks is known now."""
        if not self._pages:
            # off: a configuration that could not be read is not complained of again
            return
        try:
            facts = engine_facts(self._config, sys.argv)
            for page in self._pages.values():
                page.describe(facts)
        except Exception as problem:
            self._give_up(problem)

    def log(self) -> None:
        """Called every VLLM_LOG_STATS_INTERVAL, also when idle: a sign of life."""
        try:
            for page in self._pages.values():
                page.touch()
        except Exception as problem:
            self._give_up(problem)

    def _close(self) -> None:
        try:
            for page in self._pages.values():
                page.close()
        except Exception as problem:
            self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        """The first error is the last: one line, and the server goes on without the tap."""
        pages, self._pages = self._pages, {}
        for page in pages.values():
            # one that cannot be marked stays as it is
            with contextlib.suppress(Exception):
                page.give_up()
        # the server's logging is configured by others: a filter of theirs may raise
        with contextlib.suppress(Exception):
            log.error(
                "opsctl tap: off after an error, the server is not affected: %s: %s",
                type(problem).__name__,
                _one_line(problem),
            )


def _is_disable_flag(argument: str) -> bool:
    """vLLM's own parser takes underscores for dashes (vllm/utils/argparse_utils.py, 0.32.0)."""
    return argument.replace("_", "-") == _DISABLE_FLAG


def _one_line(problem: Exception) -> str:
    try:
        return " ".join(str(problem).split())[:_MAX_TOLD]
    except Exception:
        return "an error that cannot be told"
