"""The sidecar's threads: whoever dies or hangs is reported and replaced."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest
from loopback import wait_for

from vllm_opsctl.exporter.workers import FIRST_DELAY_S, Life, Workers


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def until_stopped(life: Life) -> None:
    while not life.wait(0.01):
        pass


def test_a_worker_that_dies_is_reported_and_replaced(
    stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    clock, lives = Clock(), list[Life]()

    def run(life: Life) -> None:
        lives.append(life)
        if len(lives) == 1:
            raise MemoryError("a page too large")
        until_stopped(life)

    workers = Workers(stop, clock)
    workers.start("poll chat-0", run)
    wait_for(lambda: not workers.is_alive("poll chat-0"), timeout_s=10, what="its death")
    workers.look()
    before = len(lives)
    clock.now += FIRST_DELAY_S
    workers.look()
    wait_for(lambda: len(lives) == 2, timeout_s=10, what="a new one")

    assert before == 1
    assert workers.restarts["poll chat-0", "died"] == 1
    assert "a page too large" in caplog.text
    assert "poll chat-0: its worker has died" in caplog.text


def test_a_worker_that_dies_again_and_again_is_given_more_and_more_time(
    stop: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    clock, starts = Clock(), list[float]()

    def run(life: Life) -> None:
        starts.append(clock.now)
        raise ValueError

    workers = Workers(stop, clock)
    workers.start("http", run)
    with caplog.at_level(logging.CRITICAL):
        for _ in range(400):
            wait_for(lambda: not workers.is_alive("http"), timeout_s=10, what="its death")
            workers.look()
            clock.now += 0.5

    assert 5 < len(starts) < 15


def test_a_worker_that_hangs_is_replaced_and_what_it_still_does_is_known_to_be_late(
    stop: threading.Event,
) -> None:
    clock, lives = Clock(), list[Life]()
    hangs = threading.Event()

    def run(life: Life) -> None:
        lives.append(life)
        if len(lives) == 1:
            hangs.wait(10)
        until_stopped(life)

    workers = Workers(stop, clock)
    workers.start("poll chat-0", run, hangs_after_s=30.0)
    wait_for(lambda: len(lives) == 1, timeout_s=10, what="a start")
    clock.now += 29
    workers.look()
    assert not workers.restarts
    clock.now += 2
    workers.look()
    wait_for(lambda: len(lives) == 2, timeout_s=10, what="a new one")
    hangs.set()

    assert workers.restarts["poll chat-0", "hung"] == 1
    assert [life.is_over for life in lives] == [True, False]


def test_a_worker_that_always_hangs_is_replaced_ever_less_often(stop: threading.Event) -> None:
    clock, starts = Clock(), list[float]()
    released = threading.Event()

    def hang(_: Life) -> None:
        starts.append(clock.now)
        released.wait(60)

    workers = Workers(stop, clock)
    workers.start("poll chat-0", hang, hangs_after_s=30.0)
    for _ in range(24 * 60):
        clock.now += 60
        workers.look()
    released.set()

    # a day has 1440 minutes; in the end it is given half an hour each time
    assert 40 < workers.restarts["poll chat-0", "hung"] < 60


def test_a_worker_that_has_settled_is_replaced_as_soon_as_at_first(stop: threading.Event) -> None:
    clock, lives = Clock(), list[Life]()
    works, released = threading.Event(), threading.Event()

    def run(life: Life) -> None:
        lives.append(life)
        if len(lives) == 2:
            works.wait(60)
            life.wait(0)
        released.wait(60)

    workers = Workers(stop, clock)
    workers.start("poll chat-0", run, hangs_after_s=30.0)
    clock.now += 31
    workers.look()
    wait_for(lambda: len(lives) == 2, timeout_s=10, what="a new one")
    clock.now += 59
    workers.look()
    assert workers.restarts["poll chat-0", "hung"] == 1, "it hung once, and is given twice as long"
    clock.now += 1
    works.set()
    wait_for(lambda: lives[1].busy_since == clock.now, timeout_s=10, what="a sign of life")
    workers.look()
    clock.now += 31
    workers.look()
    released.set()

    assert workers.restarts["poll chat-0", "hung"] == 2


def test_to_wait_is_not_to_hang(stop: threading.Event) -> None:
    clock = Clock()
    life = Life(stop, clock)
    waits = threading.Thread(target=life.wait, args=(600.0,), daemon=True)
    waits.start()
    wait_for(lambda: life.busy_since > clock.now, timeout_s=10, what="the wait")
    stop.set()
    waits.join(10)

    assert life.busy_since <= clock.now


def test_a_thread_that_cannot_be_started_is_tried_again(
    stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, lives = Clock(), list[Life]()

    def run(life: Life) -> None:
        lives.append(life)
        until_stopped(life)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    workers = Workers(stop, clock)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        workers.start("poll chat-0", run)
    workers.look()
    clock.now += FIRST_DELAY_S
    workers.look()
    wait_for(lambda: bool(lives), timeout_s=10, what="a start")


def test_what_was_replaced_is_on_the_page(stop: threading.Event) -> None:
    workers = Workers(stop)
    workers.start("http", until_stopped)
    workers.restarts["http", "died"] = 3
    (family,) = workers.collect()

    assert {tuple(s.labels.values()): s.value for s in family.samples} == {
        ("http", "died"): 3,
        ("http", "hung"): 0,
    }
