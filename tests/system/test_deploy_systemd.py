"""deploy/systemd: units that systemd understands, settings that tandem has, and a sandbox that it fits in.

No systemd runs here; its own tools read the files."""
import os
import re
import shutil
import socket
import subprocess
import tempfile
import unittest

import tandem
from server import wait_for

FOLDER = tandem.deploy("systemd")
UNITS = ("tandem.service", "tandem-worker@.service", "tandem.target", "tandem.slice")
EXPOSURE = "20"  # 2.0 of 10, as `systemd-analyze security` counts


def read(name):
    with open(os.path.join(FOLDER, name)) as file:
        return file.read()


def variables(text):
    """Of an environment file: those that are proposed in a comment too."""
    return set(re.findall(r"^#?(TANDEM_\w+)=", text, re.M)) | set(
        re.findall(r"\b(TANDEM_\w+)=", "".join(re.findall(r"^Environment=.*$", text, re.M))))


def options_of(program):
    status, out, _ = tandem.run(program, "--help")
    assert status == 0
    return {"TANDEM_" + flag.upper().replace("-", "_") for flag in re.findall(r"--([a-z-]+)", out)}


def syscalls_allowed():
    """What SystemCallFilter= of the units leaves."""
    def expand(name):
        lines = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True,
                               capture_output=True, text=True).stdout.split("\n")[1:]
        calls = set()
        for word in (line.strip() for line in lines):
            if word and not word.startswith("#"):
                calls |= expand(word) if word.startswith("@") else {word}
        return calls
    return expand("@system-service") - expand("@privileged")


@unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze on this machine")
class Units(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="tandem-test-")
        self.addCleanup(shutil.rmtree, self.folder)
        for name in UNITS:
            with open(os.path.join(self.folder, name), "w") as file:
                file.write(read(name).replace("/usr/bin/tandem", tandem.PROGRAM))

    def analyze(self, *words):
        done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True,
                              env={**os.environ, "SYSTEMD_UNIT_PATH": self.folder + ":"})
        return done.returncode, done.stdout + done.stderr

    def verify(self, unit):
        """It exits with 0 when it does not know a key, and says so: any word is one too many."""
        return self.analyze("verify", "--man=no", os.path.join(self.folder, unit))

    def test_systemd_understands_every_line(self):
        for unit in UNITS:
            with self.subTest(unit=unit):
                self.assertEqual(self.verify(unit.replace("@.", "@3.")), (0, ""))

    def test_so_it_does_with_a_gpu(self):
        for unit in UNITS[:2]:
            os.mkdir(os.path.join(self.folder, unit + ".d"))
            shutil.copy(os.path.join(FOLDER, "cuda.conf"), os.path.join(self.folder, unit + ".d"))
            with self.subTest(unit=unit):
                self.assertEqual(self.verify(unit.replace("@.", "@3.")), (0, ""))

    def test_a_key_that_it_does_not_know_is_told(self):
        with open(os.path.join(self.folder, "tandem.service"), "a") as file:
            file.write("[Service]\nRestrt=always\n")
        self.assertIn("Restrt", self.verify("tandem.service")[1])

    def test_services_are_locked_in(self):
        for unit in UNITS[:2]:
            with self.subTest(unit=unit):
                status, out = self.analyze("security", "--offline=true", "--threshold=" + EXPOSURE,
                                           os.path.join(self.folder, unit))
                self.assertEqual(status, 0, out)

    @unittest.skipUnless(shutil.which("systemd-sysusers"), "no systemd-sysusers on this machine")
    def test_the_user_can_be_made(self):
        os.mkdir(os.path.join(self.folder, "etc"))
        done = subprocess.run(["systemd-sysusers", "--dry-run", "--root", self.folder,
                               os.path.join(FOLDER, "sysusers.conf")], check=True,
                              capture_output=True, text=True)
        self.assertIn("Creating user 'tandem'", done.stdout + done.stderr)
        for unit in UNITS[:2]:
            self.assertIn("\nUser=tandem\n", read(unit))

    @unittest.skipUnless(shutil.which("strace"), "no strace on this machine")
    def test_the_filter_of_system_calls_lets_an_engine_work(self):
        model, counts = tandem.make_tiny_model(), tandem.path("calls")
        subprocess.run(["strace", "-f", "-c", "-U", "name", "-o", counts, tandem.PROGRAM, "generate",
                        "--model", model, "--tp", "2", "--prompt", "hello", "--max-tokens", "4"],
                       check=True, capture_output=True, timeout=60,
                       env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
        with open(counts) as file:
            used = {line.strip() for line in file if re.fullmatch(r"\s*[a-z]\w*\s*", line)}
        self.assertIn("futex", used)
        self.assertEqual(used - syscalls_allowed() - {"syscall", "total"}, set())


class Notified:
    """What a unit starts, and what it tells systemd."""

    def __init__(self, unit, **env):
        text = read(unit)
        assert "\nType=notify\n" in text and "\nWatchdogSec=" in text
        words = re.search(r"^ExecStart=/usr/bin/tandem (.*)$", text, re.M).group(1)
        words = words.replace("%i", "0").replace("${RANKS}", "1").split()
        path = tandem.path("notify-" + unit)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(20)
        self.process = subprocess.Popen(
            [tandem.PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, **env, "NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})

    def wait_for(self, line):
        while line not in self.socket.recv(4096).decode().split("\n"):
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.socket.close()


class Notices(unittest.TestCase):
    def test_engine_and_ranks_tell_that_they_are_ready_turn_and_stop(self):
        address, token = tandem.path("address"), tandem.path("token")
        with Notified("tandem.service", TANDEM_MODEL=tandem.make_tiny_model(), TANDEM_PORT="0",
                      TANDEM_EXECUTOR="distributed", TANDEM_TP="1", TANDEM_TOKEN=token,
                      TANDEM_ADDRESS_FILE=address) as engine:
            wait_for("a token", lambda: os.path.exists(address))
            with Notified("tandem-worker@.service", TANDEM_ENGINE="file:" + address,
                          TANDEM_TOKEN=token) as rank:
                for each in rank, engine:
                    each.wait_for("READY=1")
                    each.wait_for("WATCHDOG=1")
                    each.wait_for("WATCHDOG=1")
                engine.process.terminate()
                engine.wait_for("STOPPING=1")
                self.assertEqual(engine.process.wait(tandem.within(20)), 0)
                self.assertEqual(rank.process.wait(tandem.within(5)), 0)


class Settings(unittest.TestCase):
    def test_variables_are_settings_of_the_program(self):
        for files, program in ((("tandem.service", "tandem.env"), "serve"),
                               (("tandem-worker@.service", "worker.env"), "worker")):
            for name in files:
                with self.subTest(file=name):
                    self.assertEqual(variables(read(name)) - options_of(program), set())

    def test_a_failure_that_would_come_again_is_not_tried_again(self):
        for unit in UNITS[:2]:
            self.assertIn("\nRestartPreventExitStatus=2 76 77\n", read(unit))
        status, _, _ = tandem.run("serve", "--model", tandem.path("none.gguf"), "--port", "many")
        self.assertEqual(status, 2)


if __name__ == "__main__":
    unittest.main()
