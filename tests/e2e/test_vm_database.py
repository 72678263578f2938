"""A database under load in a guest, and checkpoints of it that are restored into a second machine, which boots from them:
every transaction that was acknowledged before the cut is there, none from after it, and pg_dump and pg_amcheck find the
database sound. It starts without recovery from a checkpoint that says `application`, and recovers from the others.

BERTH_DATABASE_CHECKPOINTS is how many are made: applications at rest, a cut alone and one with memory, in turn."""

import os

import pytest

import guest_verify
from machine_host import Machine, guest_toml

COUNT = int(os.environ.get("BERTH_DATABASE_CHECKPOINTS") or 3)
KINDS = {"application": [], "crash": ["--no-quiesce"], "memory": ["--memory"]}
# What the database replays of the log when there is nothing to recover: its own record of a checkpoint.
REPLAYED_AT_REST_MAX = 1024


@pytest.mark.parametrize("number", range(COUNT))
def test_a_second_machine_finds_every_transaction_that_was_acknowledged(shared_host, db, tmp_path, number):
    kind = list(KINDS)[number % len(KINDS)]
    acknowledged = db.wait_for_commits(db.commits() + 20)
    made = db.checkpoint("point", *KINDS[kind])
    after = db.commits()
    db.wait_for_commits(after + 20)  # the load goes on
    assert made["consistency"] == ("application" if kind == "application" else "crash") and made["memory"] == (kind == "memory")
    shared_host.json("checkpoint", "export", "db@point", tmp_path / "restored", timeout_s=180)
    shared_host.cli("checkpoint", "delete", "db@point")
    shared_host.cli("vm", "suspend", "db")  # this host may have no processors for both

    disk = tmp_path / "restored/root.raw"
    second = Machine.create(shared_host, "second", guest_toml("second", image_file=disk))
    second.start()
    facts = {**guest_verify.check_file_system(disk), **guest_verify.check_database_in(second.agent(), acknowledged)}
    assert guest_verify.problems(facts, acknowledged, after) == [], facts
    assert (facts["replayed_bytes"] < REPLAYED_AT_REST_MAX) == (kind == "application"), facts
    second.stop("--force")
    shared_host.cli("vm", "delete", "second")
    shared_host.cli("vm", "resume", "db")
    disk.unlink()
