"""Tests on a real GPU: `make gpu-test`. Without one each is skipped, with the reason. With --without-gpu they run on
the CPU, but for what needs a card.

A test says by `seconds` what it may cost on an H100: it is skipped where less than that is left of --seconds, and ended
where it takes several times as long. What it puts into `figures` is in the report even where it then fails.
"""

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import machine, models
from tests.gpu.product import Product, Recording, as_it_is_or_extended, record
from tests.gpu.report import ROOT, Report, clean, shortened

_REPORT = pytest.StashKey[Report]()
_FIGURES = pytest.StashKey[dict[str, Any]]()
_END = pytest.StashKey[float]()
# More than a test should need: torch's import, a slow disk. A rehearsal may run on two busy cores.
_SLACK_SECONDS = {"on a card": 60, "rehearsal": 600}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu", "tests on a GPU")
    group.addoption("--report-folder", type=Path, default=ROOT / "gpu-report", help="for report.json and report.txt")
    group.addoption("--seconds", type=float, default=1800, help="what would take longer than that is skipped")
    group.addoption("--without-gpu", action="store_true", help="rehearse on the CPU")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seconds(number): what this test may take on an H100")
    config.stash[_END] = time.monotonic() + config.getoption("--seconds")
    config.stash[_REPORT] = Report(config.getoption("--report-folder"), rehearsal=config.getoption("--without-gpu"))


@pytest.hookimpl(trylast=True)  # after pytest has grouped the tests of each fixture
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ordered by importance, in case the time runs out."""
    items.sort(key=lambda item: "abcgdef".find(item.path.name.removeprefix("test_")[0]))
    for item in items:
        config.stash[_REPORT].plan(item.nodeid)


def _seconds(item: pytest.Item) -> float:
    marker = item.get_closest_marker("seconds")
    return float(marker.args[0]) if marker else 10.0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    report, left = item.config.stash[_REPORT], item.config.stash[_END] - time.monotonic()
    report.steps[item.nodeid].reason = "it began, and did not end"
    report.write()
    if item.config.pluginmanager.hasplugin("timeout"):
        slack = _SLACK_SECONDS["rehearsal" if report.rehearsal else "on a card"]
        item.add_marker(pytest.mark.timeout(max(min(4 * _seconds(item) + slack, left + 20), 20)))
    started = time.monotonic()
    result = yield
    report.steps[item.nodeid].seconds = round(time.monotonic() - started, 1)
    report.write()
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    report = item.config.stash[_REPORT]
    if not report.rehearsal and (reason := machine.why_no_card()) is not None:
        report.machine = report.machine or machine.facts()  # which may explain the failure
        pytest.skip(f"no card: {reason}")
    left = item.config.stash[_END] - time.monotonic()
    if _seconds(item) > left:
        pytest.skip(f"no time left: it may take {_seconds(item):.0f} s, and {max(left, 0):.0f} s are left")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    made: pytest.TestReport = yield
    step = item.config.stash[_REPORT].steps[item.nodeid]
    step.figures = item.stash.get(_FIGURES, {})
    if made.failed:
        step.outcome, step.reason = "failed", shortened(clean(f"in its {made.when}\n{made.longreprtext}"))
    elif made.skipped and step.outcome != "failed":
        step.outcome = "skipped"
        reason = made.longrepr[2] if isinstance(made.longrepr, tuple) else made.longreprtext
        step.reason = clean(reason.removeprefix("Skipped: "))
    elif made.when == "call" and step.outcome != "failed":
        step.outcome, step.reason = "passed", ""
    return made


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    page = config.stash[_REPORT].folder / "report.txt"
    if page.exists():
        terminalreporter.write_line(f"report: {page}")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the test measures, by name and unit; goes into the report."""
    found: dict[str, Any] = request.node.stash.setdefault(_FIGURES, {})
    return found


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    return request.config.stash[_REPORT]


@pytest.fixture(scope="session")
def device(report: Report) -> str:
    """The config's device."""
    return "cpu" if report.rehearsal else "cuda"


@pytest.fixture(scope="session")
def card(report: Report) -> None:
    """For tests that need a real card."""
    if report.rehearsal:
        pytest.skip("it needs a card, and this is a rehearsal without one")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family."""
    return models.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def recording(device: str, folder: Path) -> Recording:
    """The findings of record mode in the unchanged product."""
    return record(device, folder)


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest, report: Report, device: str, folder: Path) -> Product:
    """The daemon to test: as it is, or, where its worker does not come up on the card, a build whose lists have what
    record mode found to be missing. So that one visit yields the rest of what there is to learn."""
    found = as_it_is_or_extended(device, folder, lambda: request.getfixturevalue("recording"))
    if found.extended:
        report.note(f"THE WORKER'S LISTS WERE EXTENDED BY WHAT RECORD MODE FOUND:\n{found.extended}")
    for heading, failures in (("AS IT IS", found.failures), ("WITH THESE LINES", found.left if found.extended else {})):
        for model, failure in failures.items():
            report.note(f"{heading} THE PRODUCT DID NOT GENERATE WITH {model}:\n{failure}")
    return found
