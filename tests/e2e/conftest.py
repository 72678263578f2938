"""Fixtures of the end-to-end tests."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from berth_host import BerthHost  # noqa: E402
from machine_host import Machine  # noqa: E402


@pytest.fixture
def host():
    """A host with a running daemon, for one test."""
    with BerthHost() as berth_host:
        yield berth_host


@pytest.fixture(scope="module")
def shared_host():
    """A host with a running daemon, for all tests of a file: each uses names of its own."""
    with BerthHost() as berth_host:
        yield berth_host


@pytest.fixture(scope="module")
def db(shared_host):
    """A machine of the shared host, with a database under load."""
    machine = Machine.create(shared_host, "db", words="")
    machine.start()
    machine.wait_for_commits(20)
    return machine
