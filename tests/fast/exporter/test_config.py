"""The configuration: every mistake is one line that names origin, key, what is wrong and what is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_opsctl.errors import ConfigError
from vllm_opsctl.exporter.config import Config, Objective, Target
from vllm_opsctl.exporter.config_load import api_key, load_config, threshold_warnings


def problems_of(tmp_path: Path, text: str, **environment: str) -> list[str]:
    path = tmp_path / "opsctl.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environment)
    return [line.replace(str(path), "opsctl.yaml") for line in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("servce: {name: x}", "opsctl.yaml: servce: unknown key; did you mean 'service'?"),
        (
            "targets: [{name: a, url: http://a:8000, api_key_emv: X}]",
            "opsctl.yaml: targets[0].api_key_emv: unknown key; did you mean 'api_key_env'?",
        ),
        (
            "targets: ['ftp://a']",
            "opsctl.yaml: targets[0].url: 'ftp://a' is not a server's URL; write http://host:8000",
        ),
        (
            "targets: [{url: 'http://user:hunter2@a'}]",
            "opsctl.yaml: targets[0].url: the URL holds credentials; "
            "name them with api_key_env or api_key_file instead",
        ),
        (
            "targets: [a:8000, a:8000]",
            "opsctl.yaml: targets: the name 'a:8000' stands twice; names must differ",
        ),
        (
            "objectives: [{name: t, sli: time_to_first_tokn, threshold: 1s, target: 95%}]",
            "opsctl.yaml: objectives[0].sli: 'time_to_first_tokn' is not one of availability, "
            "time_to_first_token, time_to_first_token_cached, inter_token_latency, e2e_latency, queue_time; "
            "did you mean 'time_to_first_token'?",
        ),
        (
            "objectives: [{name: t, sli: queue_time, target: 95%}]",
            "opsctl.yaml: objectives[0]: queue_time needs a threshold, e.g. threshold: 1s",
        ),
        (
            "objectives: [{name: t, sli: availability, target: 120}]",
            "opsctl.yaml: objectives[0].target: 120 is not within 0 and 1; write 99.9% or 0.999",
        ),
        (
            "exporter: {poll_interval: fast}",
            "opsctl.yaml: exporter.poll_interval: 'fast' is not a duration; "
            "write it like 500ms, 10s, 30m or 1h",
        ),
        (
            "exporter: {listen: '9836'}",
            "opsctl.yaml: exporter.listen: '9836' is not an address; "
            "write host:port, e.g. 0.0.0.0:9836",
        ),
        (
            "targets: [{url: a:8000, api_key_env: sk-hunter-2}]",
            "opsctl.yaml: targets[0].api_key_env: not the name of an environment variable; "
            "put the key there, not here",
        ),
        (
            "service: {name: a}\nservice: {name: b}",
            "opsctl.yaml:2: not YAML: the key 'service' stands twice; check indentation and quotes",
        ),
        (
            "objectives: [{name: t, sli: availability, target: null}]",
            "opsctl.yaml: objectives[0].target: None is not a ratio; write 99.9% or 0.999",
        ),
        ("- a", "opsctl.yaml: expected keys such as targets:, got list"),
        (
            "service: {name: [\n",
            "opsctl.yaml:2: not YAML: expected the node content, but found '<stream end>'; "
            "check indentation and quotes",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    found = problems_of(tmp_path, text)

    assert found == [line]


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    found = problems_of(tmp_path, "servce: {}\nexporter: {timeout: soon}\n")

    assert len(found) == 2


def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path) -> None:
    (line,) = problems_of(tmp_path, "{}", OPSCTL_EXPORTER__TIMEOUT="soon")

    assert line.startswith("environment OPSCTL_EXPORTER__TIMEOUT: exporter.timeout: 'soon'")


def test_the_environment_overrides_every_key() -> None:
    loaded = load_config(
        None,
        {
            "OPSCTL_TARGETS": "http://a:8000, b:9000/v1",
            "OPSCTL_EXPORTER__FLIGHT_RECORDER__KEEP": "10m",
            "OPSCTL_SERVICE__NAME": "shop",
        },
    )

    assert [(t.name, t.url) for t in loaded.config.targets] == [
        ("a:8000", "http://a:8000"),
        ("b:9000", "http://b:9000"),
    ]
    assert loaded.config.exporter.flight_recorder.keep == 600
    assert loaded.config.service.name == "shop"
    assert loaded.origins["service.name"] == "environment OPSCTL_SERVICE__NAME"


def test_a_misspelt_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"OPSCTL_EXPORTR__LISTEN: no such key; did you mean"):
        load_config(None, {"OPSCTL_EXPORTR__LISTEN": "x"})


def test_what_kubernetes_sets_for_a_service_called_opsctl_is_ignored() -> None:
    assert load_config(None, {"OPSCTL_PORT": "tcp://10.0.0.1:9836"}).config.targets == ()


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opsctl config init writes one"):
        load_config(tmp_path / "none.yaml", {})


def test_secrets_come_from_where_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    by_env = Target(name="a", url="http://a", api_key_env="KEY")
    by_file = Target(name="a", url="http://a", api_key_file=str(tmp_path / "key"))

    assert api_key(by_env, {"KEY": "from-env"}) == "from-env"
    assert api_key(by_file, {}) == "from-file"
    with pytest.raises(ConfigError, match="the variable KEY is not set"):
        api_key(by_env, {})


def test_the_default_objectives_are_counted_exactly() -> None:
    assert threshold_warnings(Config()) == []


def test_a_threshold_between_two_bounds_names_them_and_the_error() -> None:
    objective = Objective(name="ttft", sli="time_to_first_token", threshold=0.18, target=0.95)
    (warning,) = threshold_warnings(Config(objectives=(objective,)))

    assert "0.18 s is no bucket bound of vLLM; it lies between 0.1 s and 0.25 s" in warning
    assert "Events between 0.1 s and 0.18 s will be counted as bad" in warning
    assert "--custom-histogram-buckets" in warning


def test_a_looser_threshold_is_looser_in_the_rules_of_vllms_own_metrics_alone() -> None:
    objective = Objective(
        name="e2e", sli="e2e_latency", threshold=1.4, target=0.99, bucket_policy="looser"
    )
    (warning,) = threshold_warnings(Config(objectives=(objective,)))

    assert "1.4 s is no bucket bound of vLLM. With bucket_policy: looser" in warning
    assert "rules --from vllm count events up to 1.5 s as good" in warning
    assert "the sidecar those beyond 1 s as bad" in warning
    assert "use 1.5s for both" in warning


def test_a_threshold_below_the_first_bound_can_never_be_met() -> None:
    objective = Objective(name="q", sli="queue_time", threshold=0.05, target=0.95)
    (warning,) = threshold_warnings(Config(objectives=(objective,)))

    assert "below vLLM's first bucket bound (0.3 s): every event would count as bad" in warning
