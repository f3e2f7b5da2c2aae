"""The alarms of a built template on synthetic months: what goes off, when, and what stays silent."""

from __future__ import annotations

import pytest
from cloudwatch_fleet import DAY, HOUR, MINUTE, Fleet, config

from vllm_opsctl.alarms.burn import ROWS, Row, time_to_fire

PAGE, TICKET = "LLMSLOErrorBudgetBurn page", "LLMSLOErrorBudgetBurn ticket"


def fleet_after(history_s: float, *, per_minute: float = 600.0) -> Fleet:
    """A fleet with a spotless past, judged for its last ten minutes."""
    fleet = Fleet(config())
    fleet.publish(0, history_s, per_minute=per_minute)
    assert fleet.notified(history_s - 10 * MINUTE, history_s) == []
    return fleet


def test_a_total_outage_pages_in_its_first_minutes() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(DAY, DAY + HOUR, bad=1.0)

    found = fleet.notified(DAY, DAY + HOUR)

    assert found[0] == (MINUTE, f"{PAGE}/availability")
    # at 95 % the hard floor is first: more than half bad in both of two five minutes
    assert (8 * MINUTE, f"{PAGE}/ttft") in found
    assert len(found) == 2, "one page an objective, and no ticket beside it"


@pytest.mark.parametrize("row", ROWS)
def test_a_row_goes_off_when_burn_arithmetic_says(row: Row) -> None:
    ratio = 1.05 * row.burn * 0.001
    history = row.long_s + HOUR
    fleet = Fleet(config())
    fleet.publish(0, history)
    fleet.notified(history - 2 * HOUR, history)
    said = time_to_fire(row, 0.999, ratio)
    assert said is not None
    # CloudWatch alarms have no `for`; what counts more than a day is judged at full hours
    wanted = said - row.for_s
    slack = HOUR if row.long_s > DAY else MINUTE
    end = history + row.long_s + 2 * HOUR
    fleet.publish(history, end, bad={"availability": ratio})

    windows = [a for a in fleet.definitions.metric_alarms if f" {row.burn:g}x " in a.name]
    fleet.notified(history, end)

    assert len(windows) == 4, "two windows of two objectives"
    went = max(
        next(x.t for x in fleet.timeline.transitions if x.alarm == w.name and x.after == "ALARM")
        for w in windows
        if "/availability/" in w.name
    )
    assert wanted <= went - history <= wanted + slack + MINUTE


def test_a_slow_burn_opens_a_ticket_and_pages_nobody() -> None:
    slow = [{"name": "availability", "sli": "availability", "target": "99.7%"}]
    fleet = Fleet(config(objectives=slow))
    fleet.publish(0, 4 * DAY)
    fleet.notified(4 * DAY - HOUR, 4 * DAY)
    fleet.publish(4 * DAY, 5 * DAY, bad=0.01)

    ((after_s, alarm),) = fleet.notified(4 * DAY, 5 * DAY)

    # 1 % is 3.3 times the budget: over a day it is 3 times after 21.6 hours; tickets wait two minutes
    assert alarm == f"{TICKET}/availability"
    assert 2 * MINUTE <= after_s - 21.6 * HOUR <= 4 * MINUTE


def test_healthy_and_busy_is_silent() -> None:
    fleet = fleet_after(DAY, per_minute=3000.0)
    fleet.publish(
        DAY,
        2 * DAY,
        per_minute=3000.0,
        bad={"availability": 0.0005, "ttft": 0.02},
        gauges={"RequestsRunning": 64.0, "RequestsWaiting": 5.0, "KVCacheUsage": 93.0},
        preempted=1.0,
    )

    assert fleet.notified(DAY, 2 * DAY) == []


def test_no_traffic_is_silent() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(
        DAY, 2 * DAY, per_minute=0.0, gauges={"RequestsRunning": 0.0, "KVCacheUsage": 0.0}
    )

    assert fleet.notified(DAY, 2 * DAY) == []


def test_a_short_blip_pages_nobody() -> None:
    fleet = fleet_after(DAY)
    # half a minute of nothing but errors is 0.8 % of the hour; 1.44 % would page
    fleet.publish(DAY, DAY + MINUTE, bad={"availability": 0.5, "ttft": 1.0})
    fleet.publish(DAY + MINUTE, DAY + HOUR)

    assert fleet.notified(DAY, DAY + HOUR) == []


