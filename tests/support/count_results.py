"""Prints how many test cases of the last `meson test` passed, failed and were skipped.

usage: count_results.py BUILD_FOLDER/meson-logs

A case is a line of TAP; a program that speaks none is one case. A program that died, or ran out of
time, between its cases is a failed case too: only testlog.json tells.
"""
import json
import pathlib
import sys
import xml.etree.ElementTree as xml


def count(logs):
    passed, failed, skipped = 0, set(), 0
    for case in xml.parse(logs / "testlog.junit.xml").iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add((case.get("classname"), case.get("name")))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    programs_failed = {program for program, _ in failed} | {name for _, name in failed}
    for line in (logs / "testlog.json").read_text().splitlines():
        program = json.loads(line)
        if program["result"] in ("OK", "SKIP", "EXPECTEDFAIL"):
            continue
        name = program["name"].split(" / ")[-1]
        if name not in programs_failed and "tandem." + name not in programs_failed:
            failed.add((name, program["result"]))
    return passed, len(failed), skipped


try:
    print(*count(pathlib.Path(sys.argv[1])))
except FileNotFoundError:  # meson never came to run a test
    print(0, 1, 0)
