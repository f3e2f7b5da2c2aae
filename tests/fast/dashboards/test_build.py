"""The files of a build: what Grafana loads, whose they are, and what becomes of those of 0.1."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cloudwatch_fleet import config
from commands import Opsctl
from example_alarms import EXAMPLE, STARTER
from example_boards import GENERATED, kept

from vllm_opsctl.dashboards.build import board_files, draw_boards, write_boards
from vllm_opsctl.errors import UsageError

Build = Callable[..., tuple[int, str, str]]


@pytest.fixture
def build(opsctl: Opsctl, tmp_path: Path) -> Build:
    """Builds the boards of a service: exit code, stdout, stderr without line breaks."""

    def run(service: str, *options: str, out: str = "out") -> tuple[int, str, str]:
        environment = {
            "OPSCTL_SERVICE__NAME": service,
            "OPSCTL_ALARMS__RUNBOOK_URL": "https://runbooks.example.com",
        }
        command = ("dashboards", "build", "--out", out, *options)
        ran = opsctl.run(*command, env=environment, cwd=tmp_path)
        return ran.returncode, ran.stdout, " ".join(ran.stderr.split())

    return run


def read(path: Path) -> list[Any]:
    return [*yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def test_the_committed_boards_are_up_to_date(opsctl: Opsctl, tmp_path: Path) -> None:
    command = ("dashboards", "build", "--out", str(tmp_path))
    answer = opsctl.run("--config", str(STARTER), *command, env=EXAMPLE)

    assert answer.returncode == 0, answer.stderr
    assert kept(GENERATED) == kept(tmp_path), "run make dashboards"


def test_config_maps_carry_the_label_that_grafanas_loader_looks_for() -> None:
    files = board_files(config(), draw_boards(config(), "sidecar"))
    maps = [*yaml.safe_load_all(files["configmaps.yaml"])]
    of_all = yaml.safe_load(files["fleet/configmap.yaml"])

    json_files = {name for name in files if name.endswith(".json")}
    assert {key for one in (*maps, of_all) for key in one["data"]} == {
        name.removeprefix("fleet/") for name in json_files
    }
    for one in (*maps, of_all):
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        # kubectl apply keeps the whole of each in an annotation of at most 256 KiB
        assert len(json.dumps(one)) < 256 * 1024
    assert json.loads(maps[0]["data"]["opsctl-chat-slo.json"])["uid"] == "opsctl-chat-slo"
    assert {one["metadata"]["annotations"]["grafana_folder"] for one in maps} == {"vLLM chat"}
    assert of_all["metadata"]["annotations"]["grafana_folder"] == "vLLM"


def test_a_build_is_repeated_without_a_change_and_checked(build: Build, tmp_path: Path) -> None:
    assert "11 files, 11 changed" in build("chat")[1]
    assert "11 files, 0 changed" in build("chat")[1]
    (tmp_path / "out" / "provisioning.yaml").write_text("# written by opsctl dashboards build\n")
    (tmp_path / "out" / "fleet" / "opsctl-fleet.json").write_text('{"uid": "opsctl-fleet"}')
    code, _, said = build("chat", "--check")

    assert code == 1
    assert said == "out: not up to date: provisioning.yaml, fleet/opsctl-fleet.json"


def test_without_runbooks_panels_link_nowhere_and_that_is_told(
    opsctl: Opsctl, tmp_path: Path
) -> None:
    ran = opsctl.run("dashboards", "build", "--out", "out", cwd=tmp_path)

    assert ran.returncode == 0
    assert "Note: alarms.runbook_url is not set: no panel links" in ran.stderr


@pytest.mark.parametrize(
    "name",
    ["opsctl-vllm-slo.json", "configmaps.yaml", "fleet/opsctl-fleet.json", "fleet/configmap.yaml"],
)
def test_somebody_elses_file_is_left_alone(opsctl: Opsctl, tmp_path: Path, name: str) -> None:
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text('{"uid": "mine"}\n')
    ran = opsctl.run("dashboards", "build", "--out", str(tmp_path))

    assert ran.returncode == 64
    assert f"{theirs}: not written by opsctl" in ran.stderr
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [theirs]
    assert theirs.read_text() == '{"uid": "mine"}\n'


# -- two services --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "services",
    [
        ("chat", "code"),
        ("chat", "chat-incident"),
        ("a:b", "a.b"),
        ("Chat", "chat"),
        ("fleet", "slo"),
    ],
)
def test_two_services_go_into_one_grafana(
    build: Build, tmp_path: Path, services: tuple[str, str]
) -> None:
    for service in services:
        assert build(service, out=service)[0] == 0
    first, second = (tmp_path / service for service in services)
    fleets = [
        {path.name: path.read_text() for path in (out / "fleet").iterdir()}
        for out in (first, second)
    ]
    providers, boards, maps = [], [], []
    for folder in (first, second, first / "fleet"):
        (provider,) = read(folder / "provisioning.yaml")[0]["providers"]
        providers.append(provider)
        for path in folder.glob("*.json"):
            boards.append((provider["folder"], json.loads(path.read_text())))
        for path in folder.glob("configmap*.yaml"):
            maps += [one["metadata"]["name"] for one in read(path)]

    assert fleets[0] == fleets[1]
    for names in (
        [board["uid"] for _, board in boards],
        [board["title"] for _, board in boards],
        [(folder, board["title"]) for folder, board in boards],
        [provider["name"] for provider in providers],
        [provider["options"]["path"] for provider in providers],
        [provider["folder"] for provider in providers],
        maps,
    ):
        assert Counter(names).most_common(1)[0][1] == 1
    tags = [{*board["tags"]} for _, board in boards]
    for (_, board), other in itertools.product(boards, tags):
        listed = {*board["links"][0]["tags"]} <= other
        assert listed is (other == {*board["tags"]} or board["tags"] == ["opsctl"])


@pytest.mark.parametrize("kept_file", ["provisioning.yaml", "configmaps.yaml"])
@pytest.mark.parametrize("options", [(), ("--check",)])
def test_the_folder_of_another_service_is_refused(
    build: Build, tmp_path: Path, kept_file: str, options: tuple[str, ...]
) -> None:
    build("code")
    for path in (tmp_path / "out").glob("*.yaml"):
        if path.name != kept_file:
            path.unlink()
    before = {path: path.read_text() for path in (tmp_path / "out").rglob("*.*")}
    code, _, said = build("chat", *options)

    assert code == 64
    assert f"out/{kept_file}: it has the boards of code, and these are of chat" in said
    assert "give each service a folder of its own" in said
    assert {path: path.read_text() for path in (tmp_path / "out").rglob("*.*")} == before


def test_nothing_is_written_into_the_folder_of_another_service(
    build: Build, tmp_path: Path
) -> None:
    build("code")
    one = config()
    with pytest.raises(UsageError, match="the boards of code"):
        write_boards(tmp_path / "out", board_files(one, draw_boards(one, "sidecar")), "chat")


# -- files of 0.1 --------------------------------------------------------------------------------------


def as_0_1(out: Path, service: str) -> None:
    """A folder as 0.1 left it."""
    for path in [*out.glob("*.json"), *(out / "fleet").glob("*.json")]:
        board = json.loads(path.read_text())
        board["title"] = board["title"].removeprefix(f"{service} / ")
        (out / path.name).write_text(json.dumps(board))
    for path in (out / "fleet").iterdir():
        path.unlink()
    (out / "fleet").rmdir()
    head, _, rest = (out / "provisioning.yaml").read_text().partition("\n")
    assert head.endswith(f" for {service}")
    (out / "provisioning.yaml").write_text(f"# written by opsctl dashboards build\n{rest}")
    head, _, rest = (out / "configmaps.yaml").read_text().partition("\n")
    (out / "configmaps.yaml").write_text(f"# written by opsctl dashboards build\n{rest}")


def test_a_folder_of_0_1_becomes_one_of_today(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build("chat")
    shall = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.*")}
    as_0_1(out, "chat")
    code, _, checked = build("chat", "--check")
    _, said, told = build("chat")

    assert code == 1
    assert checked.endswith("fleet/configmap.yaml, opsctl-fleet.json")
    assert "Note: opsctl-fleet.json -> fleet/opsctl-fleet.json" in told
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.*")} == shall
    assert "11 files, 12 changed" in said
    assert build("chat", "--check")[0] == 0


@pytest.mark.parametrize("kept_file", ["provisioning.yaml", "configmaps.yaml"])
def test_a_folder_of_0_1_of_another_service_is_refused(
    build: Build, tmp_path: Path, kept_file: str
) -> None:
    build("code")
    as_0_1(tmp_path / "out", "code")
    for path in (tmp_path / "out").glob("*.yaml"):
        if path.name != kept_file:
            path.unlink()

    code, _, said = build("chat")
    assert code == 64
    assert "it has the boards of code, and these are of chat" in said


def test_boards_that_have_another_uid_now_are_replaced(build: Build, tmp_path: Path) -> None:
    """0.1 made uids that Grafana refuses of long names."""
    service = "customer-support-assistant-production"
    out = tmp_path / "out"
    build(service)
    for board in ("slo", "incident", "gone"):
        uid = f"opsctl-{service}-{board}"
        body = {"uid": uid, "tags": ["opsctl", service]}
        (out / f"{uid}.json").write_text(json.dumps(body))
    code, _, told = build(service)

    new = "opsctl-customer-suppor-a8d79981"
    assert code == 0
    for board in ("slo", "incident"):
        assert f"opsctl-{service}-{board}.json -> {new}-{board}.json" in told
    assert f"opsctl-{service}-gone.json is removed: the configuration has no such board" in told
    assert len([*out.glob("*.json")]) == 6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine.json", '{"uid": "mine", "tags": ["opsctl", "chat"]}'),
        ("opsctl-chat-x.json", '{"uid": "other", "tags": ["opsctl", "chat"]}'),
        ("opsctl-code-slo.json", '{"uid": "opsctl-code-slo", "tags": ["opsctl", "code"]}'),
        ("opsctl-chat-x.json", "[]"),
        ("opsctl-chat-x.json", "not JSON"),
        ("opsctl-fleet.json", '{"uid": "opsctl-fleet", "tags": ["mine"]}'),
    ],
)
def test_other_files_beside_them_stay(build: Build, tmp_path: Path, name: str, text: str) -> None:
    build("chat")
    (tmp_path / "out" / name).write_text(text)

    assert build("chat", "--check")[0] == 0
    assert build("chat")[0] == 0
    assert (tmp_path / "out" / name).read_text() == text
