"""Prints how many test cases of the last `meson test` passed, failed and were skipped.

usage: count_results.py BUILD_FOLDER/meson-logs

A case is a line of TAP; a program that speaks none is one case. A program that died, or ran out of
time, between its cases is a failed case too: only testlog.json tells.
"""
import pathlib
import sys
import xml.etree.ElementTree as xml

from testlog import program_of, programs_that_failed


def count(logs):
    # Under a wrapper meson adds its name: testlog-setarch.json.
    logs = {log.name.split(".", 1)[1]: log for log in logs.glob("testlog*")}
    passed = failed = skipped = 0
    programs_with_failures = set()
    for case in xml.parse(logs["junit.xml"]).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            # A program without cases is the case itself.
            programs_with_failures |= {program_of(case.get("classname")),
                                       program_of(case.get("name"))}
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    failed += sum(program_of(program["name"]) not in programs_with_failures
                  for program in programs_that_failed(logs["json"]))
    return passed, failed, skipped


try:
    print(*count(pathlib.Path(sys.argv[1])))
except KeyError:  # meson never came to run a test
    print(0, 1, 0)
