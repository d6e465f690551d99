"""Which names can be services', and how names compare."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.errors import ConfigurationError, InvalidName
from discovery.names import close_names, dns_label_problem, env_name, fold, service_name


@pytest.mark.parametrize(
    "name",
    ["web", "python-micro-service", "Web_2", "a.b", "_tcp", "ä", "名前", "a" * 255, "-x", "...", "web:80"],
)
def test_a_name_that_consul_takes_is_returned_as_it_is(name):
    assert service_name(name) == name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "the service name from lookup is empty"),
        ("a" * 256, "has 256 octets, at most 255 are possible"),
        ("ä" * 128, "has 256 octets"),
        (".", "is a step in a path"),
        ("..", "is a step in a path"),
        ("a b", "holds ' '"),
        ("a/b", "holds '/'"),
        ("a\\b", r"holds '\\'"),
        ("a?b", "holds '?'"),
        ("a#b", "holds '#'"),
        ("a%20b", "holds '%'"),
        ("a\n", r"holds '\n'"),
        ("a\x7f", r"holds '\x7f'"),
        ("a\0", r"holds '\x00'"),
        (b"\xff".decode(errors="surrogateescape"), r"holds '\udcff'"),
    ],
)
def test_a_name_that_nobody_could_look_up_is_refused(name, complaint):
    with pytest.raises(InvalidName) as caught:
        service_name(name)
    assert complaint in str(caught.value)
    assert isinstance(caught.value, ConfigurationError)
    assert isinstance(caught.value, ValueError)


def test_the_error_says_where_the_name_came_from_and_shows_it():
    with pytest.raises(InvalidName, match=r"the service name 'a b' from SERVICE_NAME holds ' '"):
        service_name("a b", origin="SERVICE_NAME")


@given(st.text())
def test_what_is_accepted_can_be_written_into_a_url_path(name):
    from urllib.parse import quote, unquote, urlsplit

    try:
        accepted = service_name(name)
    except InvalidName:
        return
    path = urlsplit(f"http://host/v1/health/service/{quote(accepted, safe='')}").path
    assert unquote(path.rpartition("/")[2]) == name
    assert path.count("/") == 4


@given(st.text())
def test_folding_is_idempotent_and_ignores_case(name):
    assert fold(fold(name)) == fold(name)
    assert fold("WEB-Ä") == fold("web-ä")


@pytest.mark.parametrize("name", ["web", "WEB-2", "a", "_sip", "a_b", "1", "a" * 63])
def test_a_dns_label_is_no_problem(name):
    assert dns_label_problem(name) is None


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a" * 64, "64 characters"),
        ("a.b", "reads what stands before the last one as a tag"),
        ("-a", "does not begin or end with '-'"),
        ("a-", "does not begin or end with '-'"),
        ("ä", "letters, digits"),
        ("a\n", "letters, digits"),
        ("", "letters, digits"),
    ],
)
def test_what_dns_cannot_ask_for_is_explained(name, complaint):
    assert complaint in (dns_label_problem(name) or "")


@pytest.mark.parametrize(
    ("name", "variable"), [("web", "WEB"), ("python-micro-service", "PYTHON_MICRO_SERVICE"), ("a.b2", "A_B2")]
)
def test_a_name_in_a_variable(name, variable):
    assert env_name(name) == variable


def test_close_names_come_best_first_as_they_were_registered():
    known = ["Web-Api", "web", "database", "webb", "web-app", "wxb"]
    assert close_names("WEB", known)[0] == "web"
    assert len(close_names("web", known)) == 3
    assert close_names("web-api", known)[0] == "Web-Api"
    assert close_names("zzz", known) == ()
    assert close_names("web", []) == ()
