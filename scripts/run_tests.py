#!/usr/bin/python3
"""Runs the tests of a build directory and says plainly how they went.

    scripts/run_tests.py build/dev [ctest options]

The last line counts test cases, not programs: each program leaves a report (GoogleTest and pytest both write JUnit's
format), and a program without one counts as the one case that ctest saw. A program that failed although its report
shows no failure (it crashed, leaked, or ran out of time) counts as a failed case more.
"""

import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter


def cases_of_report(report):
    """Outcomes of the cases in a JUnit report of GoogleTest or pytest; None when there is no readable report."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return None
    outcomes = Counter()
    for case in cases:
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes["failed"] += 1
        elif case.get("status") == "notrun":  # DISABLED_ in GoogleTest, or filtered out
            outcomes["skipped"] += 1
        elif case.find("skipped") is not None or case.get("result") in ("skipped", "suppressed"):
            outcomes["skipped"] += 1
        else:
            outcomes["passed"] += 1
    return outcomes


def reason_not_run(program):
    """Why ctest did not run a program, or took it as skipped (SKIP_RETURN_CODE, SKIP_REGULAR_EXPRESSION)."""
    skipped = program.find("skipped")
    return "" if skipped is None else skipped.get("message", "")


def count(ctest_report, reports):
    """Sums up a ctest JUnit report and, for each program in it, the program's own report."""
    total = Counter()
    for program in ElementTree.parse(ctest_report).iter("testcase"):
        status = program.get("status")  # run, fail, notrun, disabled
        cases = cases_of_report(reports / f"{program.get('name')}.xml")
        if status == "run":
            total += cases if cases else Counter(passed=1)
        elif status == "fail":
            total += cases or Counter()
            if not cases or not cases["failed"]:
                total["failed"] += 1
        elif status == "disabled" or reason_not_run(program).startswith("SKIP_"):
            total["skipped"] += 1
        else:  # the program could not be started
            total["failed"] += 1
    return total


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    reports = build / "test-results"
    reports.mkdir(exist_ok=True)
    for old in reports.glob("*.xml"):
        old.unlink()
    ctest_report = reports / "ctest.xml"
    command = ["ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error",
               "-j", os.environ.get("BERTH_JOBS", str(os.cpu_count())), "--output-junit", str(ctest_report)]
    ctest = subprocess.run(command + sys.argv[2:], stdin=subprocess.DEVNULL)
    if not ctest_report.exists():
        print("0 passed, 1 failed, 0 skipped")
        return 1
    total = count(ctest_report, reports)
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped", flush=True)
    return 1 if ctest.returncode or total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
