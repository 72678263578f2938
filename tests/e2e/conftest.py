"""Fixtures of the end-to-end tests."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from berth_host import BerthHost  # noqa: E402


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
