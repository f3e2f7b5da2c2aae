"""A service's identity: what may be a free label, and which series carry it."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, PlatformCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from vllm_opsctl.exporter import identity, matchers
from vllm_opsctl.exporter.config import Config
from vllm_opsctl.exporter.config_load import load_config
from vllm_opsctl.exporter.identity import RESERVED_LABELS, Identity, identity_of
from vllm_opsctl.exporter.matchers import Matcher, example_labels, matchers_in
from vllm_opsctl.exporter.sinks.losses import LossCollector
from vllm_opsctl.exporter.sinks.prometheus import EngineCollector, LabelledCollector


def config(**exporter: Any) -> Config:
    return Config.model_validate({"service": {"name": "chat"}, "exporter": exporter})


def test_the_identity_is_the_service_and_the_free_labels_in_order() -> None:
    found = identity_of(config(labels={"environment": "prod", "cluster": "eu"}))

    assert found.labels() == {"service": "chat", "cluster": "eu", "environment": "prod"}
    assert str(found) == "chat (cluster eu, environment prod)"


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ({"model": "x"}, "'model' is already a label of series or alerts"),
        ({"service": "x"}, "'service' is already a label"),
        ({"my-cluster": "eu"}, "'my-cluster' is not a label name"),
        ({"__x": "eu"}, "'__x' is not a label name"),
        ({"cluster": ""}, "cluster: empty"),
        ({"cluster": 8}, "cluster: put the value in quotes"),
        ({"x" * 65: "eu"}, "is too long; use at most 64 characters"),
        ({"cluster": "{{ .Labels.x }}"}, "cluster: '{{ .Labels.x }}' cannot be the value"),
        ({"cluster": "${AWS::Region}"}, "cannot be the value"),
        ({"cluster": "a\nb"}, "cannot be the value"),
        ({"cluster": "x" * 129}, "cannot be the value"),
        ({f"label_{n}": "x" for n in range(11)}, "11 labels; at most 10 are allowed"),
    ],
)
def test_a_label_that_cannot_be_everywhere_is_refused(labels: dict[str, object], line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(labels=labels)

    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("ALARMS__MATCH", '{cluster="eu"}', 'cluster="eu"'),
        ("ALARMS__MATCH", 'cluster="eu"', 'cluster="eu"'),
        ("EXPORTER__LABELS__CLUSTER", "010", "010"),
        ("EXPORTER__LABELS__CLUSTER", "1.10", "1.10"),
        ("SERVICE__NAME", "12:30", "12:30"),
    ],
)
def test_a_text_in_the_environment_is_taken_as_it_is(name: str, text: str, read: str) -> None:
    loaded = load_config(None, {f"OPSCTL_{name}": text}).config

    assert read in (loaded.alarms.match, loaded.service.name, *loaded.exporter.labels.values())


def test_every_sample_of_the_page_carries_the_identity() -> None:
    registry = CollectorRegistry()
    registry.register(EngineCollector(list, config().objectives))
    registry.register(LossCollector([]))
    PlatformCollector(registry=registry)
    page = CollectorRegistry()
    page.register(LabelledCollector(registry.collect, Identity("chat", (("cluster", "eu"),))))

    for _ in range(2):
        text = generate_latest(page).decode()
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        assert len(samples) > 5
        for sample in samples:
            assert sample.labels["service"] == "chat"
            assert sample.labels["cluster"] == "eu"
    inner = [sample for family in registry.collect() for sample in family.samples]
    assert all("service" not in sample.labels for sample in inner), "a cached family was changed"


def test_no_label_of_a_family_may_be_a_free_label() -> None:
    """Else a sample would lose one of the two."""
    families = EngineCollector(list, config().objectives).collect()
    names = {label for family in families for sample in family.samples for label in sample.labels}

    assert names <= RESERVED_LABELS


def test_the_examples_are_right() -> None:
    assert doctest.testmod(identity).failed == 0
    assert doctest.testmod(matchers).failed == 0


# -- matchers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{cluster="eu",namespace="llm"}', 'cluster="eu",namespace="llm"'),
        ("cluster = 'eu' , job=~`vllm-.*`", 'cluster="eu",job=~"vllm-.*"'),
        ('{pod!~"test-.*",env!="it\'s"}', 'pod!~"test-.*",env!="it\\x27s"'),
        ('{job="a",}', 'job="a"'),
        (r'{job="a\056b\u00e9"}', 'job="a.bé"'),
        (r'{job=~"\\pL+[[:digit:]]"}', r'job=~"\\pL+[[:digit:]]"'),
        ('{model_name!="canary"}', 'model_name!="canary"'),
    ],
)
def test_matchers_have_one_form(text: str, kept: str) -> None:
    found = Config.model_validate({"alarms": {"match": text}})

    assert found.alarms.match == kept


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{cluster=eu}", "cannot be read from 'cluster=eu' on; write label matchers like"),
        ("{}", "no matcher in it"),
        ('{cluster="eu"', "has text beside its braces, or one of them only"),
        ('up{cluster="eu"}', "has text beside its braces"),
        ({"cluster": "eu"}, "put it in quotes: match:"),
        ('{pod=~"chat-(?!canary).*"}', "pod: Prometheus has no '(?!' in patterns"),
        ('{pod=~"a++"}', "Prometheus has no '++' in patterns"),
        ('{pod=~"a{1001}"}', "repeats at most 1000 times"),
        (r'{pod="a\q"}', "is not an escape in PromQL"),
        ('{model_name="chat"}', "model_name is not on every series of a server"),
        ('{engine=~"0|1"}', "engine is not on every series of a server"),
        ('{cluster="eu" namespace="x"}', "cannot be read from"),
        ('{__name__="up"}', "__name__ cannot be matched"),
        ('{job=~"a("}', "'a(' is not a pattern"),
        ('{job="{{ x }}"}', "must not hold control characters"),
    ],
)
def test_what_is_no_matcher_is_refused_with_an_example(text: object, line: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"alarms": {"match": text}})

    assert line in str(caught.value)


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text("ab\"'\\x ", max_size=9))
)
def test_written_matchers_read_back(labels: dict[str, str]) -> None:
    written = [Matcher(name, "=", value) for name, value in labels.items()]

    if written:
        read = matchers_in(",".join(map(str, written)))
        # an apostrophe is written as PromQL's escape
        assert [one.label for one in read] == list(labels)
        assert [one.value for one in read] == [one.value for one in written]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('cluster="eu"', {"cluster": "eu"}),
        ('cluster=~"eu|us",cluster!="eu"', {"cluster": "us"}),
        ('namespace=~"llm-.*",env!~"test.*"', {"namespace": "llm-"}),
        ('env!=""', {"env": "other"}),
        ('job=~"[a-c]{3}x"', None),
    ],
)
def test_an_example_of_what_is_matched(text: str, labels: dict[str, str] | None) -> None:
    assert example_labels(matchers_in(text)) == labels
