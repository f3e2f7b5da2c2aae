"""Real incidents, recorded, on the alarms of the default configuration: what would have gone off."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from cloudwatch_fleet import config, text_of
from commands import Opsctl
from paths import RECORDINGS

from vllm_opsctl.alarms.cloudwatch.rehearsal import Rehearsal, rehearse
from vllm_opsctl.errors import InputFileError
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.recording import read_recording
from vllm_opsctl.exporter.yaml_text import read_yaml

MINUTE_A_SECOND = Fraction(1, 60)
DEFAULT = Config()
TRUTH = read_yaml((RECORDINGS / "manifest.yaml").read_text())


def rehearsed(name: str, one: Config = DEFAULT, scale: Fraction = MINUTE_A_SECOND) -> Rehearsal:
    observations = read_recording(RECORDINGS / f"{name}.jsonl.gz")
    return rehearse(one, text_of(one), observations, scale=scale)


def went_off(name: str) -> set[str]:
    """Alarms without service and model."""
    return {one.alarm.replace("/vllm/", "/").rsplit("/", 1)[0] for one in rehearsed(name).notified}


PAGE = "LLMSLOErrorBudgetBurn page"


@pytest.mark.parametrize(
    ("recording", "expected"),
    [
        ("baseline", set()),
        ("engine-dead", {"LLMSidecarsDown page/-"}),
        ("process-restart", {"LLMSidecarsDown page/-"}),
        ("engine-hung", {f"{PAGE}/e2e", f"{PAGE}/ttft", f"{PAGE}/queue-time"}),
        (
            "queue-overload",
            {
                f"{PAGE}/e2e",
                f"{PAGE}/ttft",
                f"{PAGE}/queue-time",
                "LLMQueueOverload ticket/-",
            },
        ),
        (
            "kv-preemption-thrash",
            {
                f"{PAGE}/e2e",
                f"{PAGE}/ttft",
                f"{PAGE}/queue-time",
                "LLMKVPreemptionThrash ticket/-",
            },
        ),
        # clients that hang up and requests that are too long are counted nowhere
        ("client-abort-storm", set()),
        ("context-length-rejections", set()),
    ],
)
def test_what_goes_off_in_a_real_incident(recording: str, expected: set[str]) -> None:
    assert went_off(recording) == expected


@pytest.mark.parametrize("recording", ["engine-dead", "engine-hung", "kv-preemption-thrash"])
def test_nothing_goes_off_before_the_incident(recording: str) -> None:
    incident = TRUTH[recording]["phase_starts"]["incident"]

    assert all(one.t > incident for one in rehearsed(recording).notified)


def test_a_dead_engine_pages_three_minutes_after_its_last_page() -> None:
    observations = read_recording(RECORDINGS / "engine-dead.jsonl.gz")
    last = max(one.t for one in observations if one.kind == "metrics")
    (page,) = rehearsed("engine-dead").notified

    assert page.notify == "page"
    assert 3.0 <= page.t - last <= 5.0


def test_untold_a_minute_of_recording_is_one_interval() -> None:
    found = rehearsed("queue-overload", scale=Fraction(1)).notified

    # nothing was before it, so its own minute is all that burn rates know
    assert {one.after_s for one in found} == {60.0}
    assert {one.alarm.partition("/")[0] for one in found} == {PAGE}


def test_a_sidecar_that_sends_every_two_minutes_is_judged_so() -> None:
    slow = Config.model_validate({"exporter": {"cloudwatch": {"interval": "2m"}}})

    (page,) = rehearsed("engine-dead", slow).notified

    # the last heartbeat is of minutes 14 and 15; three times two minutes without one end at 21
    assert page.alarm.startswith("LLMSidecarsDown page/")
    assert page.after_s == 21.0


def test_models_without_an_alarm_are_told() -> None:
    one = config(targets=[{"name": "a", "url": "http://a:8000", "models": ["other"]}])

    found = rehearsed("baseline", one)

    assert found.models == found.strangers == ("tiny",)
    assert {alarm.alarm for alarm in found.notified} == {"LLMModelVanished page/chat/-/other"}


def test_a_recording_without_a_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(
        '{"t": 1.0, "target": "a", "kind": "error", "error": "refused", "detail": "x"}\n'
    )

    with pytest.raises(InputFileError, match="has no page of metrics"):
        rehearse(DEFAULT, text_of(DEFAULT), read_recording(path))


# -- the command -----------------------------------------------------------------------------------

THRASH = str(RECORDINGS / "kv-preemption-thrash.jsonl.gz")


def test_the_command_tells_people(opsctl: Opsctl, tmp_path: Path) -> None:
    answer = opsctl.run("alarms", "test", "--recording", THRASH, "--scale", "1/60", cwd=tmp_path)

    assert answer.returncode == 0
    assert "28.0 s  ticket  LLMKVPreemptionThrash/vllm/-/tiny" in answer.stdout
    assert "Requests of tiny preempt each other, the KV cache is full." in answer.stdout
    assert (
        answer.stdout.splitlines()[-1] == "4 pages and 1 ticket in 52 s, 1 s of it told as a minute"
    )


def test_the_command_tells_programs(opsctl: Opsctl, tmp_path: Path) -> None:
    answer = opsctl.run(
        *("alarms", "test", "--recording", THRASH, "--scale", "1/60", "-o", "json"), cwd=tmp_path
    )

    found = json.loads(answer.stdout)
    assert found["scale"] == "1/60"
    assert found["models"] == ["tiny"]
    (ticket,) = [one for one in found["alarms"] if one["notify"] == "ticket"]
    assert ticket["alarm"] == "LLMKVPreemptionThrash ticket/vllm/-/tiny"
    assert ticket["topic"] == "TicketTopic"
    assert ticket["after_s"] == 28.0
    assert "Diagnose: opsctl diagnose --sidecar" in ticket["description"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--recording", THRASH, "--no-listen"), "--listen belongs to a drill"),
        (("--recording", THRASH, "--notify", "ticket"), "--notify belongs to a drill"),
        (("--scale", "1/60"), "--scale belongs to --recording"),
        (("--recording", "nobody.jsonl"), "nobody.jsonl: no such file"),
        (("--recording", THRASH, "--scale", "2"), "'2' is not above 0 and up to 1"),
    ],
)
def test_mistakes_of_the_command(
    opsctl: Opsctl, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    answer = opsctl.run("alarms", "test", *arguments, cwd=tmp_path)

    assert answer.returncode == 64
    assert said in answer.stderr
