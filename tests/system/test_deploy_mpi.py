"""deploy/mpi: ranks that MPI's launchers start answer as those that the engine starts."""
import os
import shutil
import signal
import subprocess
import time
import unittest

import deployed
import hosts
import tandem
from server import wait_for

# Open MPI does not run as root unless it is told so twice.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
LAUNCHERS = {"openmpi": "mpirun.openmpi", "hydra": "mpiexec.hydra"}
CORES = os.sched_getaffinity(0)


class Help(unittest.TestCase):
    def test_each_variable_is_explained_once(self):
        for name in LAUNCHERS:
            done = subprocess.run([tandem.deploy("mpi/" + name), "--help"], capture_output=True, check=True)
            for word in "RESTARTS=N", "LISTEN=tcp://IP:PORT", "TOKEN=FILE", "CORES=N":
                self.assertEqual(done.stdout.decode().count(word), 1, word)


class Launcher:
    """The tests of one of them."""

    def setUp(self):
        self.program = LAUNCHERS[self.name]
        if not shutil.which(self.program):
            self.skipTest(f"no {self.program} on this machine")

    def start(self, deployment, *options, ranks="2", inside=(), settings=(), **env):
        return deployment.start(*inside, tandem.deploy("mpi/" + self.name), ranks, *options, "--", "--model",
                                deployed.model(), "--port", "0", *settings, MPIRUN=self.program,
                                MPIEXEC=self.program, TOKEN=deployed.token(), **{**AS_ROOT, **env})

    def test_the_answer_is_the_same_though_a_rank_is_killed(self):
        with deployed.Deployment() as deployment:
            command = self.start(deployment)
            deployment.wait_until_ready()
            before = deployment.ranks()
            self.assertEqual(len(before), 2)
            for pid in before:  # mpirun would give each of two ranks one core
                self.assertEqual(os.sched_getaffinity(pid), CORES)
            deployment.ask()
            deployment.kill_a_rank()
            self.assertEqual(deployment.answer(), deployed.expected())
            self.assertNotEqual(deployment.ranks(), before)
            self.assertEqual(deployed.end(command, deployment), 0)

    def test_the_answer_is_the_same_across_hosts(self):
        with hosts.Hosts(2) as group, deployed.Deployment() as deployment:
            host_file = tandem.write(self.name + ".hosts", self.host_file)
            deployment.network = group.pid("h1")
            command = self.start(deployment, *[word.format(rsh=group.rsh, file=host_file)
                                               for word in self.host_options],
                                 inside=group.command("h1"), LISTEN=f"tcp://{group.address('h1')}:0")
            deployment.wait_until_ready()
            networks = [os.readlink(f"/proc/{pid}/ns/net") for pid in deployment.ranks()]
            self.assertEqual(len(set(networks)), 2)
            deployment.ask()
            deployment.kill_a_rank()
            self.assertEqual(deployment.answer(), deployed.expected())
            self.assertEqual(deployed.end(command, deployment), 0)

    def test_cores_are_shared_out_and_nobody_outlives_the_script(self):
        if len(CORES) < 2:
            self.skipTest("two ranks want two cores")
        with deployed.Deployment() as deployment:
            command = self.start(deployment, CORES="1")
            deployment.wait_until_ready()
            cores = [os.sched_getaffinity(pid) for pid in deployment.ranks()]
            self.assertEqual([len(each) for each in cores], [1, 1])
            self.assertFalse(cores[0] & cores[1])
            self.assertEqual(deployed.end(command, deployment, signal.SIGKILL), -signal.SIGKILL)

    def test_a_program_that_is_not_there_is_not_tried_again(self):
        started = time.monotonic()
        with deployed.Deployment() as deployment:
            command = self.start(deployment, PATH="/usr/bin:/bin")
            self.assertEqual(command.wait(tandem.within(10)), 2)
            self.assertIn("no tandem: put it in PATH", deployment.log())
            # The launcher's own mistakes are: it may have no room yet.
            command = self.start(deployment, "--no-such-option", RESTARTS="0")
            self.assertEqual(command.wait(tandem.within(20)), 75)
            deployment.wait_until_gone()
        self.assertLess(time.monotonic() - started, tandem.within(20))

    def test_a_wrong_command_line_is_refused(self):
        script = tandem.deploy("mpi/" + self.name)
        for words, env in (([], {}), (["many"], {}), (["2"], {"CORES": "all"})):
            done = subprocess.run([script, *words], capture_output=True, text=True,
                                  env={**os.environ, **env})
            self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)


class OpenMpi(Launcher, unittest.TestCase):
    name = "openmpi"
    host_file = "h1 slots=1\nh2 slots=1\n"
    # It takes along the variables that it is told of.
    host_options = ["--hostfile", "{file}", "--mca", "plm_rsh_agent", "{rsh}", "-x", deployed.MARK]

    def test_ranks_that_exchange_by_mpi_are_started_again_together(self):
        if not os.path.exists(os.path.join(os.path.dirname(tandem.PROGRAM), "tandem_mpi.so")):
            self.skipTest("no tandem_mpi.so: built without Open MPI")
        with deployed.Deployment() as deployment:
            command = self.start(deployment, settings=("--comm", "mpi"), ASAN_OPTIONS="detect_leaks=0")
            deployment.wait_until_ready()
            before = deployment.ranks()
            deployment.ask()
            deployment.kill_a_rank()
            self.assertEqual(deployment.answer(), deployed.expected())
            wait_for("the end of those before", lambda: not set(before) & set(deployment.ranks()))
            self.assertEqual(deployment.log().count("2 ranks meet by MPI"), 2)
            self.assertEqual(deployed.end(command, deployment), 0)


class Hydra(Launcher, unittest.TestCase):
    name = "hydra"
    host_file = "h1:1\nh2:1\n"
    host_options = ["-f", "{file}", "-launcher", "ssh", "-launcher-exec", "{rsh}"]


if __name__ == "__main__":
    unittest.main()
