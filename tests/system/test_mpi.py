"""--comm mpi: ranks that mpirun starts exchange by MPI, and the answers are those of one rank."""
import os
import re
import shutil
import subprocess
import unittest

import tandem
from ranks import Job, local_answers

MPIRUN = "mpirun.openmpi"
MODULE = os.path.join(os.path.dirname(tandem.PROGRAM), "tandem_mpi.so")
# It does not run as root unless it is told so twice, and is not for a machine's leak checker.
ENV = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
       "ASAN_OPTIONS": "detect_leaks=0"}


def mpirun(num_ranks, *words):
    return [MPIRUN, "--oversubscribe", "--bind-to", "none", "-np", str(num_ranks), *words]


def run_ranks(num_ranks, *words):
    return subprocess.run(mpirun(num_ranks, os.environ["TANDEM_MPI_RANK"], MODULE, *words), env=ENV,
                          capture_output=True, text=True, timeout=60)


def worker_of(job, *words, program=tandem.PROGRAM):
    return [program, "worker", "--engine", job.address, "--token", job.token, *words]


def start(words):
    return subprocess.Popen(words, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Mpi(unittest.TestCase):
    def setUp(self):
        if not shutil.which(MPIRUN):
            self.skipTest(f"no {MPIRUN} on this machine")
        if not os.path.exists(MODULE):
            self.skipTest("no tandem_mpi.so: built without Open MPI")

    def test_ranks_keep_the_promises_of_every_comm(self):
        for world in 2, 3:
            done = run_ranks(world)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_rank_that_waits_hears_an_abort(self):
        done = run_ranks(2, "abort")
        said = re.match(r"waits for rank 1\naborted after (\d+) ms: rank 0 waited for rank 1", done.stdout)
        self.assertTrue(said, done.stdout + done.stderr)
        self.assertLess(int(said.group(1)), 1000)  # 0, on a machine that has the time
        self.assertNotEqual(done.returncode, 0)  # rank 0 could not leave MPI as it should

    def test_the_answers_are_those_of_one_rank(self):
        for world in 2, 3:
            with self.subTest(world=world), Job(world, "--comm", "mpi", "--verbose") as job:
                job.ranks["all"] = ranks = start(mpirun(world, *worker_of(job)))
                self.assertEqual(job.answers(), (0, local_answers()), job.log())
                self.assertIn(f"{world} ranks meet by MPI", job.log())
                out, _ = ranks.communicate(timeout=tandem.within(20))
                self.assertEqual((ranks.returncode, out), (0, ""))

    def test_a_world_that_is_not_the_engines_is_refused(self):
        for words, why in (
                (mpirun(1, "sleep", "20", ":", "-np", "2"), "mpirun has started 3 processes, and the engine has 2 ranks"),
                (mpirun(2, "sh", "-c", 'TANDEM_WORLD_SIZE=2 TANDEM_RANK=$((1 - OMPI_COMM_WORLD_RANK)) exec "$0" "$@"'),
                 "rank 0 of 2 is rank 1 of 2 to MPI")):
            with self.subTest(why=why), Job(2, "--comm", "mpi") as job:
                job.ranks["all"] = ranks = start([*words, *worker_of(job)])
                out, _ = ranks.communicate(timeout=tandem.within(20))
                self.assertEqual(ranks.returncode, 76, out + job.log())
                self.assertIn(why, job.log())


class Refused(unittest.TestCase):
    """What needs no MPI to be told."""

    def refusal(self, program):
        with Job(2, "--comm", "mpi") as job:
            for rank in 0, 1:
                job.ranks[rank] = start(worker_of(job, "--rank", str(rank), "--world", "2", program=program))
            for process in job.ranks.values():
                out, _ = process.communicate(timeout=tandem.within(20))
                self.assertEqual((process.returncode, out), (2, ""), job.log())
            return job.log()

    def test_without_the_module(self):
        alone = tandem.path("alone")
        os.mkdir(alone)
        log = self.refusal(shutil.copy(tandem.PROGRAM, alone))
        self.assertIn("rank 0: --comm mpi wants tandem_mpi.so beside the program", log)
        self.assertIn(os.path.join(alone, "tandem_mpi.so"), log)

    def test_by_ranks_that_mpirun_has_not_started(self):
        if not os.path.exists(MODULE):
            self.skipTest("no tandem_mpi.so: built without Open MPI")
        self.assertIn("rank 1: --comm mpi is for ranks that Open MPI's mpirun starts", self.refusal(tandem.PROGRAM))

    def test_by_an_engine_that_starts_its_ranks(self):
        rc, _, err = tandem.run("generate", "--model", tandem.path("none"), "--prompt", "a", "--tp", "2", "--comm", "mpi")
        self.assertEqual(rc, 2)
        self.assertIn("--comm mpi is for --executor distributed", err)

    def test_the_program_itself_needs_no_mpi(self):
        done = subprocess.run(["ldd", tandem.PROGRAM], capture_output=True, text=True, check=True)
        self.assertIn("libzmq", done.stdout)
        self.assertNotRegex(done.stdout, "libmpi|libopen-")


if __name__ == "__main__":
    unittest.main()
