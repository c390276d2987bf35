"""Whoever is killed: streams go on as if nothing had been, or everyone is told, by name; and nothing is left behind."""
import glob
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

import tandem
from server import Server, children_of, wait_for

MODEL = tandem.make_tiny_model("death.gguf", max_position=32768)
RANKS = 3


def is_there(pid):
    """A zombie is gone: it waits for its parent alone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def shared_memory():
    return set(glob.glob("/dev/shm/*tandem*"))


class Generate:
    """tandem generate with one short request and 20 long ones, seen at work; ranks are not replaced."""

    def __init__(self, max_restarts=0, max_tokens=30000):
        self.run_dir = tempfile.mkdtemp(prefix="tandem-test-run-")
        self.shm = shared_memory()
        lines = [{"prompt": "hello", "max_tokens": 1}]
        lines += [{"prompt": "hello", "max_tokens": max_tokens, "ignore_eos": True, "seed": i} for i in range(20)]
        self.process = subprocess.Popen(
            [tandem.PROGRAM, "generate", "--model", MODEL, "--tp", str(RANKS), "--json",
             "--max-restarts", str(max_restarts), "--run-dir", self.run_dir, "--requests", tandem.write_lines("death.jsonl", lines)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert b"token_ids" in self.process.stdout.readline()
        self.ranks = children_of(self.process.pid)
        assert len(self.ranks) == RANKS

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.stdout.close()
        self.process.stderr.close()
        self.process.wait()
        for name in os.listdir(self.run_dir):
            for file in os.listdir(os.path.join(self.run_dir, name)):
                os.unlink(os.path.join(self.run_dir, name, file))
            os.rmdir(os.path.join(self.run_dir, name))
        os.rmdir(self.run_dir)

    def rank(self, number):
        """The process of this rank: its command line says so."""
        for pid in self.ranks:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if words[words.index(b"--rank") + 1] == b"%d" % number:
                return pid
        raise AssertionError(f"no rank {number} in {self.ranks}")

    def nothing_is_left(self):
        wait_for("no process", lambda: not any(is_there(pid) for pid in self.ranks), 3)
        assert shared_memory() <= self.shm, shared_memory()


class UnderLoad(unittest.TestCase):
    def test_a_killed_rank_is_named_to_every_request(self):
        for number in range(RANKS):
            with self.subTest(rank=number), Generate() as run:
                killed = time.monotonic()
                os.kill(run.rank(number), signal.SIGKILL)
                line = run.process.stdout.readline()
                told = time.monotonic() - killed
                lines = [json.loads(line) for line in [line, *run.process.stdout]]
                err = run.process.stderr.read().decode()
                self.assertNotEqual(run.process.wait(tandem.within(5)), 0, err)
                self.assertLess(time.monotonic() - killed, tandem.within(5))  # the other ranks were told to stop
                run.nothing_is_left()
                self.assertEqual(os.listdir(run.run_dir), [])
                self.assertEqual(len(lines), 20)
                for line in lines:
                    self.assertRegex(line["error"]["message"],  # whichever is noticed first
                                     rf"rank {number}( .*has died|: .*is not connected)")
                self.assertLess(told, tandem.within(4))
                self.assertNotIn("assertion failed", err)

    def test_ranks_do_not_outlive_their_engine(self):
        with Generate() as run:
            run.process.kill()
            run.nothing_is_left()

    def test_a_stopped_rank_is_named_by_its_silence(self):
        with Generate() as run:
            stopped = time.monotonic()
            os.kill(run.rank(1), signal.SIGSTOP)
            line = json.loads(run.process.stdout.readline())
            self.assertRegex(line["error"]["message"], r"rank 1 (.*has been silent for|: .*not connected)")
            self.assertLess(time.monotonic() - stopped, tandem.within(5))
            run.process.stdout.read()
            self.assertNotEqual(run.process.wait(tandem.within(5)), 0)
            run.nothing_is_left()


class AtStart(unittest.TestCase):
    def test_a_killed_rank_is_named_with_its_end(self):
        with subprocess.Popen([tandem.PROGRAM, "generate", "--model", MODEL, "--tp", "2", "--prompt", "x", "--max-restarts", "0",
                               "--max-tokens", "30000", "--ignore-eos"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            # Ranks are ready some 10 ms after they were started.
            ranks = wait_for("a rank", lambda: children_of(process.pid), every=0)
            os.kill(ranks[0], signal.SIGKILL)
            err = process.stderr.read().decode()
        self.assertRegex(err, r"rank \d \(process %d\) has died: signal 9 \(Killed\)" % ranks[0])
        self.assertEqual(process.returncode, 69)


class Replaced(unittest.TestCase):
    def answers(self, kill=()):
        """What the 20 long requests were told, with ranks that die or hang meanwhile."""
        with Generate(max_restarts=3, max_tokens=400) as run:
            for pid, how in [(run.rank(number), how) for number, how in kill]:
                os.kill(pid, how)
            lines = [json.loads(line) for line in run.process.stdout]
            err = run.process.stderr.read().decode()
            self.assertEqual(run.process.wait(tandem.within(30)), 0, err)
            self.assertNotIn("assertion failed", err)
        return {line["index"]: line["token_ids"] for line in lines}, err

    def test_streams_go_on_as_if_no_rank_had_been_killed(self):
        undisturbed, _ = self.answers()
        self.assertEqual(len(undisturbed), 20)
        for ranks in (0,), (1,), (2,), (0, 1), (0, 1, 2):
            with self.subTest(ranks=ranks):
                answers, err = self.answers(kill=[(rank, signal.SIGKILL) for rank in ranks])
                self.assertEqual(answers, undisturbed)
                self.assertIn("the ranks are whole again", err)

    def test_streams_go_on_as_if_no_rank_had_been_stopped(self):
        undisturbed, _ = self.answers()
        answers, err = self.answers(kill=[(1, signal.SIGSTOP)])
        self.assertEqual(answers, undisturbed)
        self.assertRegex(err, r"rank 1 .*(has been silent|is not connected)")

    def test_a_kernel_that_never_returns_is_named_and_its_rank_replaced(self):
        args = ("generate", "--model", MODEL, "--prompt", "hello", "--max-tokens", "40",
                "--ignore-eos", "--tp", "2")
        undisturbed = tandem.run(*args)
        for rank in "0", "1":
            with self.subTest(rank=rank):
                rc, out, err = tandem.run(*args, "--inject-fault", f"step=12,rank={rank},kind=hang")
                self.assertEqual((rc, out), (0, undisturbed[1]), err)
                self.assertRegex(err, rf"rank {rank} \(process \d+\) hangs in step 12")
                self.assertRegex(err, rf"rank {rank}: thread \d+ device")  # and where it stands

    def test_a_rank_that_is_alone_is_replaced_too(self):
        with Server("--tp", "1", "--executor", "multiproc") as server:
            before = server.complete()
            for restarts in 1, 2:
                os.kill(children_of(server.process.pid)[0], signal.SIGKILL)
                wait_for("another", lambda: server.log_text().count("the ranks are whole again") == restarts, 20)
                self.assertEqual(server.complete()["choices"], before["choices"])

    def test_a_stop_is_heeded_though_no_rank_comes_back(self):
        model = tandem.make_tiny_model("going.gguf")
        with Server("--tp", "2", "--max-restarts", "1000000", model_file=model) as server:
            os.rename(model, model + ".gone")
            os.kill(children_of(server.process.pid)[1], signal.SIGKILL)
            wait_for("tries that fail", lambda: server.log_text().count("going.gguf: No such file") > 2, 20)
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(tandem.within(10)), 0, server.log_text())

    def test_the_budget_of_restarts_is_kept(self):
        rc, _, err = tandem.run("generate", "--model", MODEL, "--prompt", "hello", "--max-tokens",
                                "40", "--tp", "2", "--inject-fault", "step=2,kind=exit",
                                "--max-restarts", "1", "--ignore-eos")
        self.assertEqual(rc, 0, err)  # one is allowed
        with Server("--tp", "2", "--max-restarts", "2") as server:
            for restarts in 1, 2, 3:
                os.kill(children_of(server.process.pid)[0], signal.SIGKILL)
                wait_for("another, or the end", lambda: server.process.poll() is not None or
                         server.log_text().count("the ranks are whole again") == restarts, 20)
            wait_for("the end of the server", lambda: server.process.poll() is not None, 20)
            self.assertEqual(server.process.returncode, 75)
            self.assertIn("ranks were replaced 2 times in 60 s, which is all that --max-restarts",
                          server.log_text())


class Idle(unittest.TestCase):
    def test_a_rank_killed_while_nothing_runs_is_noticed(self):
        for number in range(2):
            with self.subTest(rank=number), Server("--tp", "2", "--max-restarts", "0") as server:
                server.complete()
                ranks = children_of(server.process.pid)
                killed = time.monotonic()
                os.kill(ranks[number], signal.SIGKILL)
                wait_for("the end of the server", lambda: server.process.poll() is not None, 5)
                self.assertLess(time.monotonic() - killed, tandem.within(3))
                self.assertEqual(server.process.returncode, 69)
                self.assertRegex(server.log_text(), r"rank \d \(process %d\) has died: signal 9 \(Killed\)" %
                                 ranks[number])
                wait_for("no orphans", lambda: not any(is_there(pid) for pid in ranks), 3)


if __name__ == "__main__":
    unittest.main()
