"""The flight recorder gives back what went in, within its time and its memory."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from paths import RECORDINGS

from vllm_opsctl.exporter.flight_recorder import CHUNK_OBSERVATIONS, FlightRecorder
from vllm_opsctl.exporter.observation import Observation, error, metrics
from vllm_opsctl.exporter.recording import read_recording

pages = st.lists(st.text(st.characters(codec="utf-8"), max_size=30), max_size=6).map("\n".join)
observations = st.one_of(
    pages.map(lambda text: metrics(0.0, "chat-0", text)),
    st.just(error(0.0, "chat-0", "timeout", "no answer")),
    st.just(Observation(0.0, "chat-0", "health", {"status": 200})),
)


def recorder(keep_s: float = 1800, max_bytes: int = 2**26) -> FlightRecorder:
    return FlightRecorder("chat-0", keep_s=keep_s, max_bytes=max_bytes)


@given(st.lists(observations, max_size=2 * CHUNK_OBSERVATIONS + 5))
def test_what_comes_out_is_what_went_in(shapes: list[Observation]) -> None:
    timed = [Observation(float(i), o.target, o.kind, o.data) for i, o in enumerate(shapes)]
    held = recorder()
    for observation in timed:
        held.append(observation)

    assert list(held.read()) == timed


def test_a_real_incident_comes_out_whole_and_small() -> None:
    incident = read_recording(RECORDINGS / "kv-preemption-thrash.jsonl.gz")
    held = FlightRecorder(incident[0].target, keep_s=1800, max_bytes=2**26)
    for observation in incident:
        held.append(observation)

    assert list(held.read()) == incident
    raw = sum(len(o.text) for o in incident if o.kind == "metrics")
    assert held.size < raw / 20


def test_a_part_can_be_read() -> None:
    held = recorder()
    for t in range(200):
        held.append(metrics(float(t), "chat-0", f"page {t}"))

    assert [o.t for o in held.read(50, 120)] == [float(t) for t in range(50, 121)]


def test_what_is_too_old_goes() -> None:
    held = recorder(keep_s=300)
    for t in range(2000):
        held.append(metrics(float(t), "chat-0", f"page {t}"))
    times = [o.t for o in held.read()]

    assert times[-1] == 1999
    assert 1999 - 300 - CHUNK_OBSERVATIONS <= times[0] <= 1999 - 300
    assert all(b - a == 1 for a, b in pairwise(times))


def test_pages_of_noise_stay_within_the_memory_bound() -> None:
    noise = random.Random(1)  # noqa: S311 - the same noise in every run
    bound = 200_000
    held = recorder(max_bytes=bound)
    for t in range(1000):
        held.append(metrics(float(t), "chat-0", noise.randbytes(1000).hex()))

    assert held.size <= bound
    assert list(held.read())[-1].t == 999


def test_pages_of_changing_length_are_kept_whole() -> None:
    held = recorder()
    held.append(metrics(1.0, "chat-0", "a\nb"))
    held.append(metrics(2.0, "chat-0", "a\nb\nc"))
    held.append(metrics(3.0, "chat-0", "x\nb\nc"))

    assert [o.text for o in held.read()] == ["a\nb", "a\nb\nc", "x\nb\nc"]
