"""The failure modes as data: checked on load, each mistake named by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vllm_opsctl.errors import RunbookError
from vllm_opsctl.runbooks.conditions import Condition, activation_of, fill_template
from vllm_opsctl.runbooks.features import feature_groups, registry
from vllm_opsctl.runbooks.load import load_library, shipped_library

MINIMAL = {
    "id": "mine",
    "title": "Mine",
    "severity": "high",
    "area": "capacity",
    "users": "It is slow.",
    "discriminators": {"queue-overload": "there it is faster"},
    "signature": {
        "require": [{"when": "queue.waiting_avg >= 1.0", "say": "{queue.waiting_avg} wait"}]
    },
    "actions": [{"kind": "check", "text": "Look."}],
}


def write(folder: Path, **changes: object) -> Path:
    (folder / "mine.yaml").write_text(yaml.safe_dump({**MINIMAL, **changes}))
    return folder


def test_every_shipped_condition_can_be_evaluated() -> None:
    for condition in shipped_library().conditions.values():
        condition.check()


def test_a_users_failure_mode_joins_the_shipped_ones(tmp_path: Path) -> None:
    library = load_library([write(tmp_path)])

    assert "mine" in library.modes
    assert library.modes.keys() >= shipped_library().modes.keys()


def test_a_users_failure_mode_replaces_a_shipped_one_of_the_same_id(tmp_path: Path) -> None:
    library = load_library([write(tmp_path, id="queue-overload")])

    assert library.modes["queue-overload"].title == "Mine"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"signature": {"require": [{"when": "queue.waiting_av >= 1.0", "say": "x"}]}},
            "unknown feature 'queue.waiting_av'; did you mean queue.waiting_avg?",
        ),
        (
            {"signature": {"require": [{"when": "queue.waiting_avg >=", "say": "x"}]}},
            "is not CEL (at 1:",
        ),
        (
            {"signature": {"require": [{"when": "queu.waiting_avg >= 1.0", "say": "x"}]}},
            "unknown feature 'queu.waiting_avg'; did you mean queue.waiting_avg?",
        ),
        (
            {"signature": {"require": [{"when": "waiting_avg >= 1.0", "say": "x"}]}},
            "unknown feature 'waiting_avg'; did you mean queue.waiting_avg?",
        ),
        (
            {"signature": {"require": [{"when": "abs(queue.waiting_avg) >= 1.0", "say": "x"}]}},
            "cannot be evaluated (at 1:4: undeclared reference to 'abs')",
        ),
        (
            {"signature": {"require": [{"when": "endpoint.error > 3.0", "say": "x"}]}},
            "cannot be evaluated",
        ),
        (
            {"signature": {"require": [{"when": "queue['waiting_av'] > 1.0", "say": "x"}]}},
            "reads what is no feature",
        ),
        (
            {"signature": {"require": [{"when": "queue.waiting_avg", "say": "x"}]}},
            "is not a yes-or-no question",
        ),
        (
            {"signature": {"require": [{"when": "true", "say": "{kv.usage_mx}"}]}},
            "did you mean kv.usage_max?",
        ),
        ({"causes": ["ttft-brun"]}, "no failure mode or symptom 'ttft-brun'"),
        ({"discriminators": {"nobody": "it is not"}}, "no failure mode 'nobody'"),
        ({"mechanisms": ["magic"]}, "no 'magic' in mechanisms.yaml"),
        (
            {"actions": [{"kind": "mitigate", "text": "Restart."}]},
            "a mitigation needs helps_when and seen_by",
        ),
        ({"severty": "high"}, "did you mean severity?"),
        ({"actions": [{"kind": "fix", "text": "Set --no-such-flag."}]}, "not in flags.yaml"),
    ],
)
def test_a_mistake_names_the_file_and_the_fix(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(RunbookError) as caught:
        load_library([write(tmp_path, **changes)])

    assert "mine.yaml" in str(caught.value)
    assert said in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunbookError, match="no such directory"):
        load_library([tmp_path / "none"])


def test_a_missing_feature_makes_a_condition_unknown_unless_the_rest_decides() -> None:
    both = Condition("kv.usage_max >= 0.9 && preempt.count > 0.0", "here")
    either = Condition("kv.usage_max >= 0.9 || preempt.count > 0.0", "here")

    assert both.holds(activation_of({"kv.usage_max": 0.95})) is None
    assert both.holds(activation_of({"kv.usage_max": 0.5})) is False
    assert either.holds(activation_of({"kv.usage_max": 0.95})) is True
    assert either.holds(activation_of({"kv.usage_max": 0.5})) is None


def test_only_a_missing_feature_is_unknown() -> None:
    """What no sample leads to, and cannot be evaluated, is a mistake in the condition."""
    condition = Condition('endpoint.error == "refused" && endpoint.error > 3.0', "here")
    condition.check()

    assert condition.holds(activation_of({})) is None
    with pytest.raises(RunbookError, match=r"cannot be evaluated: No matching overloads"):
        condition.holds(activation_of({"endpoint.error": "refused"}))


def test_sentences_carry_units() -> None:
    features = {"ttft.mean": 0.0127, "kv.usage_max": 0.983, "itl.vs_before": 1.57}
    text = fill_template("{ttft.mean}, {kv.usage_max}, {itl.vs_before}, {queue.growth}", features)

    assert text == "12.7 ms, 98.3 %, 1.6x, unknown"


def test_every_feature_is_documented() -> None:
    for name, feature in registry().items():
        assert feature.meaning.endswith("."), name
        assert name.count(".") == 1
        assert name.partition(".")[0] in feature_groups(), name


def test_every_feature_group_has_features() -> None:
    assert feature_groups().keys() == {name.partition(".")[0] for name in registry()}


def test_all_failure_modes_of_the_field_guide_are_there() -> None:
    """54 ids that alarms, boards and drills refer to: none may vanish."""
    modes = shipped_library().modes.values()
    assert sum(mode.area != "sagemaker" for mode in modes) == 54


def test_what_metrics_cannot_show_is_said() -> None:
    """A failure mode that asks for a log or for peers says that it needs them."""
    library = shipped_library()
    for mode in library.modes.values():
        required = " ".join(clause.when for clause in mode.signature.require)
        kinds = {need.kind for need in mode.needs}
        if "fleet." in required and "||" not in required:
            assert "fleet" in kinds, mode.id
        if "log." in required and "||" not in required:
            assert "log" in kinds, mode.id


def test_every_failure_mode_says_what_to_check_do_and_fix() -> None:
    for mode in shipped_library().modes.values():
        assert {action.kind for action in mode.actions} == {"check", "mitigate", "fix"}, mode.id
        assert mode.sources, mode.id
