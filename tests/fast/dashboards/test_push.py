"""Boards go into a Grafana: what changed and nothing else, what is others' stays, and refusals are told."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from certificates import self_signed
from fake_grafana import EVERYTHING, TOKEN, Answer, FakeGrafana, Kept, running

from vllm_opsctl.alarms.resource_names import FLEET_BOARD, FLEET_FOLDER, board_folder
from vllm_opsctl.cli.main import run
from vllm_opsctl.dashboards.grafana import TAG
from vllm_opsctl.dashboards.push import OWNER, folder_of

BOARD = "opsctl-chat-slo"
FOLDER = board_folder("chat")
HTML: Answer = (200, {"Content-Type": "text/html"}, "<html><title>Sign in</title></html>")


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running(FakeGrafana()) as one:
        yield one


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        return self.out.splitlines()[-1]

    @property
    def said(self) -> str:
        """Everything, on one line."""
        return " ".join((self.out + self.err).split())


@pytest.fixture
def opsctl(
    grafana: FakeGrafana,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Ran]:
    """Runs a command against the Grafana; the token never shows, whatever happens."""
    monkeypatch.setenv("GRAFANA_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    config = tmp_path / "opsctl.yaml"

    def command(
        name: str,
        *arguments: str,
        url: str = "",
        variable: str = "GRAFANA_TOKEN",
        service: str = "chat",
    ) -> Ran:
        config.write_text(f"service: {{name: {service}}}\n")
        code = run(
            [
                *("--config", str(config), "dashboards", name, "--url", url or grafana.url),
                *("--token-env", variable, *arguments),
            ]
        )
        shown = capsys.readouterr()
        assert TOKEN not in shown.out + shown.err
        assert "Traceback" not in shown.err
        return Ran(code, shown.out, shown.err)

    return command


Opsctl = Callable[..., Ran]


def panel(grafana: FakeGrafana, kind: str = "timeseries") -> dict[str, Any]:
    """A panel of the SLO board, as the Grafana keeps it."""
    found: dict[str, Any] = next(
        one for one in grafana.boards[BOARD].body["panels"] if one["type"] == kind
    )
    return found


# -- there and back ------------------------------------------------------------------------------------


def test_pushed_boards_do_not_differ(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    pushed = opsctl("push")
    found = opsctl("diff", "--check")

    assert pushed.code == 0
    assert f"+ folder {FOLDER}\n" in pushed.out
    assert f"+ folder {FLEET_FOLDER}\n" in pushed.out
    assert f"+ board {grafana.boards[BOARD].body['title']} ({BOARD})" in pushed.out
    total = len(grafana.boards)
    assert total > 1
    assert f"({total} of {total})" in pushed.last
    assert (found.code, found.out) == (0, f"0 to create, 0 to change, {total} unchanged\n")


def test_a_second_push_writes_nothing(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    grafana.asked.clear()
    again = opsctl("push")

    assert again.code == 0
    assert grafana.writes == []
    assert {kept.body["version"] for kept in grafana.boards.values()} == {1}


def test_what_grafana_fills_in_is_no_difference(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    grafana.adds = True

    assert opsctl("diff", "--check").code == 0


def test_a_changed_panel_is_shown_and_its_board_alone_is_pushed(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push")
    one = panel(grafana)
    shall = copy.deepcopy(one)
    one["fieldConfig"]["defaults"]["unit"] = "ms"
    one["targets"][0]["expr"] = "up"
    grafana.asked.clear()

    found = opsctl("diff", "--check")
    pushed = opsctl("push")

    title = one["title"]
    assert found.code == 1
    assert f'~ panel "{title}", unit: ms -> {shall["fieldConfig"]["defaults"]["unit"]}' in found.out
    expression = shall["targets"][0]["expr"]
    assert f'~ panel "{title}", query A: is up shall {expression}' in found.said
    assert found.last.startswith("0 to create, 1 to change")
    assert pushed.code == 0
    assert grafana.writes == ["POST /api/dashboards/db"]
    assert panel(grafana) == shall
    assert grafana.boards[BOARD].body["version"] == 2
    assert opsctl("diff", "--check").code == 0


def test_a_dry_run_changes_nothing(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    ran = opsctl("push", "--dry-run")

    assert ran.code == 0
    assert ran.last.startswith(f"{ran.out.count('+ board')} to create")
    assert (grafana.writes, grafana.folders, grafana.boards) == ([], {}, {})


def test_json_has_every_difference(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    panel(grafana)["fieldConfig"]["defaults"]["unit"] = "ms"
    found = json.loads(opsctl("diff", "-o", "json").out)

    (change,) = found["changes"]
    assert (change["action"], change["uid"]) == ("change", BOARD)
    (one,) = change["differences"]
    assert (one["mark"], one["is"]) == ("~", "ms")
    assert one["path"].endswith(", unit")
    assert change["folder"] == found["folder"]["title"] == FOLDER


@pytest.mark.parametrize("columns", [80, 160])
def test_lines_fit_the_terminal(
    grafana: FakeGrafana, opsctl: Opsctl, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    opsctl("push")
    one = panel(grafana)
    one["fieldConfig"]["defaults"]["unit"] = "ms"
    one["description"] = "Something else that somebody wrote into the panel by hand, and at length."
    grafana.boards[BOARD].body["tags"] = ["mine"]
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = opsctl("diff")

    assert max(len(line) for line in ran.out.splitlines()) <= columns


# -- what is others' -----------------------------------------------------------------------------------


def test_somebody_elses_board_with_our_uid_stays(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    theirs = {"uid": BOARD, "title": "Mine", "tags": ["me"], "panels": [], "version": 7}
    grafana.boards[BOARD] = Kept(copy.deepcopy(theirs), folder_of(FOLDER).uid)
    grafana.asked.clear()
    ran = opsctl("push")

    assert ran.code == 1
    assert "! board" in ran.out
    assert "opsctl did not write it, for it lacks the tag opsctl" in ran.said
    assert ran.last.endswith("1 left alone")
    assert grafana.writes == []
    assert grafana.boards[BOARD].body == theirs


def test_the_others_are_pushed_all_the_same(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    theirs = {"uid": BOARD, "title": "Mine", "tags": ["me"], "panels": [], "version": 7}
    grafana.boards[BOARD] = Kept(theirs, "")
    ran = opsctl("push")

    assert ran.code == 1
    assert len(grafana.boards) > 1
    assert grafana.boards[BOARD].body == theirs


def test_a_board_of_the_same_title_is_told_and_stays(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    title = grafana.boards[BOARD].body["title"]
    grafana.boards["theirs"] = Kept({"title": title, "version": 1}, folder_of(FOLDER).uid)
    ran = opsctl("push")

    assert ran.code == 0
    assert f"Left alone: {title} (theirs): somebody's board of the same title" in ran.said
    assert "theirs" in grafana.boards


def test_a_title_that_is_taken_is_refused_and_takes_nobodys_place(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push")
    ours = grafana.boards.pop(BOARD)
    theirs = Kept({"title": ours.body["title"], "version": 1}, folder_of(FOLDER).uid)
    grafana.boards["theirs"] = theirs
    ran = opsctl("push")

    assert ran.code == 3
    assert "rename or move the other board" in ran.said
    assert grafana.boards["theirs"] is theirs


def test_a_title_that_may_be_there_twice_is_told_and_pushed(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    grafana.version = "12.0.0"
    opsctl("push")
    ours = grafana.boards.pop(BOARD)
    theirs = Kept({"title": ours.body["title"], "version": 1}, folder_of(FOLDER).uid)
    grafana.boards["theirs"] = theirs
    ran = opsctl("push")

    assert ran.code == 0
    assert "(theirs): somebody's board of the same title" in ran.said
    assert BOARD in grafana.boards
    assert grafana.boards["theirs"] is theirs


def test_a_board_of_the_service_that_is_wanted_no_more_is_told(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push")
    old = {"title": "Old", "tags": ["opsctl", "chat"], "version": 1}
    grafana.boards["opsctl-chat-old"] = Kept(old, folder_of(FOLDER).uid)
    ran = opsctl("diff")

    assert "Old (opsctl-chat-old): a board of chat that the configuration no longer has" in ran.said


def test_a_provisioned_board_is_told(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    grafana.boards[BOARD].provisioned = True
    unchanged = opsctl("push")
    panel(grafana)["fieldConfig"]["defaults"]["unit"] = "ms"
    grafana.asked.clear()
    changed = opsctl("push")

    assert unchanged.code == 0, "there is nothing to be done"
    assert changed.code == 1
    assert "Grafana has it from a file (provisioning)" in changed.said
    assert grafana.writes == []


def test_a_change_meanwhile_is_not_overwritten(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    panel(grafana)["fieldConfig"]["defaults"]["unit"] = "ms"

    def somebody_saves() -> None:
        grafana.boards[BOARD].body["version"] += 1

    grafana.before_save = somebody_saves
    ran = opsctl("push")

    assert ran.code == 3
    assert "changed by someone else" in ran.said
    assert "0 of 1 boards were written; push again" in ran.said
    assert panel(grafana)["fieldConfig"]["defaults"]["unit"] == "ms"


# -- folders -------------------------------------------------------------------------------------------


def test_an_existing_folder_of_the_title_is_used(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    grafana.folders |= {f"f{number}": f"Folder {number}" for number in range(1200)}
    grafana.folders |= {"theirs": FOLDER, "all": FLEET_FOLDER}
    ran = opsctl("push")

    assert "+ folder" not in ran.out
    assert grafana.boards[BOARD].folder == "theirs"
    assert "POST /api/folders" not in grafana.asked


def test_two_folders_of_one_title_are_a_question(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    grafana.folders |= {"a": FOLDER, "b": FOLDER}
    ran = opsctl("push")

    assert ran.code == 64
    assert f"folder {FOLDER}: 2 have this title (a, b)" in ran.said
    assert "choose another with --folder" in ran.said


def test_a_board_in_another_folder_is_moved(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    grafana.boards[BOARD].folder = ""
    found = opsctl("push")

    assert "~ folder: General -> vLLM chat" in found.out
    assert grafana.boards[BOARD].folder == folder_of(FOLDER).uid


def test_folders_of_other_names_have_other_uids() -> None:
    names = ["vLLM", "vllm", "Ünïcode", "a" * 100, "a" * 101]
    uids = [folder_of(name).uid for name in names]

    assert len({*uids}) == len(names)
    assert all(len(uid) <= 40 and uid.replace("-", "").isalnum() for uid in uids)


def test_the_tag_is_that_of_the_build() -> None:
    assert OWNER == TAG


def test_another_folder_is_of_the_service_s_boards_alone(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push", "--folder", "Inference")
    placed = {uid: grafana.folders[kept.folder] for uid, kept in grafana.boards.items()}

    assert placed.pop(FLEET_BOARD) == FLEET_FOLDER
    assert {*placed.values()} == {"Inference"}


# -- two services --------------------------------------------------------------------------------------


def test_two_services_are_pushed_into_one_grafana(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    """Grafana before 11.3 refuses a title that is there already."""
    first, second = opsctl("push"), opsctl("push", service="code")

    assert (first.code, second.code) == (0, 0)
    assert "Left alone" not in first.said + second.said
    assert second.last == "created board code / Incident (6 of 6)", "the other board is there"
    assert opsctl("diff", "--check").code == opsctl("diff", "--check", service="code").code == 0


def test_a_board_of_another_service_with_our_uid_is_told_and_stays(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push")
    grafana.boards[BOARD].body["tags"] = ["opsctl", "code"]
    grafana.asked.clear()
    ran = opsctl("push")

    assert ran.code == 1
    assert "by its tags it is a board of code and not of chat" in ran.said
    assert grafana.writes == []


@pytest.mark.parametrize("tags", [["opsctl"], ["opsctl", "chat", "llm"]])
def test_tags_that_somebody_changed_are_put_right(
    grafana: FakeGrafana, opsctl: Opsctl, tags: list[str]
) -> None:
    opsctl("push")
    grafana.boards[BOARD].body["tags"] = tags
    ran = opsctl("push")

    assert ran.code == 0
    assert grafana.boards[BOARD].body["tags"] == ["opsctl", "chat"]


def test_a_sister_s_board_of_the_same_title_is_called_hers(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    opsctl("push")
    title = grafana.boards[BOARD].body["title"]
    theirs = {"title": title, "tags": ["opsctl", "code"], "version": 1}
    grafana.boards["theirs"] = Kept(theirs, folder_of(FOLDER).uid)
    ran = opsctl("push")

    assert f"Left alone: {title} (theirs): a board of code of the same title as {BOARD}" in ran.said


# -- the board of all services -------------------------------------------------------------------------


@pytest.mark.parametrize("moved_to", ["", "team"])
def test_the_board_of_all_services_stays_where_it_is(
    grafana: FakeGrafana, opsctl: Opsctl, moved_to: str
) -> None:
    opsctl("push")
    grafana.folders["team"] = "Team"
    grafana.boards[FLEET_BOARD].folder = moved_to
    unchanged = opsctl("push")
    grafana.boards[FLEET_BOARD].body["title"] = "Ours"
    changed = opsctl("push")

    assert unchanged.last.startswith("0 to create, 0 to change")
    assert changed.code == 0
    assert "~ title: Ours -> vLLM: all services" in changed.out
    assert "folder" not in changed.out
    assert grafana.boards[FLEET_BOARD].folder == moved_to


def test_the_board_of_all_services_can_be_left_out(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    ran = opsctl("push", "--no-fleet")

    assert ran.code == 0
    assert [*grafana.folders.values()] == [FOLDER]
    assert FLEET_BOARD not in grafana.boards
    assert opsctl("diff", "--no-fleet", "--check").code == 0
    assert opsctl("diff", "--check").code == 1


@pytest.mark.parametrize("has_the_board", [True, False])
def test_who_may_not_touch_the_folder_of_all_services_is_told_how_to_do_without(
    grafana: FakeGrafana, opsctl: Opsctl, has_the_board: bool
) -> None:
    uid = folder_of(FLEET_FOLDER).uid
    if has_the_board:
        opsctl("push", service="code")
    else:
        grafana.folders[uid] = FLEET_FOLDER
    grafana.hidden = frozenset({uid})
    refused, without = opsctl("push"), opsctl("push", "--no-fleet")

    assert refused.code == 3
    assert "--no-fleet leaves out the board of all services" in refused.said
    assert without.code == 0
    assert opsctl("diff", "--no-fleet", "--check").code == 0


def test_a_refusal_of_a_service_s_board_names_no_way_without_the_other(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    grafana.may = EVERYTHING - {"dashboards:create"}

    assert "--no-fleet" not in opsctl("push").said


def test_two_folders_of_all_services_are_a_question_only_for_a_new_board(
    grafana: FakeGrafana, opsctl: Opsctl
) -> None:
    grafana.folders |= {"a": FLEET_FOLDER, "b": FLEET_FOLDER}
    asked, without = opsctl("push"), opsctl("push", "--no-fleet")

    assert asked.code == 64
    assert "or leave it out with --no-fleet" in asked.said
    assert without.code == 0


# -- boards of 0.1 -------------------------------------------------------------------------------------


def test_boards_of_0_1_are_renamed_and_moved(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    shall = {uid: (kept.body["title"], kept.folder) for uid, kept in grafana.boards.items()}
    old = folder_of(FLEET_FOLDER).uid
    del grafana.folders[folder_of(FOLDER).uid]
    for kept in grafana.boards.values():
        kept.folder = old
        kept.body["title"] = kept.body["title"].removeprefix("chat / ")
    gone = {"title": "Gone", "tags": ["opsctl", "chat"], "version": 1}
    grafana.boards["opsctl-chat-gone"] = Kept(gone, old)
    found = opsctl("push")
    del grafana.boards["opsctl-chat-gone"]

    assert "~ board chat / Incident (opsctl-chat-incident)" in found.out
    assert "~ folder: vLLM -> vLLM chat" in found.out
    assert "~ title: Incident -> chat / Incident" in found.out
    assert (
        "Gone (opsctl-chat-gone): a board of chat that the configuration no longer has"
        in found.said
    )
    assert "0 to create, 6 to change, 1 unchanged" in found.out
    assert {uid: (one.body["title"], one.folder) for uid, one in grafana.boards.items()} == shall


# -- what goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permission", "named"),
    [
        ("folders:create", "folders:create"),
        ("folders:read", "folders:read"),
        ("dashboards:read", "dashboards:read"),
        ("dashboards:create", "dashboards:create"),
    ],
)
def test_a_permission_that_is_missing_is_named(
    grafana: FakeGrafana, opsctl: Opsctl, permission: str, named: str
) -> None:
    grafana.may = EVERYTHING - {permission}
    ran = opsctl("push")

    assert ran.code == 3
    assert "HTTP 403" in ran.said
    assert f"the token needs {named}" in ran.said
    assert grafana.boards == {}


def test_to_change_a_board_the_token_needs_to_write(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    opsctl("push")
    panel(grafana)["fieldConfig"]["defaults"]["unit"] = "ms"
    grafana.may = EVERYTHING - {"dashboards:write"}

    assert "the token needs dashboards:write" in opsctl("push").said


def canned(status: int, /, **message: str) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(message)


@pytest.mark.parametrize(
    ("asked", "answer", "said"),
    [
        ("GET /api/health", HTML, "not what Grafana's API answers"),
        ("GET /api/health", canned(200), "not what Grafana's API answers"),
        ("GET /api/folders", HTML, "not what Grafana's API answers"),
        ("GET /api/dashboards", (404, {}, "<html>"), "not what Grafana's API answers"),
        ("GET /api/health", (302, {"Location": "/login?to=x"}, ""), "to a login page (/login)"),
        ("GET /api/health", (301, {"Location": "https://g.example/"}, ""), "give the URL that it"),
        ("GET /api/health", canned(404, message="nope"), "give the base URL"),
        ("GET /api/folders", canned(401, message=f"bad {TOKEN}"), "(bad ***)"),
        ("POST /api/folders", canned(412, message="the same uid"), "HTTP 412 (the same uid)"),
        ("POST /api/dashboards", canned(400, message="Bad title"), "(Bad title)"),
        (
            "POST /api/dashboards",
            canned(412, status="plugin-dashboard", message="It belongs to plugin x"),
            "belongs to a plugin",
        ),
        ("POST /api/dashboards", canned(500, message="Failed to save"), "HTTP 500"),
        ("GET /api/folders", (429, {"Retry-After": "86400"}, "{}"), "try again later"),
    ],
)
def test_a_refusal_is_told_in_words(
    grafana: FakeGrafana, opsctl: Opsctl, asked: str, answer: Answer, said: str
) -> None:
    grafana.canned.append((asked, answer))
    ran = opsctl("push")

    assert ran.code == 3
    assert said in ran.said
    assert grafana.boards == {}


@pytest.mark.parametrize("version", ["9.5.21", "8.0.0-beta1"])
def test_an_old_grafana_is_refused(grafana: FakeGrafana, opsctl: Opsctl, version: str) -> None:
    grafana.version = version
    ran = opsctl("diff")

    assert ran.code == 3
    assert f"Grafana {version}; the boards need 10 or newer" in ran.said


@pytest.mark.parametrize("version", ["10.0.0", "12.1.0-88000.patch1", "13.0.1", None])
def test_newer_ones_and_those_that_hide_it_are_not(
    grafana: FakeGrafana, opsctl: Opsctl, version: str | None
) -> None:
    grafana.version = version

    assert opsctl("diff").code == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_grafana_is_asked_again_when_it_says(
    grafana: FakeGrafana, opsctl: Opsctl, status: int
) -> None:
    busy: Answer = (status, {"Retry-After": "0"}, "{}")
    past: Answer = (status, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "{}")
    grafana.canned += [("GET /api/folders", busy), ("GET /api/folders", past)]

    assert opsctl("push").code == 0
    assert grafana.asked.count("GET /api/folders") == 3


def test_one_that_stays_busy_is_given_up(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    grafana.canned += [("GET /api/folders", (503, {"Retry-After": "0"}, "{}"))] * 3
    ran = opsctl("push")

    assert ran.code == 3
    assert "HTTP 503, 3 times; try again later" in ran.said


def test_a_wrong_token_is_told(
    opsctl: Opsctl, grafana: FakeGrafana, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER", "glsa_other")
    ran = opsctl("diff", variable="OTHER")

    assert ran.code == 3
    assert "HTTP 401 (Unauthorized); the token is wrong, expired" in ran.said
    assert "glsa_other" not in ran.said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "--token-env NO_TOKEN: no such environment variable"),
        ("  ", "--token-env NO_TOKEN: no such environment variable"),
        ("two words", "has spaces or other characters"),
        ("line\nbreak", "the variable NO_TOKEN has a line break inside"),
        ("süß", "has spaces or other characters"),
    ],
)
def test_a_token_that_can_be_none_is_not_sent(
    grafana: FakeGrafana,
    opsctl: Opsctl,
    monkeypatch: pytest.MonkeyPatch,
    value: str | None,
    said: str,
) -> None:
    if value is not None:
        monkeypatch.setenv("NO_TOKEN", value)
    ran = opsctl("diff", variable="NO_TOKEN")

    assert ran.code == 64
    assert said in ran.said
    assert grafana.asked == []
    assert value is None or not value.strip() or value not in ran.said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("grafana.example.com", "write https://HOST"),
        ("ftp://grafana.example.com", "write https://HOST"),
        ("https://admin:hunter2@grafana.example.com", "it holds credentials"),
    ],
)
def test_a_url_that_can_be_none_is_refused(opsctl: Opsctl, url: str, said: str) -> None:
    ran = opsctl("diff", url=url)

    assert ran.code == 64
    assert said in ran.said
    assert "hunter2" not in ran.said


def test_nobody_there_is_told(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    with running(FakeGrafana()) as gone:
        url = gone.url
    ran = opsctl("diff", url=url)

    assert ran.code == 3
    assert "connection refused" in ran.said


def test_a_url_without_tls_is_told(grafana: FakeGrafana, opsctl: Opsctl) -> None:
    ran = opsctl("diff", url=grafana.url.replace("http:", "https:"))

    assert ran.code == 3
    assert "no TLS is spoken there; write http://" in ran.said


def test_a_certificate_is_trusted_when_its_authority_is_named(
    opsctl: Opsctl, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(FakeGrafana(), certificate) as tls:
        untrusted = opsctl("diff", url=tls.url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        trusted = opsctl("diff", url=tls.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    missing = opsctl("diff", url=tls.url)

    assert untrusted.code == 3
    assert "its certificate is not trusted (self-signed certificate)" in untrusted.said
    assert "SSL_CERT_FILE" in untrusted.said
    assert trusted.code == 0
    assert (missing.code, "REQUESTS_CA_BUNDLE=/nowhere.pem: no such file" in missing.said) == (
        64,
        True,
    )


def test_a_wrong_file_of_certificates_is_told(
    opsctl: Opsctl, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "empty.pem"))
    with running(FakeGrafana(), certificate) as tls:
        ran = opsctl("diff", url=tls.url)

    assert ran.code == 3
    assert "the file of trusted certificates holds none in PEM" in ran.said


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of 127.0.0.1, in one file."""
    return self_signed(tmp_path_factory.mktemp("tls"))
