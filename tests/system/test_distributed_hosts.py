"""Ranks on several hosts, which are namespaces of this machine: the bits of one rank, and streams that outlive ranks,
cut links and whole hosts."""
import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest

import hosts
import tandem
from ranks import MODEL, Job, answers_in, local_answers
from server import wait_for

ASK = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("POST", "/v1/completions", sys.argv[2], {"Content-Type": "application/json"})
print(connection.getresponse().read().decode())
"""


def setUpModule():
    global group
    group = hosts.Hosts(3)
    unittest.addModuleCleanup(group.close)


def job(world, *args):
    """Ranks on h1 and h2, half of them on each; the engine is on h1."""
    def place(who):
        return group.command("h1" if who is None or who < world // 2 else "h2")

    return Job(world, "--listen", f"tcp://{group.address('h1')}:0", "--verbose", *args, place=place)


class Hosts(unittest.TestCase):
    def test_the_bits_are_those_of_one_rank(self):
        expected = local_answers()
        for world, comm, over_tcp in (2, "auto", 2), (4, "auto", 2), (4, "net", 4):
            with self.subTest(world=world, comm=comm), job(world, "--comm", comm) as it:
                threads = it.keep_all()
                self.assertEqual(it.answers(), (0, expected), it.log())
                self.assertIn(f"{world} ranks meet, {over_tcp} of them over tcp", it.log())
                for thread in threads:
                    thread.join(10)
                self.assertEqual(sorted(it.ends), [(rank, 0) for rank in range(world)])

    def test_memory_alone_is_refused(self):
        with job(2, "--comm", "shm") as it:
            it.keep_all()
            it.engine.communicate(timeout=tandem.within(20))
            self.assertEqual(it.engine.returncode, 76, it.log())
            self.assertIn("rank 0 is on h1 and rank 1 on h2: with --comm shm", it.log())

    def test_streams_go_on_when_a_rank_is_killed(self):
        expected = local_answers()
        for victim in 0, 2, 3:  # the first of either host, and one that is not
            with self.subTest(victim=victim), job(4) as it:
                threads = it.keep_all()
                first = it.engine.stdout.readline()
                it.ranks[victim].kill()
                rest, _ = it.engine.communicate(timeout=tandem.within(60))
                self.assertEqual(it.engine.returncode, 0, it.log())
                self.assertEqual(answers_in(first + rest), expected)
                self.assertIn((victim, -signal.SIGKILL), it.ends)
                for thread in threads:
                    thread.join(10)
                self.assertEqual(len(it.ends), 5, it.ends)  # nobody else had to go

    def test_streams_go_on_when_a_cut_link_is_whole_again(self):
        expected = local_answers()
        with job(4) as it:
            threads = it.keep_all()
            first = it.engine.stdout.readline()
            group.cut("h2")
            self.addCleanup(group.restore, "h2")
            began = time.monotonic()
            wait_for("notice", lambda: "another process is awaited in the place of rank" in it.log(), 6)
            noticed = time.monotonic() - began
            wait_for("the end of those cut off", lambda: {(2, 69), (3, 69)} <= set(it.ends), 6)
            ended = time.monotonic() - began
            print(f"cut noticed in {noticed:.2f} s, cut-off ranks ended in {ended:.2f} s", end=" ", flush=True)
            self.assertIsNone(it.engine.poll(), it.log())
            group.restore("h2")
            threads += it.keep_all(2, 3)
            rest, _ = it.engine.communicate(timeout=tandem.within(60))
            self.assertEqual(it.engine.returncode, 0, it.log())
            self.assertEqual(answers_in(first + rest), expected)
            for thread in threads:
                thread.join(10)
            self.assertEqual({code for _, code in it.ends}, {0, 69}, it.ends)

    @unittest.skipUnless("TANDEM_TEST_SLOW" in os.environ, "takes 13 s: TANDEM_TEST_SLOW is unset")
    def test_streams_go_on_when_ranks_lose_each_other_alone(self):
        expected = local_answers()
        hosts = {None: "h1", 0: "h2", 1: "h3"}
        with Job(2, "--listen", f"tcp://{group.address('h1')}:0", place=lambda who: group.command(hosts[who])) as it:
            threads = it.keep_all()
            first = it.engine.stdout.readline()
            group.part("h2", "h3")
            try:
                wait_for("notice", lambda: "a step was given up 10 s ago, and all ranks are there" in it.log(), 20)
            finally:
                group.join("h2", "h3")
            rest, _ = it.engine.communicate(timeout=tandem.within(60))
            self.assertEqual(it.engine.returncode, 0, f"{it.ends} {it.log()}")
            self.assertEqual(answers_in(first + rest), expected)
            for thread in threads:
                thread.join(10)

    def test_a_launched_server_answers_as_a_local_one(self):
        question = {"prompt": "hello", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        rc, out, err = tandem.run("generate", "--model", MODEL, "--prompt", "hello", "--max-tokens", "40",
                                  "--temperature", "0", "--ignore-eos", "--json")
        self.assertEqual(rc, 0, err)
        log = tandem.path("launch.err")
        with open(log, "wb") as file:
            launch = group.start("h3", tandem.PROGRAM, "launch", "--host", "h1:2,h2:2", "--launch-agent", group.rsh,
                                 "--no-tag-output", "--", "tandem", "serve", "--model", MODEL, "--port", "0",
                                 stdout=subprocess.PIPE, stderr=file, text=True)
        try:
            line = launch.stdout.readline()
            port = re.search(r"http://\S+:(\d+)", line)
            with open(log, encoding="utf-8") as file:
                self.assertTrue(port, line + file.read())
            done = group.run("h3", sys.executable, "-c", ASK, port.group(1), json.dumps(question),
                             capture_output=True, text=True, timeout=30)
            self.assertEqual(json.loads(done.stdout)["choices"][0]["text"], json.loads(out)["text"], done)
            launch.send_signal(signal.SIGTERM)
            self.assertEqual(launch.wait(tandem.within(20)), 0)
        finally:
            launch.kill()
            launch.wait()
            launch.stdout.close()


if __name__ == "__main__":
    unittest.main()
