"""What all tests share: how hypothesis searches, and how long the crash tests go on.

Rule 1: a failing example is printed so that it can be run again.
Rule 2: CI searches the same examples in every run, so that a red run is the fault of its change.
Elsewhere each run searches new ones.
Rule 3: a run in a shell's background is the same run: SIGINT, which it ignores, is not ignored here.
"""

import os
import signal

import pytest
from hypothesis import settings

settings.register_profile("developer", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("developer"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "developer")

signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long versions, by hand; add `--timeout 0`."""
    differences = parser.getgroup("differences", "packets through translate and both datapaths")
    differences.addoption(
        "--packets", type=int, default=2000, help="how many (tests/lab/test_differential.py)"
    )
    crashes = parser.getgroup("crashes", "crash tests of the log (tests/crash/test_log_*.py)")
    crashes.addoption("--kills", type=int, default=50, help="how often the appending process is killed")
    crashes.addoption("--crash-points", type=int, default=200, help="how often the power fails")
    crashes.addoption("--crash-seed", type=int, default=None, help="the first story; random by default")
    hostile = parser.getgroup("hostile", "mutated messages (test_hostile_*.py)")
    hostile.addoption("--mutations", type=int, default=20_000, help="how many")
