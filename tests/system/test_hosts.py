"""Several hosts on one machine, and ranks that add up across them."""
import os
import re
import subprocess
import unittest

import hosts
import tandem

NET_RANK = os.environ["TANDEM_NET_RANK"]


def read_until(process, wanted):
    for line in process.stdout:
        if re.search(wanted, line):
            return line
    raise AssertionError(f"ended without {wanted!r}")


class HostsTest(unittest.TestCase):
    def test_each_is_a_host_of_its_own_and_nothing_is_left(self):
        with hosts.Hosts(2) as group:
            for host in group.names:
                done = group.run(host, "sh", "-c", "hostname; ls /dev/shm", capture_output=True, text=True)
                self.assertEqual(done.stdout, f"{host}\n")
            self.assertNotEqual(os.readlink("/proc/self/ns/net"),
                                group.run("h1", "readlink", "/proc/self/ns/net", capture_output=True,
                                          text=True).stdout.strip())
            sleeper = group.start("h2", "sleep", "1000")
            network = group.run("h2", "readlink", "/proc/self/ns/net", capture_output=True,
                                text=True).stdout.strip()
        self.assertEqual(sleeper.returncode, -9)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                self.assertNotEqual(os.readlink(f"/proc/{pid}/ns/net"), network)
            except OSError:
                pass
        self.assertFalse(os.path.exists(group.folder))

    def test_rsh_is_an_agent_like_ssh(self):
        with hosts.Hosts(2) as group:
            done = subprocess.run([group.rsh, "-o", "BatchMode=yes", "user@h2", "echo", "$(hostname)", ";", "exit", "3"],
                                  capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stdout), (3, "h2\n"))
            done = subprocess.run([group.rsh, "h3", "true"], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (255, "rsh: h3: no such host\n"))


class RanksOnHostsTest(unittest.TestCase):
    def start(self, group, name):
        """A rank a host, all joined."""
        folder = tandem.path(name)
        os.mkdir(folder)
        self.assertEqual(tandem.run("token", f"{folder}/token")[0], 0)
        world = len(group.names)
        ranks = [group.start(host, NET_RANK, rank, world, group.address(host), folder,
                             stdout=subprocess.PIPE, text=True)
                 for rank, host in enumerate(group.names)]
        for rank in ranks:
            self.addCleanup(rank.stdout.close)
            read_until(rank, "^step 100$")
        return ranks

    def test_a_host_that_is_cut_off_is_named_to_all_others(self):
        with hosts.Hosts(3) as group:
            ranks = self.start(group, "cut")
            group.cut("h3")
            for rank in ranks[:2]:
                why = read_until(rank, "^closed: ")
                self.assertRegex(why, r"rank 2 \(tcp://10\.77\.0\.13:\d+\) is gone, \d+ ms")
                print("#", why.strip())
                self.assertEqual(rank.wait(), 3)
            self.assertRegex(read_until(ranks[2], "^closed: "), r"rank [01] \(tcp://.*\) is gone")
            self.assertEqual(ranks[2].wait(), 3)

    def test_a_short_silence_is_waited_out(self):
        with hosts.Hosts(2) as group:
            ranks = self.start(group, "silence")
            group.cut("h2")
            try:
                ranks[0].wait(0.3)
            except subprocess.TimeoutExpired:
                pass
            group.restore("h2")
            for rank in ranks:
                read_until(rank, "^step [3-9]00$")

    def test_a_rank_that_is_killed_is_named_to_all_others(self):
        with hosts.Hosts(3) as group:
            ranks = self.start(group, "killed")
            ranks[1].kill()
            for rank in (ranks[0], ranks[2]):
                self.assertRegex(read_until(rank, "^closed: "), r"rank 1 \(tcp://10\.77\.0\.12:\d+\) is gone")
                self.assertEqual(rank.wait(), 3)


if __name__ == "__main__":
    hosts.require()
    unittest.main()
