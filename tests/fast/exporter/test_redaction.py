"""What may be shown of URLs, and of what was meant to be one."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_opsctl.exporter.config import clean_url
from vllm_opsctl.exporter.redaction import (
    host_alone,
    secrets_of_url,
    shown_url,
    without_literally,
    without_secrets,
)

PASSWORD = "hunter2"  # noqa: S105 - planted


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:8000/v1", "http://h:8000/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        (f"http://me:{PASSWORD}@h", "http://***@h"),
        (f"htp://me:{PASSWORD}@h:8000", "htp://***@h:8000"),
        (f"http//me:{PASSWORD}@h", "http//***@h"),
        (f"http:/me:{PASSWORD}@h", "http:/***@h"),
        (f"http:me:{PASSWORD}@h", "http:***@h"),
        (f"//me:{PASSWORD}@h", "//***@h"),
        (f"me:{PASSWORD}@h:8000", "***@h:8000"),
        (f"http://me:{PASSWORD}@", "http://***@"),
        (f"http://me:a/b{PASSWORD}@h", "http://***@h"),
        (f"http://me:a@b{PASSWORD}@h", "http://***@h"),
        (f"http://me:a?b{PASSWORD}@h", "http://***"),
        (f"http://me:a#{PASSWORD}@h", "http://***"),
        (f"http://h/m?token={PASSWORD}&x", "http://h/m?token=***&***"),
        (f"http://h/m?{PASSWORD}", "http://h/m?***"),
        (f"http://h/m?t=a@{PASSWORD}", "http://***"),
        (f"http://h/m#{PASSWORD}", "http://h/m#***"),
        (f"/metrics?token={PASSWORD}", "/metrics?token=***"),
        ("http://h\x1b]0;x\x07\n", "http://h\\x1b]0;x\\x07\\x0a"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@given(
    scheme=st.sampled_from(("http://", "htp://", "http//", "http:/", "https:", "//", "")),
    before=st.text("ab:/#?@%", max_size=6),
    after=st.text("ab:/#?%", max_size=6),
)
def test_a_password_is_never_shown_wherever_the_url_is_mistyped(
    scheme: str, before: str, after: str
) -> None:
    text = f"{scheme}me:{before}{PASSWORD}{after}@h:8000"

    assert PASSWORD not in shown_url(text)
    with pytest.raises(ValueError, match=r".") as caught:
        clean_url(text)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("see http://me:pw1234@h:1/x now", "see http://***@h:1/x now"),
        ('GET "/metrics?token=pw1234 HTTP/1.1"', 'GET "/metrics?token=*** HTTP/1.1"'),
        ("a http://h/x?pw1234 b", "a http://h/x?*** b"),
        ("(me:pw1234@h)", "(***@h)"),
        ("Bearer sk-1234567, again sk-1234567", "Bearer ***, again ***"),
        ("12:30 is it http://?", "12:30 is it http://?"),
        ("mail me@example.com at 12:30", "mail me@example.com at 12:30"),
    ],
)
def test_a_text_is_shown_without_the_secrets_in_it(text: str, hidden: str) -> None:
    assert without_secrets(text, ["sk-1234567"]) == hidden


def test_of_two_secrets_the_longer_is_hidden_first() -> None:
    assert without_secrets("abcd-efgh", ["abcd", "abcd-efgh"]) == "***"


@pytest.mark.parametrize("piece", ["a:b,", "http://", "a:", "?x=", "x@", "(a:b@"])
def test_no_text_is_searched_for_long(piece: str) -> None:
    began = time.process_time()
    without_secrets(piece * 50_000)

    assert time.process_time() - began < 2.0


def test_a_webhooks_path_may_be_its_secret() -> None:
    assert host_alone("https://hooks.slack.com/services/T0/B0/x") == "https://hooks.slack.com/***"
    assert host_alone("services/T0/B0/x") == "***"


def test_the_values_of_a_query_are_secrets_as_written_and_as_meant() -> None:
    assert secrets_of_url("/m?a=b%20c&d") == ["b%20c", "d", "b c"]
    assert secrets_of_url("http://[x") == []


@pytest.mark.parametrize(
    "secret", ['sk"0123\\456789/+=', "sk<0123>&'456789", "sk-ü0123456789", "sk%2F0123456789"]
)
@pytest.mark.parametrize(
    "write",
    [
        str,
        json.dumps,
        html.escape,
        quote_plus,
        quote,
        lambda text: json.dumps(text).replace("/", r"\/"),
    ],
    ids=["as it is", "JSON", "HTML", "URL", "path", "JSON of PHP"],
)
def test_a_secret_is_hidden_however_it_is_written(secret: str, write: Callable[[str], str]) -> None:
    for text in (f"you sent {write(secret)}.", write(f"you sent {secret}")):
        hidden = without_secrets(text, [secret])
        assert "0123" not in hidden
        assert "456789" not in hidden
        assert b"0123" not in without_literally(text.encode(), [secret])
