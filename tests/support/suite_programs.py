#!/usr/bin/env python3
"""suite_programs.py FOLDER SUITE: what the tests of a suite run and depend on, as ninja in that build folder names it."""
import json
import os
import subprocess
import sys


def introspect(folder, what):
    said = subprocess.run(["meson", "introspect", what, folder], check=True, capture_output=True, text=True)
    return json.loads(said.stdout)


def main(folder, suite):
    files = {target["id"]: target["filename"][0] for target in introspect(folder, "--targets")}
    wanted = set()
    for test in introspect(folder, "--tests"):
        if any(name.split(":")[-1] == suite for name in test["suite"]):
            wanted.update(files[target] for target in test["depends"])
            wanted.add(test["cmd"][0])
    print("\n".join(sorted(os.path.relpath(path, os.path.abspath(folder)) for path in wanted)))


if __name__ == "__main__":
    main(*sys.argv[1:])
