"""Prints how many test cases of the last `meson test` passed, failed and were skipped.

usage: count_results.py BUILD_FOLDER/meson-logs

A case is a line of TAP; a program that speaks none is one case. A program that died, or ran out of
time, between its cases is a failed case too: only testlog.json tells. Of a program that ran again (again*) it is
the second run that counts.
"""
import pathlib
import sys
import xml.etree.ElementTree as xml

from testlog import names_that_failed, program_of


def count_run(logs, without):
    passed = failed = skipped = 0
    programs_with_failures = set()
    for case in xml.parse(logs["junit.xml"]).iter("testcase"):
        # A program without cases is the case itself.
        programs = {program_of(case.get("classname")), program_of(case.get("name"))}
        if programs & without:
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            programs_with_failures |= programs
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    failed += len(names_that_failed(logs["json"]) - programs_with_failures - without)
    return passed, failed, skipped


def count(folder):
    # Under a wrapper meson adds its name: testlog-setarch.json.
    logs, again = ({log.name.split(".", 1)[1]: log for log in folder.glob(base + "*")} for base in ("testlog", "again"))
    if not again:
        return count_run(logs, set())
    return map(sum, zip(count_run(logs, names_that_failed(logs["json"])), count_run(again, set())))


try:
    print(*count(pathlib.Path(sys.argv[1])))
except KeyError:  # meson never came to run a test
    print(0, 1, 0)
