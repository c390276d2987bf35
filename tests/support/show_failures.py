"""Prints what each program that failed in the last `meson test` said of it, in few lines.

usage: show_failures.py BUILD_FOLDER/meson-logs
       show_failures.py --names BUILD_FOLDER/meson-logs     their names alone

Of unittest's output: the reports of its failed cases; of TAP: the cases that are "not ok"; of any: its last lines.
"""
import pathlib
import re
import sys

from testlog import names_that_failed, program_of, programs_that_failed

LINES_OF_A_CASE = 14
LINES_OF_A_PROGRAM = 60
CHARACTERS_OF_A_LINE = 300
RULE = re.compile(r"^={70}\n|^-{70}\nRan ", re.MULTILINE)  # unittest's, around its reports


def words_of(stdout, stderr):
    """The lines worth reading."""
    reports = [part for part in RULE.split(stderr) if part.startswith(("FAIL:", "ERROR:"))]
    if reports:
        for report in reports:
            lines = report.rstrip().splitlines()
            yield lines[0]
            yield from lines[1:][-LINES_OF_A_CASE:]
        return
    yield from (line for line in stdout.splitlines() if line.startswith(("not ok", "Bail out")))
    yield from (stderr.strip() or stdout.strip()).splitlines()[-LINES_OF_A_CASE:]


def show(logs):
    for log in sorted(logs.glob("testlog*.json")):
        for program in programs_that_failed(log):
            print(f"{program_of(program['name'])}: {program['result'].lower()} after {program['duration']:.0f} s")
            words = list(words_of(program.get("stdout", ""), program.get("stderr", "")))
            for line in words[:LINES_OF_A_PROGRAM]:
                print("   ", line[:CHARACTERS_OF_A_LINE])


def tell_names(logs):
    for log in logs.glob("testlog*.json"):
        for name in sorted(names_that_failed(log)):
            print(name)


(tell_names if "--names" in sys.argv else show)(pathlib.Path(sys.argv[-1]))
