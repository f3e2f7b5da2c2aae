"""The validator: a good template is clean, and every mutant of it is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cloudwatch_fleet import body_of, config, mutated
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.alarms.cloudwatch import build
from vllm_opsctl.alarms.cloudwatch.composite import RuleError, parse_rule
from vllm_opsctl.alarms.cloudwatch.definitions import TemplateError, read_definitions
from vllm_opsctl.alarms.cloudwatch.metric_math import MathError, parse
from vllm_opsctl.alarms.cloudwatch.template import build_template
from vllm_opsctl.alarms.cloudwatch.validate import mistakes
from vllm_opsctl.exporter.config import Config

GOOD = body_of(config())
PARAMETER = body_of(Config())

Change = Callable[[dict[str, Any]], None]


def alarm(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Properties of the first alarm whose name begins so."""
    return next(
        one["Properties"]
        for one in body["Resources"].values()
        if str(one["Properties"].get("AlarmName")).startswith(name)
    )


def window(body: dict[str, Any]) -> dict[str, Any]:
    return alarm(body, "LLMSLOWindow burn 14.4x 5m")


def joined(body: dict[str, Any]) -> dict[str, Any]:
    return alarm(body, "LLMSLOErrorBudgetBurn ticket")


def expression(text: str) -> Change:
    def change(body: dict[str, Any]) -> None:
        window(body)["Metrics"][2]["Expression"] = text

    return change


def rule(text: str) -> Change:
    def change(body: dict[str, Any]) -> None:
        joined(body)["AlarmRule"] = {"Fn::Sub": text}

    return change


def replaced(of: str, old: str, new: str) -> Change:
    def change(body: dict[str, Any]) -> None:
        properties = joined(body) if of == "AlarmRule" else window(body)["Metrics"][2]
        text = properties[of]["Fn::Sub"] if of == "AlarmRule" else properties[of]
        assert old in text
        text = text.replace(old, new, 1)
        properties[of] = {"Fn::Sub": text} if of == "AlarmRule" else text

    return change


def set_to(of: Callable[[dict[str, Any]], dict[str, Any]], key: str, value: Any) -> Change:
    def change(body: dict[str, Any]) -> None:
        of(body)[key] = value

    return change


def metric(key: str, value: Any, index: int = 0) -> Change:
    def change(body: dict[str, Any]) -> None:
        window(body)["Metrics"][index]["MetricStat"][key] = value

    return change


def all_periods(value: Any, periods: int = 1) -> Change:
    def change(body: dict[str, Any]) -> None:
        for query in window(body)["Metrics"][:2]:
            query["MetricStat"]["Period"] = value
        window(body)["EvaluationPeriods"] = window(body)["DatapointsToAlarm"] = periods

    return change


def many_metrics(body: dict[str, Any]) -> None:
    queries = window(body)["Metrics"]
    queries += [{**queries[0], "Id": f"more{i}"} for i in range(9)]


def two_watched(body: dict[str, Any]) -> None:
    window(body)["Metrics"][0]["ReturnData"] = True


def nothing_watched(body: dict[str, Any]) -> None:
    window(body)["Metrics"][2]["ReturnData"] = False


def same_id(body: dict[str, Any]) -> None:
    window(body)["Metrics"][1]["Id"] = "good"


def same_name(body: dict[str, Any]) -> None:
    window(body)["AlarmName"] = joined(body)["AlarmName"]


def default_watched(body: dict[str, Any]) -> None:
    for query in window(body)["Metrics"]:
        del query["ReturnData"]


def many_expressions(body: dict[str, Any]) -> None:
    queries = window(body)["Metrics"]
    queries += [{"Id": f"e{i}", "Expression": "bad", "ReturnData": False} for i in range(10)]


def without_child(body: dict[str, Any]) -> None:
    name = next(n for n in body["Resources"] if n.startswith("Burn3x1dAvail"))
    del body["Resources"][name]


def without_suppressor(body: dict[str, Any]) -> None:
    name = next(n for n in body["Resources"] if n.startswith("SignalLLMKVPreemption"))
    del body["Resources"][name]


def without_topic(body: dict[str, Any]) -> None:
    del body["Resources"]["TicketTopic"]


def without_wait(body: dict[str, Any]) -> None:
    del joined(body)["ActionsSuppressorWaitPeriod"]


def too_many(body: dict[str, Any]) -> None:
    body["Resources"] |= {f"More{i}": {"Type": "AWS::SNS::Topic"} for i in range(500)}


