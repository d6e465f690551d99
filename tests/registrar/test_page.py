"""docs/registrar.md says what the program does: options, keys, labels, metrics, outputs; no more, no less."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from registrar.checks import KINDS, SETTINGS
from registrar.cli import _desired_to_text, _plan_to_text, main
from registrar.config import FURTHER, REGISTRATORS, Option
from registrar.containers import Container
from registrar.desired import KNOWN_KEYS, TAG_FIELDS, TAG_MAPS, Host, desire
from registrar.metadata import EXTENSIONS
from registrar.owner import MARKS
from registrar.plan import plan
from registrar.rules import Rules
from tests.registrar.build import OWNER, container, container_id
from tests.registrar.fake_docker import FakeDocker
from tests.registrar.fake_registry import FakeRegistry
from tests.registrar.running import Running

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "registrar.md").read_text()


def section(title: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    level, _, _ = title.partition(" ")
    found = re.search(
        rf"^{re.escape(title)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", PAGE, re.DOTALL | re.MULTILINE
    )
    assert found, f"there is no {title!r}"
    return found[1]


def first_cells(text: str) -> list[str]:
    """What stands between backticks in the first column of every table."""
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "dashes", "options"),
    [("### Registrator's", "-", REGISTRATORS), ("### Further", "--", FURTHER)],
    ids=["registrator's", "further"],
)
def test_every_option_is_there_with_its_value_and_default(
    title: str, dashes: str, options: tuple[Option, ...]
) -> None:
    rows = {
        cells[0]: cells[1]
        for line in section(title).splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 3
    }
    rows = {key.strip("`"): default for key, default in rows.items() if key.startswith("`")}
    assert list(rows) == [f"{dashes}{option.name} {option.metavar}".strip() for option in options]
    for option in options:
        default = rows[f"{dashes}{option.name} {option.metavar}".strip()]
        if not option.metavar:
            assert default == "off", option.name
        elif option.default:
            assert default == f"`{option.default}`", option.name
        else:
            assert "`" not in default, option.name


@pytest.mark.parametrize("command", ["run", "plan", "explain", "up"])
def test_no_command_has_an_option_that_is_not_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = set(re.findall(r"^  (?:-h, )?--([A-Za-z-]+)", capsys.readouterr().out, re.MULTILINE))
    documented = set(
        re.findall(r"`\[?--?([A-Za-z-]+)|\[--([a-z]+)", section("## Options") + section("## Commands"))
    )
    known = {name for names in documented for name in names if name}
    assert options - {"help"} <= known


# --- what containers say ---------------------------------------------------------------------------------


def test_every_key_is_there_and_no_other() -> None:
    keys = first_cells(PAGE[PAGE.index("| Key | Meaning | Without it |") : PAGE.index("### Tags")])
    assert {key.lower() for key in keys} == {*KNOWN_KEYS, "ip", "check_..."}


def test_every_check_and_setting_is_there_and_no_other() -> None:
    kinds, _, settings = section("### Checks").partition("| Setting |")
    assert [key.lower() for key in first_cells(kinds)] == [f"check_{kind}" for kind in KINDS]
    assert {key.lower() for key in first_cells(settings)} == {f"check_{name}" for name in SETTINGS}


def test_every_label_of_our_own_is_there_and_no_other() -> None:
    text = section("### Labels of our own")
    labels = {key.partition("=")[0] for key in re.findall(r"`(portcall\.[^`]+)`", text)}
    assert labels == {f"portcall.{key}" for key in EXTENSIONS}


def test_what_is_filled_in_in_tags_is_there_and_nothing_else() -> None:
    assert first_cells(section("### Tags"))[1:] == [
        *(f"{{{name}}}" for name in TAG_FIELDS),
        *(f"{{{name}:KEY}}" for name in TAG_MAPS),
    ]


def test_the_marks_are_there() -> None:
    assert set(re.findall(r"`(portcall-[a-z]+)`", section("## Ownership"))) == MARKS


def test_every_variable_is_there_and_no_other() -> None:
    read = set(re.findall(r"CONSUL_[A-Z_]+[A-Z]", (DOCS.parent / "discovery" / "config.py").read_text()))
    read |= {"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}
    assert set(first_cells(section("### Variables of the registrar's own"))) == read


# --- what it shows ---------------------------------------------------------------------------------------


def test_every_metric_is_there_and_no_other() -> None:
    with Running(FakeDocker(), FakeRegistry()) as running:
        text = running.reconciler.metrics()
    assert set(first_cells(section("## Metrics and health"))) == set(
        re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    )


def shop() -> Container:
    labels = {
        "SERVICE_80_NAME": "shop",
        "SERVICE_TAGS": "blue,canary",
        "SERVICE_80_CHECK_HTTP": "/health",
    }
    options: dict[str, Any] = {
        "image": "python-micro-service",
        "publish": {
            "80/tcp": [("0.0.0.0", 8080)],
            "443/tcp": [("0.0.0.0", 8443)],
            "9000/tcp": [("127.0.0.1", 9000)],
        },
        "expose": ["5000/tcp"],
    }
    return container("shop", labels=labels, env={"SERVICE_REGION": "eu"}, **options)


def test_the_outputs_are_real() -> None:
    service1 = container("service1", image="python-micro-service", publish={"5000/tcp": [("0.0.0.0", 32768)]})
    host = Host(OWNER, "172.28.128.3")
    both = [desire(one, Rules(), host) for one in (shop(), service1)]
    explained = "\n".join(_desired_to_text(both[0]))
    assert container_id("shop")[:12] in explained
    assert f"```text\n{explained}\n```\n" in PAGE
    made = plan([registration for one in both for registration in one.registrations], {}, OWNER)
    planned = "\n".join(_plan_to_text(made))
    assert f"```text\n{planned}\n```\n" in PAGE
