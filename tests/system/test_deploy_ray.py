"""deploy/ray, on a Ray cluster of one node: ranks that it places answer, heal, and end in order.

Ray is large, and takes 10 s to start: TANDEM_TEST_RAY names the Python that has it;
`python3 -m venv .cache/ray && .cache/ray/bin/pip install ray` makes one."""
import os
import signal
import sys
import unittest

import deployed
import tandem
from server import wait_for

PYTHON = os.environ.get("TANDEM_TEST_RAY")


@unittest.skipUnless(PYTHON, "TANDEM_TEST_RAY names no Python that has Ray")
class Placed(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = deployed.Deployment(RAY_DISABLE_DOCKER_CPU_WARNING="1")
        cls.addClassCleanup(cls.cluster.__exit__, None)
        cls.cluster.start(os.path.join(os.path.dirname(PYTHON), "ray"), "start", "--head", "--block",
                          "--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats",
                          "--temp-dir", tandem.path("ray"))
        wait_for("a Ray cluster", lambda: "Ray runtime started" in cls.cluster.log(), 60)

    def start(self, deployment, *options):
        return deployment.start(PYTHON, tandem.deploy("ray/tandem_ray.py"), "--token",
                                deployed.token(), *options, "--",
                                "--model", deployed.model(), "--port", "0")

    def ranks(self):
        """They are children of Ray's processes."""
        return self.cluster.ranks()

    def test_the_answer_is_the_same_though_ranks_are_killed(self):
        with deployed.Deployment() as deployment:
            command = self.start(deployment, "--ranks", "2")
            deployment.wait_until_ready()
            before = self.ranks()
            self.assertEqual(len(before), 2)
            deployment.ask()
            os.kill(before[0], signal.SIGKILL)
            self.assertEqual(deployment.answer(), deployed.expected())
            self.assertEqual(len(set(self.ranks()) & set(before)), 1)  # only the dead one was replaced

            with open(f"/proc/{before[1]}/status") as file:
                actor = int(file.read().split("PPid:")[1].split()[0])
            deployment.ask()
            os.kill(actor, signal.SIGKILL)  # Ray's own process, and the rank with it
            self.assertEqual(deployment.answer(), deployed.expected())
            self.assertNotIn(before[1], self.ranks())
            self.assertEqual(deployed.end(command, deployment), 0)
            self.assertEqual(self.ranks(), [])

    def test_no_room_is_told(self):
        with deployed.Deployment() as deployment:
            command = self.start(deployment, "--ranks", "2", "--cpus-per-rank", "2", "--timeout", "1")
            self.assertEqual(command.wait(tandem.within(30)), 75)
            self.assertIn("no room for 2 times {'CPU': 2.0}", deployment.log())

    def test_wrong_options_are_refused(self):
        with deployed.Deployment() as deployment:
            self.assertEqual(self.start(deployment, "--ranks", "0").wait(tandem.within(30)), 2)


if __name__ == "__main__":
    # Ray listens on an address of the machine: here it has no network but its own.
    if PYTHON and "ALONE" not in os.environ:
        os.environ["ALONE"] = "yes"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "alone",
                              sys.executable, *sys.argv])
    unittest.main()
