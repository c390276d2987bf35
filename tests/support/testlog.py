"""What the last `meson test` wrote down of each program: meson-logs/testlog.json."""
import json

GOOD = ("OK", "SKIP", "EXPECTEDFAIL")


def program_of(name):
    """"tandem:suite / proto/test_map" -> "proto/test_map"."""
    return name.split(" / ")[-1]


def programs_that_failed(log):
    for program in map(json.loads, log.read_text().splitlines()):
        if program["result"] not in GOOD:
            yield program


def names_that_failed(log):
    return {program_of(program["name"]) for program in programs_that_failed(log)}
