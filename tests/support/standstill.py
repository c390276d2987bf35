"""Notes when the machine stood still: a core of a virtual one may be somebody else's for many seconds.

usage: standstill.py FILE

Appends a line for each time, until it is ended. A test that fails in such a time may have been told the truth: a
process was silent, a deadline passed.
"""
import os
import sys
import time

LOOK_S, STILL_S = 0.2, 1.0  # a core that only has much to do serves everybody within some 0.1 s
DISK_LOOK_S, DISK_STILL_S = 1.0, 3.0


def note(file, what, seconds):
    os.write(file, f"{time.strftime('%H:%M:%S')} {what} for {seconds:.1f} s\n".encode())


def watch_core(file, core):
    os.sched_setaffinity(0, {core})
    while True:
        began = time.monotonic()
        time.sleep(LOOK_S)
        late = time.monotonic() - began - LOOK_S
        if late > STILL_S:
            note(file, f"core {core} stood still", late)


def watch_disk(file, folder):
    probe = os.open(folder, os.O_TMPFILE | os.O_RDWR)
    while True:
        began = time.monotonic()
        os.pwrite(probe, bytes(4096), 0)
        os.fdatasync(probe)
        took = time.monotonic() - began
        if took > DISK_STILL_S:
            note(file, "the disk did not answer", took)
        time.sleep(DISK_LOOK_S)


def main(path):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for core in os.sched_getaffinity(0):
        if os.fork() == 0:
            watch_core(file, core)
    watch_disk(file, os.path.dirname(os.path.abspath(path)))


main(sys.argv[1])
