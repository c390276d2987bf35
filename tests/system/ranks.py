"""An engine whose ranks others start, and these others, for tests: wherever the test wants each."""
import os
import subprocess
import threading
import time

import tandem
from server import wait_for

MODEL = tandem.make_tiny_model("distributed.gguf", max_position=4096)
LINES = [{"prompt": f"hello {i}", "max_tokens": tandem.reduced(1000, 4), "ignore_eos": True, "seed": i} for i in range(8)]
LINES[0]["max_tokens"] = 1  # whoever sees its answer knows that all are at work
REQUESTS = tandem.write_lines("distributed.jsonl", LINES)
LONG = tandem.write_lines("long.jsonl", LINES[:1] + [dict(line, max_tokens=tandem.reduced(4000, 4)) for line in LINES[1:]])
GENERATE = ("generate", "--model", MODEL, "--json", "--requests")


def answers_in(out):
    return sorted(out.splitlines())


def local_answers(requests=REQUESTS, model=MODEL):
    rc, out, err = tandem.run(*GENERATE, requests, "--model", model)
    assert rc == 0, err
    return answers_in(out)


class Job:
    """An engine that waits for ranks, and a starter for each, which starts it again where that is due.

    place(None) is the words that the engine's command line is put behind, place(rank) those of a rank.
    """

    def __init__(self, world, *args, requests=REQUESTS, place=lambda who: []):
        self.world, self.place = world, place
        self.token = tandem.path(f"token.{time.monotonic_ns()}")
        self.address_file = self.token + ".address"
        self.err = open(self.token + ".err", "w+")
        self.engine = subprocess.Popen(
            [*place(None), tandem.PROGRAM, *GENERATE, requests, "--executor", "distributed", "--tp", str(world), "--token",
             self.token, "--address-file", self.address_file, "--join-timeout", "30", *args],
            stdout=subprocess.PIPE, stderr=self.err, text=True)
        wait_for("the address", lambda: os.path.exists(self.address_file), 10)
        with open(self.address_file) as file:
            self.address = file.read().strip()
        self.ranks = {}
        self.ends = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [self.engine, *self.ranks.values()]:
            process.kill()
            process.wait()
            for pipe in process.stdout, process.stderr:
                if pipe:
                    pipe.close()
        self.err.close()

    def log(self):
        self.err.seek(0)
        return self.err.read()

    def start(self, rank, *args, token=None, world=None):
        return subprocess.Popen(
            [*self.place(rank), tandem.PROGRAM, "worker", "--engine", self.address, "--token", token or self.token,
             "--rank", str(rank), "--world", str(world or self.world), *args],
            stderr=subprocess.PIPE, text=True)

    def keep(self, rank):
        """Starts it again until it ends well, or the engine is gone."""
        while True:
            self.ranks[rank] = process = self.start(rank)
            process.communicate()
            self.ends.append((rank, process.returncode))
            if process.returncode in (0, 69) or self.engine.poll() is not None:
                return

    def keep_all(self, *ranks):
        threads = [threading.Thread(target=self.keep, args=(rank,), daemon=True) for rank in ranks or range(self.world)]
        for thread in threads:
            thread.start()
        return threads

    def answers(self):
        out, _ = self.engine.communicate(timeout=tandem.within(60))
        return self.engine.returncode, answers_in(out)
