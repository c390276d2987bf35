"""Ranks that others start: they find the engine by its address, prove by the token that they are its own, and give the
answers that the engine's own ranks give."""
import os
import signal
import subprocess
import threading
import time
import unittest

import tandem
from server import wait_for

MODEL = tandem.make_tiny_model("distributed.gguf", max_position=4096)
LINES = [{"prompt": f"hello {i}", "max_tokens": 1000, "ignore_eos": True, "seed": i} for i in range(8)]
LINES[0]["max_tokens"] = 1  # whoever sees its answer knows that all are at work
REQUESTS = tandem.write_lines("distributed.jsonl", LINES)
LONG = tandem.write_lines("long.jsonl", LINES[:1] + [dict(line, max_tokens=4000) for line in LINES[1:]])
GENERATE = ("generate", "--model", MODEL, "--json", "--requests")


def answers_in(out):
    return sorted(out.splitlines())


class Job:
    """An engine that waits for ranks, and a starter for each, which starts it again where that is due."""

    def __init__(self, world, *args, requests=REQUESTS):
        self.world = world
        self.token = tandem.path(f"token.{time.monotonic_ns()}")
        self.address_file = self.token + ".address"
        self.err = open(self.token + ".err", "w+")
        self.engine = subprocess.Popen(
            [tandem.PROGRAM, *GENERATE, requests, "--executor", "distributed", "--tp", str(world), "--token",
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
            [tandem.PROGRAM, "worker", "--engine", self.address, "--token", token or self.token,
             "--rank", str(rank), "--world", str(world or self.world), *args],
            stderr=subprocess.PIPE, text=True)

    def keep(self, rank):
        """Starts it again until it ends well, or the engine is gone."""
        while True:
            self.ranks[rank] = process = self.start(rank)
            process.communicate()
            self.ends.append((rank, process.returncode))
            if process.returncode in (0, 69):
                return

    def keep_all(self):
        threads = [threading.Thread(target=self.keep, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        return threads

    def answers(self):
        out, _ = self.engine.communicate(timeout=60)
        return self.engine.returncode, answers_in(out)


class Distributed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        rc, out, err = tandem.run(*GENERATE, REQUESTS)
        assert rc == 0, err
        cls.expected = answers_in(out)

    def test_ranks_over_tcp_give_the_answers_of_one(self):
        for world, comm in (1, "auto"), (2, "auto"), (2, "net"), (3, "net"):
            with self.subTest(world=world, comm=comm), Job(world, "--comm", comm) as job:
                threads = job.keep_all()
                self.assertEqual(job.answers(), (0, self.expected), job.log())
                for thread in threads:
                    thread.join(10)
                self.assertEqual(sorted(job.ends), [(rank, 0) for rank in range(world)])
                self.assertFalse(os.path.exists(job.address_file))

    def test_a_rank_that_is_started_again_takes_its_place(self):
        for comm in "shm", "net":
            for victim in 0, 1:
                with self.subTest(comm=comm, victim=victim), Job(2, "--comm", comm) as job:
                    threads = job.keep_all()
                    first = job.engine.stdout.readline()
                    job.ranks[victim].kill()
                    rest, _ = job.engine.communicate(timeout=60)
                    self.assertEqual(job.engine.returncode, 0, job.log())
                    self.assertEqual(answers_in(first + rest), self.expected)
                    self.assertIn((victim, -signal.SIGKILL), job.ends)
                    for thread in threads:
                        thread.join(10)

    def test_who_does_not_belong_is_refused_by_name_and_does_no_harm(self):
        other = tandem.path("other-token")
        self.assertEqual(tandem.run("token", other)[0], 0)
        with Job(2, requests=LONG) as job:
            job.ranks[9] = stranger = job.start(0, "--join-timeout", "1", token=other)
            for rank, world, why in (
                    (0, 3, "rank 0 was started for 3 ranks, the engine has 2"),
                    (2, 3, "rank 2, started as one of 3, is not one of the 2 ranks")):
                process = job.start(rank, world=world)
                process.communicate(timeout=20)
                self.assertEqual(process.returncode, 76)
                self.assertIn(why, job.log())
            threads = job.keep_all()
            first = job.engine.stdout.readline()
            twin = job.start(1)
            _, err = twin.communicate(timeout=20)
            self.assertEqual(twin.returncode, 76, err + job.log())
            self.assertIn("rank 1 comes twice", job.log())
            rest, _ = job.engine.communicate(timeout=60)
            self.assertEqual((job.engine.returncode, len(answers_in(first + rest))), (0, 8), job.log())
            for thread in threads:
                thread.join(10)
            _, err = stranger.communicate(timeout=20)
            self.assertEqual(stranger.returncode, 124, err)
            self.assertIn("has it another token", err)

    def test_ranks_end_with_their_engine(self):
        with Job(2) as job:
            threads = job.keep_all()
            job.engine.stdout.readline()
            job.engine.kill()
            for thread in threads:
                thread.join(3)
                self.assertFalse(thread.is_alive())
            self.assertEqual({code for _, code in job.ends}, {69})

    def test_the_missing_are_named(self):
        with Job(3, "--join-timeout", "1") as job:
            job.ranks[1] = job.start(1)
            job.engine.communicate(timeout=20)
            self.assertEqual(job.engine.returncode, 124)
            self.assertIn("ranks 0 and 2 have not joined", job.log())

    def test_a_token_that_others_can_read_is_refused(self):
        token = tandem.path("open-token")
        self.assertEqual(tandem.run("token", token)[0], 0)
        os.chmod(token, 0o644)
        rc, _, err = tandem.run(*GENERATE, REQUESTS, "--executor", "distributed", "--token", token)
        self.assertEqual(rc, 2, err)
        self.assertIn(token, err)


if __name__ == "__main__":
    unittest.main()
