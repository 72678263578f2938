#!/usr/bin/python3
"""Says whether a disk of the guest (scripts/guest-image) is what its database promised at a cut.

    tests/e2e/guest_verify.py DISK --committed N [--at-most M]

DISK is a raw file, such as a restored checkpoint; it is only read. N is a serial number that the guest had
acknowledged before the cut: read it first, then cut. M, if given, is one that it acknowledged after the cut: nothing
later may be on the disk, save the one transaction that was under way.

What is checked:
  1. the file system: on a copy, e2fsck replays the journal; a second, full e2fsck must find nothing to repair;
  2. the database, as its owner would: the guest boots from DISK (its writes are thrown away), so its own kernel replays
     the journal and PostgreSQL its log; pg_dump then reads it all, and pg_amcheck compares heaps and indexes, on data
     with page checksums;
  3. every transaction: serial numbers 1..N all there, 1..last without a gap, every row's SHA-256 (made by the client
     before it was sent), and every account's balance against all transfers (so no transaction is there by half);
  4. the small files that the guest wrote, synced and renamed: their SHA-256.

Prints one line of JSON; `problems` has a sentence for each failed check. Exit status: 0 when there are none, 1 when
there are, 2 on wrong usage. Takes about 10 s.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import guest

# How many offenders of a kind are listed.
LISTED_MAX = 10

# As in scripts/guest-image, where the client makes the checksum.
_FACTS_SQL = """
-- The rows themselves, not what an index says about them.
SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off;
WITH
  bad AS (
    SELECT serial FROM ledger
    WHERE checksum <> encode(sha256(convert_to(
      concat_ws(':', serial, source, target, amount, payload), 'UTF8')), 'hex')),
  wanted AS (
    SELECT generate_series(1, greatest({committed}, (SELECT max(serial) FROM ledger))) AS serial),
  missing AS (SELECT serial FROM wanted EXCEPT SELECT serial FROM ledger),
  moved AS (
    SELECT id, sum(amount) AS amount FROM (
      SELECT target AS id, amount FROM ledger UNION ALL SELECT source, -amount FROM ledger) AS half GROUP BY id),
  wrong AS (
    SELECT id FROM account LEFT JOIN moved USING (id) WHERE balance <> 1000000 + coalesce(moved.amount, 0))
SELECT json_build_object(
  'rows', (SELECT count(*) FROM ledger),
  'last_serial', (SELECT coalesce(max(serial), 0) FROM ledger),
  'accounts', (SELECT count(*) FROM account),
  'bad_checksum_count', (SELECT count(*) FROM bad),
  'bad_checksums', (SELECT coalesce(json_agg(serial ORDER BY serial), '[]')
    FROM (SELECT serial FROM bad ORDER BY 1 LIMIT {limit}) AS few),
  'missing_count', (SELECT count(*) FROM missing),
  'missing', (SELECT coalesce(json_agg(serial ORDER BY serial), '[]')
    FROM (SELECT serial FROM missing ORDER BY 1 LIMIT {limit}) AS few),
  'wrong_balance_count', (SELECT count(*) FROM wrong));
"""

_PSQL = """
psql -XAtq -v ON_ERROR_STOP=1 -U postgres -d berth <<'SQL'
{sql}
SQL
"""

# Waits for the recovery to end, or for PostgreSQL to have said that there will be none.
_WAIT_FOR_DATABASE = r"""
log=/run/berth/postgresql.log
tries=0
until pg_isready -q -U postgres; do
  tries=$((tries + 1))
  if [ "$tries" -gt 600 ] ||
      grep -E 'PANIC|FATAL' "$log" | grep -qvE 'the database system is (starting up|not yet accepting)'; then
    tail -n 5 "$log"
    exit 1
  fi
  sleep 0.1
done
"""

_CHECK_SMALL_FILES = r"""
cd /var/noise || exit 1
for file in *-*; do
  [ -e "$file" ] && echo "${file#*-}  $file"