def test_one_failure_at_night_pages_nobody_and_an_outage_still_does() -> None:
    fleet = fleet_after(DAY, per_minute=0.5)
    fleet.publish(DAY, DAY + 2 * MINUTE, per_minute=0.5, bad=1.0)
    fleet.publish(DAY + 2 * MINUTE, DAY + HOUR, per_minute=0.5)
    assert fleet.notified(DAY, DAY + HOUR) == []

    fleet.publish(DAY + HOUR, DAY + 2 * HOUR, per_minute=0.5, bad=1.0)
    found = fleet.notified(DAY + HOUR, DAY + 2 * HOUR)

    # five bad events; at half a request a minute, the earlier one included
    assert found[0] == (8 * MINUTE, f"{PAGE}/availability")


def test_a_dead_sidecar_pages_once_and_by_its_heartbeat() -> None:
    fleet = fleet_after(DAY)

    assert fleet.notified(DAY, DAY + HOUR) == [(3 * MINUTE, "LLMSidecarsDown page")]


@pytest.mark.parametrize(("late_s", "gap"), [(150.0, 0), (90.0, 1), (60.0, 2)])
def test_late_data_and_a_sidecar_that_restarts_page_nobody(late_s: float, gap: int) -> None:
    fleet = Fleet(config(), late_s=late_s)
    fleet.publish(0, DAY)
    fleet.publish(DAY + gap * MINUTE, DAY + HOUR)
    fleet.timeline.run(DAY - HOUR, DAY + HOUR)

    assert list(fleet.timeline.went_off()) == []


def test_a_model_that_vanished_pages_while_the_sidecar_lives() -> None:
    fleet = fleet_after(DAY)
    gone = ("RequestsRunning", "RequestsWaiting", "KVCacheUsage", "Preemptions")
    fleet.publish(DAY, DAY + HOUR, per_minute=0.0, silent=(*gone, "GoodEvents", "BadEvents"))

    assert fleet.notified(DAY, DAY + HOUR) == [(4 * MINUTE, "LLMModelVanished page/-")]


def test_an_outage_that_ends_in_silence_is_told_by_the_heartbeat_before_its_page_ends() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(DAY, DAY + 10 * MINUTE, bad=1.0)
    fleet.notified(DAY, DAY + 10 * MINUTE)

    silent = DAY + 10 * MINUTE
    found = fleet.notified(silent, DAY + 2 * HOUR)

    assert found[0] == (3 * MINUTE, "LLMSidecarsDown page")
    ended = next(
        x.t
        for x in fleet.timeline.transitions
        if x.alarm.startswith(f"{PAGE}/") and x.t > silent and x.after == "OK"
    )
    assert ended > silent + 3 * MINUTE
    # the budget that is gone is still told when the page has ended
    assert [alarm for _, alarm in found[1:]] == [f"{TICKET}/availability"]


def test_a_frozen_engine_pages_though_its_latencies_look_met() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(DAY, DAY + HOUR, per_minute=0.0, gauges={"RequestsWaiting": 4.0})

    assert fleet.notified(DAY, DAY + HOUR) == [(5 * MINUTE, "LLMEngineStalled page/-")]


BUSY = {"RequestsRunning": 8.0, "RequestsWaiting": 20.0, "KVCacheUsage": 99.0}


def test_a_queue_and_a_full_cache_are_tickets() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(DAY, DAY + HOUR, gauges=BUSY)

    # both wait two minutes for a root cause's alarm
    assert fleet.notified(DAY, DAY + HOUR) == [
        (14 * MINUTE, "LLMQueueOverload ticket/-"),
        (27 * MINUTE, "LLMKVCacheFull ticket/-"),
    ]


def test_preemptions_mute_their_symptoms_tickets() -> None:
    fleet = fleet_after(2 * DAY)
    slow = {"ttft": 0.16}
    fleet.publish(2 * DAY, 3 * DAY, gauges=BUSY, preempted=120.0, bad=slow)

    found = fleet.notified(2 * DAY, 3 * DAY)

    # five or more in each of two times five minutes
    assert found == [(6 * MINUTE, "LLMKVPreemptionThrash ticket/-")]

    # when they end, what still burns is told two minutes later
    fleet.publish(3 * DAY, 3 * DAY + HOUR, gauges={"KVCacheUsage": 60.0}, bad=slow)
    after = fleet.notified(3 * DAY, 3 * DAY + HOUR)

    assert [alarm for _, alarm in after] == [f"{TICKET}/ttft"]
    assert 2 * MINUTE <= after[0][0] <= 15 * MINUTE


def test_preemptions_never_mute_a_page() -> None:
    fleet = fleet_after(DAY)
    fleet.publish(DAY, DAY + HOUR, gauges=BUSY, preempted=120.0, bad={"ttft": 0.9})

    found = [alarm for _, alarm in fleet.notified(DAY, DAY + HOUR)]

    assert f"{PAGE}/ttft" in found
    assert f"{TICKET}/ttft" not in found
