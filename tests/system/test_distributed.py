"""Ranks that others start: they find the engine by its address, prove by the token that they are its own, and give the
answers that the engine's own ranks give."""
import os
import re
import shutil
import signal
import subprocess
import unittest

import folders
import tandem
from ranks import GENERATE, LONG, REQUESTS, Job, answers_in, local_answers
from server import wait_for


class Distributed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.expected = local_answers()

    def test_ranks_over_tcp_give_the_answers_of_one(self):
        for world, comm in (1, "auto"), (2, "auto"), (2, "net"), (3, "net"):
            with self.subTest(world=world, comm=comm), Job(world, "--comm", comm) as job:
                threads = job.keep_all()
                self.assertEqual(job.answers(), (0, self.expected), job.log())
                for thread in threads:
                    thread.join(10)
                self.assertEqual(sorted(job.ends), [(rank, 0) for rank in range(world)])
                self.assertFalse(os.path.exists(job.address_file))

    def test_ranks_that_do_not_see_each_others_processes_meet_over_tcp(self):
        own_pids = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if not shutil.which("unshare") or subprocess.run([*own_pids, "true"], capture_output=True).returncode != 0:
            self.skipTest("no namespaces of process ids here")
        with Job(2, place=lambda who: [] if who is None else own_pids) as job:
            job.keep_all()
            self.assertEqual(job.answers(), (0, self.expected), job.log())
            self.assertEqual(job.log().count("ranks of one host share no memory, all meet over tcp"), 1, job.log())

    def test_ranks_need_no_words_of_a_folder(self):
        folder, _ = folders.make("without-words", "llama", "BF16", 2, max_position=4096)
        expected = local_answers(model=folder)
        with Job(2, "--model", folder) as job:
            os.unlink(os.path.join(folder, "tokenizer.json"))  # the engine has read it before it said where it is
            job.keep_all()
            self.assertEqual(job.answers(), (0, expected), job.log())

    def test_a_rank_that_is_started_again_takes_its_place(self):
        for comm in "shm", "net":
            for victim in 0, 1:
                with self.subTest(comm=comm, victim=victim), Job(2, "--comm", comm) as job:
                    threads = job.keep_all()
                    first = job.engine.stdout.readline()
                    job.ranks[victim].kill()
                    rest, _ = job.engine.communicate(timeout=tandem.within(60))
                    self.assertEqual(job.engine.returncode, 0, job.log())
                    self.assertEqual(answers_in(first + rest), self.expected)
                    self.assertIn((victim, -signal.SIGKILL), job.ends)
                    for thread in threads:
                        thread.join(10)

    def test_a_rank_whose_device_hangs_ends_all_the_same(self):
        with Job(2, "--inject-fault", "step=12,rank=1,kind=hang") as job:
            threads = job.keep_all()
            self.assertEqual(job.answers(), (0, self.expected), job.log())
            self.assertRegex(job.log(), r"rank 1 \(process \d+\) hangs in step 12")
            self.assertRegex(job.log(), r"rank 1: thread \d+ device")
            for thread in threads:
                thread.join(10)
            self.assertEqual(sorted(job.ends), [(0, 0), (1, 0), (1, 1)])

    def test_one_that_never_comes_back_is_named_and_the_others_stay_to_the_end(self):
        with Job(2, "--join-timeout", "2", requests=LONG) as job:
            thread, = job.keep_all(0)
            job.ranks[1] = job.start(1)
            job.engine.stdout.readline()
            job.ranks[1].kill()
            job.engine.communicate(timeout=tandem.within(20))
            self.assertNotEqual(job.engine.returncode, 0)
            self.assertIn("rank 1 has not joined", job.log())
            thread.join(10)
            self.assertEqual(job.ends, [(0, 0)])

    def test_who_does_not_belong_is_refused_by_name_and_does_no_harm(self):
        other = tandem.path("other-token")
        self.assertEqual(tandem.run("token", other)[0], 0)
        with Job(2, requests=LONG) as job:
            job.ranks[9] = stranger = job.start(0, "--join-timeout", "1", token=other)
            for rank, world, why in (
                    (0, 3, "rank 0 was started for 3 ranks, the engine has 2"),
                    (2, 3, "rank 2, started as one of 3, is not one of the 2 ranks")):
                process = job.start(rank, world=world)
                process.communicate(timeout=tandem.within(20))
                self.assertEqual(process.returncode, 76)
                self.assertIn(why, job.log())
            _, err = stranger.communicate(timeout=tandem.within(20))
            self.assertEqual(stranger.returncode, 124, err)
            self.assertIn("has it another token", err)
            threads = job.keep_all()
            first = job.engine.stdout.readline()
            twin = job.start(1)
            _, err = twin.communicate(timeout=tandem.within(20))
            self.assertEqual(twin.returncode, 76, err + job.log())
            self.assertIn("rank 1 comes twice", job.log())
            rest, _ = job.engine.communicate(timeout=tandem.within(60))
            self.assertEqual((job.engine.returncode, len(answers_in(first + rest))), (0, 8), job.log())
            for thread in threads:
                thread.join(10)

    def test_ranks_end_with_their_engine(self):
        with Job(2) as job:
            threads = job.keep_all()
            job.engine.stdout.readline()
            job.engine.kill()
            for thread in threads:
                thread.join(3)
                self.assertFalse(thread.is_alive())
            self.assertEqual({code for _, code in job.ends}, {69})

    def test_an_address_that_nobody_can_reach_is_not_written(self):
        for everywhere in "tcp://*:0", "tcp://0.0.0.0:0", "tcp://[::]:0":
            rc, _, err = tandem.run(*GENERATE, REQUESTS, "--executor", "distributed", "--listen", everywhere,
                                    "--address-file", tandem.path("nowhere"))
            self.assertEqual(rc, 2, err)
            self.assertIn(f"--listen {everywhere} is every interface", err)
        self.assertFalse(os.path.exists(tandem.path("nowhere")))

    def test_whoever_waits_says_how_to_join(self):
        with Job(2) as job:
            line = wait_for("how to join", lambda: re.search("waiting: .*", job.log()))[0]
            self.assertEqual(line, f"waiting: ranks 0 and 1 have not joined; to join: tandem worker --engine {job.address} "
                                   f"--token {job.token}")
            job.keep_all()
            self.assertEqual(job.answers(), (0, self.expected), job.log())
            self.assertEqual(job.log().count("to join: "), 1)

    def test_the_missing_are_named(self):
        with Job(3, "--join-timeout", "1") as job:
            job.ranks[1] = job.start(1)
            job.engine.communicate(timeout=tandem.within(20))
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