def many_children(body: dict[str, Any]) -> None:
    joined(body)["AlarmRule"] = " OR ".join(f"ALARM(a{i})" for i in range(101))


def unknown_dimension(body: dict[str, Any]) -> None:
    dimensions = window(body)["Metrics"][0]["MetricStat"]["Metric"]["Dimensions"]
    dimensions[1]["Value"] = {"Ref": "Modell"}


MUTANTS: list[tuple[Change, str]] = [
    # math
    (expression("IF(FILL(bad, 0) >= 1, bad / (good + bad / 0.001, 0)"), "missing before"),
    (expression("bad / (good + bda)"), "'bda' is no id"),
    (expression("bad / number"), "'number' is no id"),
    (expression("bad / (good + bad) ANDD 1"), "one too many"),
    (expression("RATIO(bad, good)"), "'RATIO' is no number, id or function"),
    (expression("FILL(bad)"), "FILL takes 2 arguments"),
    (expression("1 / 1000"), "a number alone is no series"),
    (replaced("Expression", ")", ""), "FILL takes 2 arguments, not 4"),
    (many_metrics, "11 metrics; 10 are allowed"),
    (many_expressions, "11 expressions; 10 are allowed"),
    (default_watched, "3 have ReturnData"),
    (two_watched, "2 have ReturnData"),
    (nothing_watched, "0 have ReturnData"),
    (same_id, "an id stands twice"),
    (lambda body: window(body)["Metrics"][0].update(Id="Good"), "'Good' is no id"),
    (lambda body: window(body)["Metrics"].clear(), "the alarm watches nothing"),
    # metrics
    (metric("Stat", "pp99"), "'pp99' is no statistic"),
    (metric("Stat", "p101"), "'p101' is no statistic"),
    (metric("Stat", "sum"), "'sum' is no statistic"),
    (metric("Period", 60), "differ; all must be one"),
    (unknown_dimension, "dimension Model: Modell is not in the template"),
    # time
    (all_periods(90), "90; 10, 20, 30 and multiples of 60"),
    (all_periods(45), "45; 10, 20, 30"),
    (all_periods(0), "0; 10, 20, 30"),
    (all_periods(300, 289), "289 times 300 s is more than 86400 s"),
    (all_periods(3600, 169), "169 times 3600 s is more than 604800 s"),
    (all_periods(86400, 8), "8 times 86400 s is more than 604800 s"),
    (set_to(window, "DatapointsToAlarm", 2), "2 of 1; 1 to 1 are possible"),
    (set_to(window, "EvaluationPeriods", 0), "0 is no number of periods"),
    # words
    (set_to(window, "ComparisonOperator", "GreaterThan"), "'GreaterThan' is none of"),
    (set_to(window, "TreatMissingData", "notbreaching"), "'notbreaching' is none of"),
    # composites
    (replaced("AlarmRule", " AND ", " ANDD "), "AlarmRule"),
    (replaced("AlarmRule", '")', '"'), "AlarmRule"),
    (replaced("AlarmRule", "((", "("), "AlarmRule"),
    (replaced("AlarmRule", "ALARM(", "ALARMED("), "AlarmRule"),
    (replaced("AlarmRule", "${Burn", "${Burm"), "is not in the template"),
    (rule("ALARM(somebody-elses)"), "'somebody-elses' is no alarm of the template"),
    (rule(""), "it ends too early"),
    (rule(" OR ".join(["ALARM(x)"] * 1000)), "11996 characters; 10240 are allowed"),
    (many_children, "101 alarms; 100 are allowed"),
    (without_child, "is not in the template"),
    (without_suppressor, "ActionsSuppressor: SignalLLMKVPreemptionThrash"),
    (set_to(joined, "ActionsSuppressor", "other"), "'other' is no alarm of the template"),
    (without_wait, "ActionsSuppressorWaitPeriod: must be given"),
    # limits
    (set_to(window, "AlarmName", "x" * 256), "256 characters; 1 to 255 are allowed"),
    (set_to(window, "AlarmName", ""), "0 characters; 1 to 255"),
    (set_to(window, "AlarmName", 'a "quoted" name'), "cannot stand in a composite's rule"),
    (same_name, "is that of"),
    (set_to(window, "AlarmDescription", "x" * 1025), "1025 characters; 1024 are allowed"),
    (set_to(window, "AlarmDescription", {"Fn::Sub": "${Nobody}"}), "Nobody is not in the"),
    (set_to(joined, "AlarmActions", [{"Ref": "TicketTopic"}] * 6), "AlarmActions: 6; 5 are"),
    (set_to(joined, "OKActions", [{"Ref": "Nobody"}]), "OKActions: Nobody is not in the template"),
    (without_topic, "AlarmActions: TicketTopic is not in the template"),
    (set_to(window, "Tags", [{"Key": str(i), "Value": "x"} for i in range(51)]), "Tags: 51; 50"),
    (too_many, "500 are allowed"),
]


