"""Every issue of Registrator's that a registrar should learn from has a test that carries its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
NAME = re.compile(r"^def test_((?:\d+_)+)", re.MULTILINE)

ISSUES = """
    184 208 308 277  181 312 622 644 475  505 202  325 339  73 87  377  81 334  264 327 440 593  127 685 122 431 457
    248  153 449  82 128 646  1 655  578  414 338 424  637 687 233  430  342  337 291 409 477  498 529 316 293  272 185
    38 42 465 487 576  608 152  311 437 270 492  328 653  691 256 598 229 321  443 567 607 588  347 664  619 620
    298 462 198 170 302  677 503 396  408 224  135 411 538 565 604  59 243 551  506 675  712  537
""".split()


@pytest.fixture(scope="module")
def tested() -> set[str]:
    texts = [
        path.read_text() for folder in ("registrar", "e2e") for path in (TESTS / folder).glob("test_*.py")
    ]
    return {number for text in texts for found in NAME.findall(text) for number in found.split("_")}


@pytest.mark.parametrize("issue", ISSUES)
def test_an_issue_has_a_test(issue: str, tested: set[str]) -> None:
    assert issue in tested
