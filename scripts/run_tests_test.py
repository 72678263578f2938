"""The last line of `make test` counts what really happened, also where a program dies before it reports."""

import pathlib
import tempfile
import unittest
from collections import Counter

from run_tests import count


class CountTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.reports = pathlib.Path(directory.name)

    def count(self, programs, **reports):
        cases = "".join(f'<testcase name="{name}" status="{status}">{body}</testcase>' for name, status, body in programs)
        (self.reports / "ctest.xml").write_text(f"<testsuite>{cases}</testsuite>", encoding="utf-8")
        for name, text in reports.items():
            (self.reports / f"{name}.xml").write_text(text, encoding="utf-8")
        return count(self.reports / "ctest.xml", self.reports)

    def test_a_program_without_a_report_is_one_case(self):
        self.assertEqual(self.count([("a", "run", ""), ("b", "fail", "")]), Counter(passed=1, failed=1))

    def test_cases_are_counted_from_the_report_of_googletest(self):
        report = """<testsuites><testsuite>
            <testcase name="a" status="run" result="completed"/>
            <testcase name="b" status="run" result="skipped"><skipped message="no kvm"/></testcase>
            <testcase name="c" status="notrun" result="suppressed"/>
            <testcase name="d" status="run" result="completed"><failure message="x"/></testcase>
            </testsuite></testsuites>"""
        self.assertEqual(self.count([("a", "fail", "")], a=report), Counter(passed=1, failed=1, skipped=2))

    def test_cases_are_counted_from_the_report_of_pytest(self):
        report = """<testsuites><testsuite>
            <testcase name="a"/><testcase name="b"><skipped/></testcase><testcase name="c"><error/></testcase>
            </testsuite></testsuites>"""
        self.assertEqual(self.count([("a", "fail", "")], a=report), Counter(passed=1, failed=1, skipped=1))

    def test_a_crash_after_or_amid_passing_cases_is_a_failure(self):
        passed = '<testsuites><testsuite><testcase name="a" status="run" result="completed"/></testsuite></testsuites>'
        self.assertEqual(self.count([("a", "fail", "")], a=passed), Counter(passed=1, failed=1))
        self.assertEqual(self.count([("a", "fail", "")], a="<testsui"), Counter(failed=1))

    def test_a_program_that_could_not_be_started_has_failed(self):
        self.assertEqual(
            self.count([("a", "notrun", '<skipped message="Unable to find executable"/>')]), Counter(failed=1)
        )

    def test_a_program_that_says_that_it_skips_is_skipped(self):
        self.assertEqual(
            self.count([("a", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/>')]), Counter(skipped=1)
        )


if __name__ == "__main__":
    unittest.main()
