"""What the tests cost: `pytest --processor-time=N` ends with the N that took the most processor time.

On two cores the suite is limited by processor time, and `--durations` shows waits instead. A test is charged
for its process and for all ended children of it, and so is its fixtures' set-up; what a session's server or
engine uses while it runs is charged to the test at which it ends.
"""

import os
from collections import defaultdict
from collections.abc import Generator

import pytest

_OPTION, _NAME = "--processor-time", "processor_time"
_SECONDS: dict[str, float] = defaultdict(float)
_before = 0.0


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "show the N tests that took the most processor time, and that of all"
    parser.addoption(_OPTION, type=int, metavar="N", default=0, help=help)


def pytest_collection_finish() -> None:
    _since()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the test runs: each of its three phases is charged with what was used since the one before."""
    report = yield
    report.user_properties.append((_NAME, _since()))  # travels with the report from a worker
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _SECONDS[report.nodeid] += dict(report.user_properties)[_NAME]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if number := config.getoption(_OPTION):
        terminalreporter.section(f"processor time: {sum(_SECONDS.values()):.0f} s in all")
        for test, seconds in sorted(_SECONDS.items(), key=lambda pair: -pair[1])[:number]:
            terminalreporter.write_line(f"{seconds:8.1f} s  {test}")


def _since() -> float:
    global _before
    now = sum(os.times()[:4])
    used, _before = now - _before, now
    return used