@pytest.mark.parametrize("body", [GOOD, PARAMETER])
def test_a_good_template_is_clean(body: dict[str, Any]) -> None:
    assert mistakes(body) == []


@pytest.mark.parametrize(("change", "said"), MUTANTS)
def test_a_mutant_is_caught(change: Change, said: str) -> None:
    found = mistakes(mutated(GOOD, change))

    assert any(said in line for line in found), found


def as_much_as_is_allowed(body: dict[str, Any]) -> None:
    one, other = window(body), joined(body)
    one["AlarmName"] = "x" * 255
    one["AlarmDescription"] = "x" * 1024
    one["Tags"] = [{"Key": str(i), "Value": "x"} for i in range(50)]
    one["Metrics"] += [{**one["Metrics"][0], "Id": f"m{i}"} for i in range(8)]
    one["Metrics"] += [{"Id": f"e{i}", "Expression": "bad", "ReturnData": False} for i in range(9)]
    one["EvaluationPeriods"] = 288
    other["AlarmActions"] = [{"Ref": "TicketTopic"}] * 5
    text = 'ALARM("' + "x" * 255 + '")'
    other["AlarmRule"] = text + " " * (10240 - len(text))
    alarms = [name for name in body["Resources"] if name.startswith("Burn")]
    names = [body["Resources"][name]["Properties"]["AlarmName"] for name in alarms]
    more = {
        f"More{i}": {"Type": "AWS::CloudWatch::Alarm", "Properties": {**one, "AlarmName": f"a{i}"}}
        for i in range(500 - len(body["Resources"]))
    }
    body["Resources"] |= more
    page = alarm(body, "LLMSLOErrorBudgetBurn page")
    children = [*names, *(f"a{i}" for i in range(100 - len(names)))]
    page["AlarmRule"] = " OR ".join(f'ALARM("{name}")' for name in children)


def test_what_is_just_allowed_is_no_mistake() -> None:
    assert mistakes(mutated(GOOD, as_much_as_is_allowed)) == []


@given(st.data())
def test_a_lost_or_doubled_parenthesis_is_always_caught(data: st.DataObject) -> None:
    texts = {
        *(
            query["Expression"]
            for one in GOOD["Resources"].values()
            for query in one["Properties"].get("Metrics", ())
            if "Expression" in query
        ),
        *(
            one["Properties"]["AlarmRule"]["Fn::Sub"]
            for one in GOOD["Resources"].values()
            if one["Type"].endswith("CompositeAlarm")
        ),
    }
    text = data.draw(st.sampled_from(sorted(texts)))
    place = data.draw(st.sampled_from([i for i, c in enumerate(text) if c in "()"]))
    broken = text[:place] + data.draw(st.sampled_from(["", text[place] * 2])) + text[place + 1 :]

    with pytest.raises((MathError, RuleError)):
        (parse_rule if "ALARM" in text else parse)(broken)


def test_a_parameter_counts_as_long_as_it_can_be() -> None:
    def change(body: dict[str, Any]) -> None:
        name = next(n for n in body["Resources"] if n.startswith("Burn144x5m"))
        body["Resources"][name]["Properties"]["AlarmName"] = {"Fn::Sub": "x" * 156 + "${Model}"}

    assert mistakes(mutated(PARAMETER, change)) == [
        next(line for line in mistakes(mutated(PARAMETER, change)) if "256 characters" in line)
    ]


def test_a_fault_of_ours_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "mistakes", lambda body: ["Burn: AlarmRule: broken"])

    with pytest.raises(build.InvalidTemplate, match="Burn: AlarmRule: broken"):
        build.template_text(build_template(config()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "no YAML"),
        ("a: 1", "it has no Resources"),
        (
            "Resources: {A: {Type: 'AWS::CloudWatch::Alarm', Properties: {AlarmName: x}}}",
            "A: 'Metrics' is missing or wrong",
        ),
        (
            "Resources: {A: {Type: 'AWS::CloudWatch::CompositeAlarm', "
            "Properties: {AlarmName: x, AlarmRule: {'Fn::Join': []}}}}",
            "A: .* is no text",
        ),
    ],
)
def test_what_is_no_template_is_told(text: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        read_definitions(text)