done >/tmp/small-files
wc -l </tmp/small-files
sha256sum --quiet --check /tmp/small-files 2>/dev/null
true
"""


def check_file_system(disk):
    """Facts about the file system; e2fsck works on a copy that goes away."""
    environment = {**os.environ, "LC_ALL": "C", "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    with tempfile.TemporaryDirectory(prefix="berth-verify-", dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        copy = pathlib.Path(directory) / "copy"
        subprocess.run(["cp", "--reflink=auto", "--sparse=always", "--no-preserve=mode", disk, copy], check=True)

        def e2fsck(*options):
            result = subprocess.run(["e2fsck", *options, copy], env=environment, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            return result.returncode, result.stdout.decode(errors="replace").strip()

        # 1: something was done, which includes replaying the journal and releasing deleted files that were open.
        status, said = e2fsck("-p")
        facts = {"journal": "replayed" if "recovering journal" in said else "clean"}
        if status not in (0, 1):
            return {**facts, "file_system": said[-500:]}
        status, said = e2fsck("-fn")
        return {**facts, "file_system": "clean" if status == 0 else said[-500:]}


def replayed_bytes(log):
    """How much of its log the database has replayed, by what it says of where it began and ended. A checkpoint that the
    database makes while it runs leaves its own few records to replay, and no transaction."""
    places = [int(high, 16) << 32 | int(low, 16) for high, low in re.findall(r"at ([0-9A-F]+)/([0-9A-F]+)", log)]
    return places[1] - places[0] if len(places) == 2 else 0


def check_database(disk, committed):
    """Facts about what the guest finds when it boots from the disk."""
    with guest.Guest(raw=disk, snapshot=True, words="berth.load=off") as machine:
        return {"boot_seconds": round(machine.wait_for_agent(90), 1), **check_database_in(machine.agent, committed)}


def check_database_in(agent, committed):
    """The same facts, asked of a guest that has booted from the disk, with berth.load=off."""
    status, said, _ = agent.run(_WAIT_FOR_DATABASE, 90)
    if status != 0:
        return {"database": f"does not start: {said.strip()}"}

    _, said, _ = agent.run("grep -oE 'redo (starts|done) at [0-9A-F/]+' /run/berth/postgresql.log")
    facts = {"replayed_bytes": replayed_bytes(said)}
    # Every row is read and written out again; then heaps and indexes are compared.
    status, _, errors = agent.run("pg_dump -U postgres berth >/dev/null", 120)
    facts["database"] = "ok" if status == 0 else f"cannot be dumped: {errors.strip()[-500:]}"
    status, said, errors = agent.run("pg_amcheck -U postgres -d berth --heapallindexed --parent-check", 120)
    if status != 0:
        facts["database"] = (said + errors).strip()[-500:]
    sql = _FACTS_SQL.format(committed=committed, limit=LISTED_MAX)
    status, said, errors = agent.run(_PSQL.format(sql=sql), 120)
    if status != 0:
        return {**facts, "database": f"{facts['database']}; cannot be read: {errors.strip()[-500:]}"}
    facts.update(json.loads(said))

    _, said, _ = agent.run(_CHECK_SMALL_FILES, 60)
    count, *bad = said.splitlines()
    return {**facts, "small_files": int(count), "bad_small_files": [line.split(":")[0] for line in bad[:LISTED_MAX]]}


def problems(facts, committed, at_most=None):
    """What is wrong, a sentence each: nothing that was acknowledged may be missing, nothing may be damaged."""
    found = []
    if facts.get("file_system") != "clean":
        found.append(f"the file system is damaged: {facts.get('file_system')}")
    if facts.get("database") != "ok":
        found.append(f"the database is damaged: {facts.get('database')}")
    if "rows" not in facts:
        return found or ["nothing was checked"]
    if facts["last_serial"] < committed:
        found.append(f"{committed} was committed, the last on the disk is {facts['last_serial']}")
    if at_most is not None and facts["last_serial"] > at_most + 1:
        found.append(f"{facts['last_serial']} is on the disk, and was not yet committed at the cut")
    if facts["missing_count"]:
        found.append(f"{facts['missing_count']} transactions are missing, the first: {facts['missing']}")
    if facts["rows"] != facts["last_serial"] - facts["missing_count"] and facts["last_serial"] >= committed:
        found.append(f"{facts['rows']} rows up to {facts['last_serial']}: some are there twice")
    if facts["bad_checksum_count"]:
        found.append(f"{facts['bad_checksum_count']} rows have a wrong checksum, the first: {facts['bad_checksums']}")
    if facts["accounts"] != 100 or facts["wrong_balance_count"]:
        found.append(f"{facts['wrong_balance_count']} of {facts['accounts']} accounts are not what their transfers make them")
    if facts["bad_small_files"]:
        found.append(f"small files are damaged: {facts['bad_small_files']}")
    return found


def verify(disk, committed, at_most=None):
    """All the facts about a disk; `ok` when there are no `problems`."""
    started = time.monotonic()
    facts = {"disk": str(disk), "committed": committed}
    facts.update(check_file_system(disk))
    try:
        facts.update(check_database(disk, committed))
    except guest.GuestError as error:
        facts["database"] = f"the guest does not boot or answer: {error}"
    found = problems(facts, committed, at_most)
    return {"ok": not found, **facts, "problems": found, "seconds": round(time.monotonic() - started, 1)}


def main():
    parser = argparse.ArgumentParser(description="Checks a disk of the demo's guest against what its database promised.")
    parser.add_argument("disk", type=pathlib.Path)
    parser.add_argument("--committed", type=int, required=True, metavar="N", help="acknowledged before the cut")
    parser.add_argument("--at-most", type=int, metavar="M", help="acknowledged after the cut")
    arguments = parser.parse_args()
    if not arguments.disk.exists():
        parser.error(f"{arguments.disk} does not exist")
    facts = verify(arguments.disk, arguments.committed, arguments.at_most)
    print(json.dumps(facts))
    return 0 if facts["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
