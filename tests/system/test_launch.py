"""tandem launch with real processes: what it starts, passes on, restarts and leaves behind, which is nothing.

"Other hosts" are this machine behind an agent command that drops the host's name; real ones, in network
namespaces behind ssh, come last and are skipped where they can't be had.
"""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest

import hosts
import tandem
from server import children_of, stand_still, wait_for

PROBE = os.environ["TANDEM_LAUNCH_PROBE"]
HOSTS = ("--launch-agent", "sh -c 'shift; exec \"$@\"' sh")  # any name is this machine
LAUNCH = [tandem.PROGRAM, "launch"]
SLOW = unittest.skipUnless("TANDEM_TEST_SLOW" in os.environ, "takes 10 s: TANDEM_TEST_SLOW is unset")


def run(*args, stdin=b"", timeout=30, env=None, cwd=None):
    done = subprocess.run([*LAUNCH, *map(str, args)], input=stdin, capture_output=True,
                          timeout=timeout, env={**os.environ, **(env or {})}, cwd=cwd)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def is_there(pid):
    """A zombie is gone: it waits for its parent alone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def below(pid):
    """All descendants of a process."""
    found = []
    try:
        for child in children_of(pid):
            found += [child, *below(child)]
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def words_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def environment_of(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Launch:
    """A launcher that runs, as a context manager; whatever it started is killed in the end."""

    def __init__(self, *args, command=None, env=None, **more):
        self.out, self.err = tandem.path("out"), tandem.path("err")
        self.seen = []
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(command or [*LAUNCH, *map(str, args)],
                                            stdin=subprocess.PIPE, stdout=out, stderr=err,
                                            env={**os.environ, **(env or {})}, **more)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for pid in [self.process.pid, *self.seen, *below(self.process.pid)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        self.process.stdin.close()
        if kind:
            print(f"stdout: {self.output()}\nstderr: {self.errors()}")

    def output(self):
        with open(self.out, errors="replace") as file:
            return file.read()

    def errors(self):
        with open(self.err, errors="replace") as file:
            return file.read()

    def wait_for_output(self, text, seconds=30):
        self.wait_for(text, self.output, seconds)

    def wait_for_errors(self, text, seconds=30):
        self.wait_for(text, self.errors, seconds)

    def wait_for(self, text, read, seconds):
        def is_there():
            has_ended = self.process.poll() is not None
            if text in read():
                return True
            if has_ended:
                raise AssertionError(f"the launcher ended with {self.process.returncode} and did not say: {text}")
            return False

        try:
            wait_for(text, is_there, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstdout: {self.output()}\nstderr: {self.errors()}") from None

    def signal(self, number):
        self.process.send_signal(number)

    def census(self):
        """All its processes; they are remembered, for when their parents are gone."""
        self.seen = list({*self.seen, *below(self.process.pid)})
        return self.seen

    def named(self, name):
        return [pid for pid in below(self.process.pid) if name_of(pid) == name]

    def ranks(self):
        return [pid for pid in below(self.process.pid) if words_of(pid)[0] == PROBE]

    def nothing_is_left(self, seconds=3):
        wait_for("an empty census",
                 lambda: not any(is_there(pid) for pid in self.seen), seconds)


class Programs(unittest.TestCase):
    def test_ranks_know_who_they_are(self):
        rc, out, err = run("-np", 3, "--", "sh", "-c",
                           "echo $TANDEM_RANK of $TANDEM_WORLD_SIZE, $TANDEM_LOCAL_RANK of "
                           "$TANDEM_LOCAL_WORLD_SIZE on $TANDEM_NODE")
        self.assertEqual((rc, err), (0, ""))
        self.assertEqual(sorted(out.splitlines()),
                         [f"[rank {r}] {r} of 3, {r} of 3 on 0" for r in range(3)])

    def test_programs_behind_colons_are_ranks_one_after_the_other(self):
        rc, out, err = run("-np", 1, "-x", "WHAT=a", "--", "sh", "-c", "echo $WHAT $TANDEM_RANK",
                           ":", "-np", 2, "-x", "WHAT=b", "sh", "-c", "echo $WHAT $TANDEM_RANK")
        self.assertEqual((rc, err), (0, ""))
        self.assertEqual(sorted(out.splitlines()), ["[rank 0] a 0", "[rank 1] b 1", "[rank 2] b 2"])

    def test_stdout_and_stderr_stay_apart_and_lines_whole(self):
        rc, out, err = run("-np", 2, "--", "sh", "-c",
                           "printf part; sleep 0.05; echo ' whole'; echo e >&2; printf last")
        self.assertEqual(rc, 0)
        self.assertEqual(sorted(out.splitlines()),
                         [f"[rank {r}] {text}" for r in (0, 1) for text in ("last", "part whole")])
        self.assertEqual(sorted(err.splitlines()), ["[rank 0] e", "[rank 1] e"])

    def test_one_program_s_output_passes_as_it_is(self):
        rc, out, err = run("--", "sh", "-c", "printf 'a\\0b'; printf c >&2")
        self.assertEqual((rc, out, err), (0, "a\0b", "c"))

    def test_what_is_closed_stays_so(self):
        for number, other in (1, "e"), (2, "o"):
            done = subprocess.run(["sh", "-c", f'exec "$@" {number}>&-', "sh", *LAUNCH, "-np", "2", "--", PROBE, "print=o",
                                   "error=e"], capture_output=True, timeout=30)
            self.assertEqual((done.returncode, sorted((done.stdout + done.stderr).decode().splitlines())),
                             (0, [f"[rank {rank}] {other}" for rank in (0, 1)]))

    def test_timestamps_and_files(self):
        folder = tandem.path("printed/here")
        rc, out, _ = run("-np", 2, "--timestamp-output", "--output-filename", folder, "--", PROBE,
                         "print=o", "error=e")
        self.assertEqual(rc, 0)
        self.assertRegex(out, r"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} \[rank [01]\] o$")
        for rank in (0, 1):
            for name, text in (("stdout", "o\n"), ("stderr", "e\n")):
                with open(f"{folder}/rank.{rank}/{name}") as file:
                    self.assertEqual(file.read(), text)

    def test_files_have_every_byte_and_the_terminal_lines(self):
        text = "\0ab\r" + "x" * 70000 + "\n\nlast"
        folder = tandem.path("exact")
        rc, out, err = run("-np", 2, "--output-filename", folder, "--", "cat", tandem.write("long.txt", text))
        self.assertEqual((rc, err), (0, ""))
        printed = {0: "", 1: ""}
        for line in out.split("\n")[:-1]:
            self.assertRegex(line, r"^\[rank [01]\] ")
            printed[int(line[6])] += line[len("[rank 0] "):]
        self.assertEqual(set(printed.values()), {text.replace("\n", "")})
        for rank in (0, 1):
            with open(f"{folder}/rank.{rank}/stdout", "rb") as file:
                self.assertEqual(file.read().decode(), text)

    def test_a_slow_reader_holds_the_ranks_and_loses_nothing(self):
        process = subprocess.Popen([*LAUNCH, "-np", "2", "--", PROBE, "many=100000"],
                                   stdout=subprocess.PIPE)
        time.sleep(0.5)
        lines = process.stdout.read().count(b"\n")
        process.stdout.close()
        self.assertEqual((process.wait(tandem.within(20)), lines), (0, 200000))

    def test_input_goes_to_rank_0_alone(self):
        text = b"".join(b"line %d\n" % i for i in range(20000))
        rc, out, _ = run("-np", 2, "--", "sh", "-c", "wc -l", stdin=text)
        self.assertEqual((rc, sorted(out.split("\n"))[1:]), (0, ["[rank 0] 20000", "[rank 1] 0"]))
        rc, out, _ = run("-np", 2, "--stdin", "none", "--", "sh", "-c", "wc -l", stdin=text)
        self.assertEqual((rc, sorted(out.split("\n"))[1:]), (0, ["[rank 0] 0", "[rank 1] 0"]))

    def test_folder_variables_and_binding(self):
        rc, out, err = run("--wdir", "/usr", "-x", "MINE", "--bind-to", "core", "--report-bindings",
                           "--tag-output", "--", "sh", "-c", "pwd; echo $MINE", env={"MINE": "ours"})
        self.assertEqual((rc, out), (0, "[rank 0] /usr\n[rank 0] ours\n"))
        self.assertRegex(err, r"^launch: rank 0 is bound to core \d+ \(cpus [\d,-]+\)\n$")


class ExitCodes(unittest.TestCase):
    def test_the_first_rank_that_fails(self):
        for act, code in (("exit=3", 3), ("signal=9", 137), ("signal=11", 139)):
            with self.subTest(act):
                rc, _, err = run("-np", 3, "--", PROBE, "rank=1", "error=why it failed", act, "all",
                                 "forever")
                self.assertEqual(rc, code, err)
                lines = err.splitlines()
                self.assertRegex(lines[-2], "^launch: first failure:$")
                self.assertRegex(lines[-1], r"^launch:   rank 1, after \d+\.\d+ s: "
                                 r"(exit status|signal) .*; its last line: why it failed$")

    def test_all_well(self):
        self.assertEqual(run("-np", 2, "--", PROBE, "exit=0"), (0, "", ""))

    def test_a_program_that_is_not_there_or_can_t_be_run(self):
        plain = tandem.write("plain", "no program")
        for word, code, part in (("no-such-program", 127, "no program no-such-program in PATH"),
                                 ("/no/such", 127, "/no/such: No such file"),
                                 (plain, 126, "Permission denied"), ("/usr", 126, "/usr")):
            with self.subTest(word):
                rc, _, err = run("-np", 2, "--", word)
                self.assertEqual(rc, code, err)
                self.assertIn(part, err)

    def test_a_command_line_that_is_wrong(self):
        good = tandem.write("hosts", "a slots=2\nb\n")
        cases = [
            ((), "no program is named"),
            (("-np", 2), "no program is named"),
            (("-np", 2, "--", "sh", ":"), "no program is named behind ':'"),
            (("-np", 0, "--", "sh"), "-np must be 1 to 1024, not 0"),
            (("-np", "x", "--", "sh"), "-np must be a number, not 'x'"),
            (("-np",), "-np N: the value is missing"),
            (("--grcae", 1, "--", "sh"), "--grcae is unknown; did you mean --grace?"),
            (("--bind-to", "sock", "--", "sh"), "--bind-to must be one of none, core, socket, numa"),
            (("-x", "1A=2", "--", "sh"), "-x wants NAME or NAME=VALUE, not '1A=2'"),
            (("-x", "NO_SUCH_VARIABLE", "--", "sh"), "there is no such variable here"),
            (("-x", "TANDEM_RANK=3", "--", "sh"), "-x TANDEM_RANK: the launcher sets it itself"),
            (("--hostfile", "/no/such", "--", "sh"), "--hostfile /no/such: No such file"),
            (("--hostfile", tandem.write("bad", "a\n\nb slots=x\n"), "--", "sh"),
             "bad, line 3: slots= must be a number, not 'x'"),
            (("--hostfile", tandem.write("twice", "a\nb\na\n"), "--", "sh"),
             "twice, line 3: host a is named twice, in line 1 too"),
            (("-H", "a,a", "--", "sh"), "--host: host a is named twice; say a:2 for more slots"),
            (("-H", "-oProxyCommand=x", "--", "sh"), "is no name of a host"),
            (("--hostfile", good, "-np", 4, "--", "sh"), "4 ranks, and the hosts have 3 slots"),
            (("-np", 2, "--", "tandem", "serve", "--tp", "3"),
             "the engine is told --tp 3, and -np says 2 ranks"),
            (("-np", 1, "--", "tandem", "serve", ":", "sh"), "sh cannot be a rank of an engine"),
        ]
        for args, part in cases:
            with self.subTest(part):
                rc, _, err = run(*args)
                self.assertEqual((rc, err.count("\n")), (2, 1), err)
                self.assertIn(part, err)
        rc, _, err = run("--bind-to", "core", "-np", 500, "--", "true")
        self.assertEqual(rc, 2, err)
        self.assertIn("500 ranks with 1 cores each want 500 cores", err)


class Restarts(unittest.TestCase):
    def test_one_rank_is_started_again_and_the_others_do_not_notice(self):
        with Launch("-np", 3, "--max-restarts", 2, "--", PROBE, "ready", "forever") as launch:
            launch.wait_for_errors("3 ranks ready in ")
            before = launch.ranks()
            victim = before[1]
            os.kill(victim, signal.SIGKILL)
            launch.wait_for_errors("signal 9 (Killed); it is started again\n")
            launch.wait_for_errors(" is ready again, ")
            after = launch.ranks()
            self.assertEqual(len(after), 3)
            self.assertEqual(set(before) - set(after), {victim})
            launch.signal(signal.SIGTERM)
            self.assertEqual(launch.process.wait(tandem.within(10)), 143)
            self.assertRegex(launch.errors().splitlines()[-1], r"rank \d, after .*: signal 9")

    def test_the_budget_is_spent_with_growing_pauses(self):
        began = time.monotonic()
        rc, _, err = run("-np", 2, "--max-restarts", 2, "--", PROBE, "rank=1", "exit=3", "all", "forever")
        self.assertEqual(rc, 75, err)
        self.assertIn("rank 1: exit status 3; it is started again\n", err)
        self.assertIn("rank 1: exit status 3; it is started again in 0.5 s\n", err)
        self.assertIn("exit status 3, and 2 restarts within 60 s are spent", err)
        self.assertGreater(time.monotonic() - began, 0.5)

    @SLOW
    def test_a_rank_that_falls_silent_is_killed(self):
        with Launch("-np", 1, "--tag-output", "--max-restarts", 1, "--", PROBE, "first", "watchdog", "all",
                    "ready", "forever") as launch:
            launch.wait_for_errors("1 rank ready")
            launch.wait_for_errors("signal 9 (Killed), killed as no WATCHDOG=1 came for 10 s; "
                                   "it is started again", 14)
            launch.wait_for_errors("rank 0 is ready again")

    def test_ranks_roll_one_by_one(self):
        with Launch("-np", 3, "--", PROBE, "sleep=50", "ready", "forever") as launch:
            launch.wait_for_errors("3 ranks ready")
            before = launch.ranks()
            launch.signal(signal.SIGHUP)
            launch.wait_for_errors("3 ranks restarted one by one in ")
            self.assertFalse(set(before) & set(launch.ranks()))
            seconds = float(re.search(r"one by one in ([\d.]+) s", launch.errors()).group(1))
            self.assertGreaterEqual(seconds, 0.14)
            launch.signal(signal.SIGINT)
            self.assertEqual(launch.process.wait(tandem.within(10)), 130)
            self.assertNotIn("failure", launch.errors())


class Readiness(unittest.TestCase):
    def test_it_is_told_upward_when_all_are_ready(self):
        import socket
        path = tandem.path("notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(path)
            listener.settimeout(10)
            with Launch("-np", 2, "--", PROBE, "sleep=50", "ready", "forever",
                        env={"NOTIFY_SOCKET": path}) as launch:
                self.assertEqual(listener.recv(4096), b"READY=1\nSTATUS=2 ranks ready")
                launch.wait_for_errors("launch: 2 ranks ready in 0.")
                launch.signal(signal.SIGTERM)
                self.assertEqual(listener.recv(4096), b"STOPPING=1")
                launch.process.wait(tandem.within(10))
        os.unlink(path)

    @SLOW
    def test_who_is_late_is_named_with_its_phase(self):
        with Launch("-np", 2, *HOSTS, "-H", "a,b", "--", PROBE, "status=load 62 %", "rank=0", "ready", "all",
                    "forever") as launch:
            launch.wait_for_errors("rank 1 on b: no READY after 10 s; last phase: load 62 %", 14)
            self.assertNotIn("rank 0 on a: no READY", launch.errors())


class Signals(unittest.TestCase):
    def test_a_drain_is_waited_for(self):
        with Launch("-np", 2, "--", PROBE, "drain=700", "ready", "forever") as launch:
            launch.wait_for_errors("2 ranks ready")
            began = time.monotonic()
            launch.signal(signal.SIGTERM)
            self.assertEqual(launch.process.wait(tandem.within(10)), 0, launch.errors())
            self.assertGreater(time.monotonic() - began, 0.6)

    def test_who_does_not_go_is_killed_after_the_grace_and_named(self):
        with Launch("-np", 2, "--grace", 0.5, "--", PROBE, "rank=1", "ignore=15", "all", "ready",
                    "forever") as launch:
            launch.wait_for_errors("2 ranks ready")
            launch.signal(signal.SIGTERM)
            self.assertEqual(launch.process.wait(tandem.within(10)), 143)
            self.assertRegex(launch.errors(), r"still there after (0\.[5-9]|[1-9]\.\d) s, and killed: rank 1\n")

    def test_a_second_signal_ends_at_once(self):
        with Launch("-np", 2, "--", PROBE, "drain=100000", "ready", "forever") as launch:
            launch.wait_for_errors("2 ranks ready")
            launch.signal(signal.SIGINT)
            time.sleep(0.5)
            self.assertIsNone(launch.process.poll())
            launch.signal(signal.SIGINT)
            self.assertEqual(launch.process.wait(tandem.within(5)), 137)

    def test_others_are_passed_on(self):
        with Launch("-np", 2, "--", PROBE, "show=10", "show=12", "show=18", "ready", "sleep=60000") as launch:
            launch.wait_for_errors("2 ranks ready")
            for number in (signal.SIGUSR1, signal.SIGUSR2):
                launch.signal(number)
                for rank in (0, 1):
                    launch.wait_for_output(f"[rank {rank}] signal {number:02}")

    def test_stopped_and_continued(self):
        def states():
            found = []
            for pid in launch.ranks():
                with open(f"/proc/{pid}/stat") as file:
                    found.append(file.read().rsplit(")", 1)[1].split()[0])
            return found

        with Launch("-np", 2, *HOSTS, "-H", "a,b", "--", PROBE, "ready", "forever") as launch:
            launch.wait_for_errors("2 ranks ready")
            launch.signal(signal.SIGTSTP)
            wait_for("stopped ranks", lambda: states() == ["T", "T"])
            time.sleep(2.5)  # longer than a silence that means a lost host
            self.assertEqual(states(), ["T", "T"])
            launch.signal(signal.SIGCONT)
            wait_for("ranks that go on", lambda: states() == ["S", "S"])
            time.sleep(0.5)
            self.assertIsNone(launch.process.poll(), launch.errors())


class Engine(unittest.TestCase):
    """A program called tandem stands for the engine and its ranks."""

    def setUp(self):
        self.engine = tandem.path("tandem")
        if not os.path.exists(self.engine):
            tandem.write("tandem", f'''#!/bin/sh
case $1 in
serve) shift; echo "words $*"; exec {PROBE} token variable=TANDEM_LISTEN listen=tcp://127.0.0.1:7 $ENGINE_DOES;;
worker) exec {PROBE} token address $RANK_DOES;;
esac
''')
            os.chmod(self.engine, 0o755)

    def launch(self, engine_does, rank_does, *options):
        return Launch(*options, "--", self.engine, "serve", "--model", "m",
                      env={"ENGINE_DOES": engine_does, "RANK_DOES": rank_does})

    def test_it_gets_its_ranks_and_they_its_address(self):
        for options in ((), (*HOSTS, "-H", "localhost,a")):
            with self.subTest(options), self.launch("ready drain=10 forever", "ready forever", "-np", 2, *options,
                                                    *(() if not options else ("-x", "A=b"))) as launch:
                if options:  # "a" is known to nobody, so the engine must be told where to listen
                    self.assertEqual(launch.process.wait(tandem.within(5)), 2)
                    self.assertIn("host a is not known here", launch.errors())
                    continue
                launch.wait_for_errors("the engine and 2 ranks ready in ")
                out = launch.output()
                self.assertIn("[engine] words --model m --executor distributed --tp 2\n", out)
                self.assertIn("[engine] TANDEM_LISTEN=tcp://127.0.0.1:0\n", out)
                for rank in (0, 1):
                    self.assertIn(f"[rank {rank}] tcp://127.0.0.1:7\n", out)
                launch.signal(signal.SIGTERM)
                self.assertEqual(launch.process.wait(tandem.within(10)), 0, launch.errors())

    def test_the_address_reaches_other_hosts(self):
        with Launch("-np", 2, *HOSTS, "-H", "a,b", "--", self.engine, "serve", "--listen", "tcp://127.0.0.1:0",
                    env={"ENGINE_DOES": "ready drain=10 forever", "RANK_DOES": "ready forever"}) as launch:
            launch.wait_for_errors("the engine and 2 ranks ready in ")
            for rank in (0, 1):
                self.assertIn(f"[rank {rank}] tcp://127.0.0.1:7\n", launch.output())
            launch.signal(signal.SIGTERM)
            self.assertEqual(launch.process.wait(tandem.within(10)), 0, launch.errors())

    def test_all_have_the_same_keys_and_nobody_else_can_read_them(self):
        named = tandem.path("token")
        for words in ((), ("--token", named), ("--token", named)):  # the second time it is there
            with Launch("-np", 2, *HOSTS, "-H", "localhost,b", "--", self.engine, "serve", "--listen", "x",
                        *words, env={"ENGINE_DOES": "ready drain=10 forever", "RANK_DOES": "ready forever"}) \
                    as launch:
                launch.wait_for_errors("the engine and 2 ranks ready in ")
                told = set(re.findall(r"token (0600 \d+ of \d+ bytes)", launch.output()))
                self.assertEqual((len(told), launch.output().count("] token 0600")), (1, 3))
                for pid in launch.census():
                    self.assertNotIn("-secret", " ".join(words_of(pid)))
                    self.assertNotIn("-secret", environment_of(pid))
        self.assertIn("of %d bytes" % os.path.getsize(named), told.pop())

    def test_its_end_is_the_job_s_end_and_its_code_the_job_s(self):
        for act, code in (("sleep=100 exit=0", 0), ("sleep=100 exit=74", 74), ("sleep=100 signal=11", 139)):
            with self.subTest(act), self.launch(act, "ready forever", "-np", 2) as launch:
                launch.census()
                self.assertEqual(launch.process.wait(tandem.within(10)), code, launch.errors())
                launch.nothing_is_left()

    def test_ranks_are_told_when_it_has_ended(self):
        with self.launch("ready drain=500 forever", "show=15 ready sleep=60000", "-np", 1) as launch:
            launch.wait_for_errors("the engine and 1 rank ready")
            launch.signal(signal.SIGTERM)
            time.sleep(0.3)
            self.assertNotIn("signal 15", launch.output())
            launch.wait_for_output("[rank 0] signal 15")

    def test_a_rank_that_ends_well_is_started_again_while_it_runs(self):
        with self.launch("ready forever", "first sleep=50 exit=0 all ready forever", "-np", 1) as launch:
            launch.wait_for_errors("rank 0 has ended, and the engine has not; it is started again")
            launch.wait_for_errors("the engine and 1 rank ready")

    def test_ranks_have_three_restarts_and_one_more_each(self):
        with self.launch("ready drain=1 forever", "exit=5", "-np", 1) as launch:
            self.assertEqual(launch.process.wait(tandem.within(15)), 75, launch.errors())
            self.assertIn("4 restarts within 60 s are spent", launch.errors())


class RealEngine(unittest.TestCase):
    def setUp(self):
        self.model = tandem.make_tiny_model("launch.gguf")

    def test_its_answer_is_the_same_wherever_its_ranks_are(self):
        def tokens(done):
            self.assertEqual(done[0], 0, done)
            return json.loads(done[1])["token_ids"]

        words = ("generate", "--model", self.model, "--prompt", "hello", "--max-tokens", "16", "--json",
                 "--ignore-eos")
        alone = tokens(tandem.run(*words))
        self.assertEqual(len(alone), 16)
        self.assertEqual(alone, tokens(run("-np", 3, "--no-tag-output", "--", "tandem", *words)))
        self.assertEqual(alone, tokens(run("-np", 3, "--no-tag-output", *HOSTS, "-H", "a:2,b", "--", "tandem",
                                           *words, "--listen", "tcp://127.0.0.1:0")))

    def test_a_killed_rank_is_replaced_and_the_next_answer_is_the_same(self):
        def ask():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("POST", "/v1/completions", json.dumps(
                {"prompt": "Once", "max_tokens": 16, "temperature": 0, "ignore_eos": True}),
                {"Content-Type": "application/json"})
            answer = json.loads(connection.getresponse().read())
            connection.close()
            return answer["choices"][0]["text"]

        with Launch("-np", 3, "--", "tandem", "serve", "--model", self.model, "--port", "0") as launch:
            launch.wait_for_output("serving ")
            port = int(re.search(r"http://\S+:(\d+)", launch.output()).group(1))
            before, ranks = ask(), launch.named("tandem-worker")
            self.assertEqual(len(ranks), 3)
            os.kill(ranks[1], signal.SIGKILL)
            self.assertEqual(before, ask())
            self.assertIn("signal 9 (Killed); it is started again", launch.errors())
            self.assertEqual(len(set(ranks) & set(launch.named("tandem-worker"))), 2)
            launch.census()
            launch.signal(signal.SIGTERM)
            self.assertEqual(launch.process.wait(tandem.within(10)), 0)
            launch.nothing_is_left()


    def test_a_rolling_restart_that_would_end_the_engine_is_refused(self):
        for options, told, may in ((), 5, True), (("--max-restarts", 1), 1, False):
            with self.subTest(options), Launch("-np", 2, *options, "--", "tandem", "serve", "--model", self.model,
                                               "--port", "0") as launch:
                launch.wait_for_errors("the engine and 2 ranks ready in ")
                before = launch.named("tandem-worker")
                launch.signal(signal.SIGHUP)
                if may:  # 3, and one for each rank
                    launch.wait_for_errors("2 ranks restarted one by one in ")
                    launch.wait_for_errors("the ranks are whole again after ")
                    self.assertFalse(set(before) & set(launch.named("tandem-worker")))
                else:
                    launch.wait_for_errors("SIGHUP: 2 ranks are not restarted, as the engine would end: it bears "
                                           f"--max-restarts {told} within 60 s, 0 are spent")
                    self.assertEqual(before, launch.named("tandem-worker"))
                launch.signal(signal.SIGTERM)
                self.assertEqual(launch.process.wait(tandem.within(10)), 0, launch.errors())


class NoOrphans(unittest.TestCase):
    # A shell between, a grandchild in a session of its own, and one that keeps the pipes open.
    RANK = ("sh", "-c", f"sleep 1000 & {PROBE} daemon ready forever; true")
    PLACES = ((), (*HOSTS, "-H", "a:2,b:2"))

    def launched(self, options, **more):
        launch = Launch("-np", 3, *options, "--", *self.RANK, **more)
        launch.wait_for_errors("3 ranks ready")
        # A child of a shell is a second "sh" until it executes something.
        wait_for("3 that sleep", lambda: len(launch.named("sleep")) == 3)
        self.assertGreaterEqual(len(launch.census()), 3 * 4)
        return launch

    def test_whoever_is_killed_all_are_gone(self):
        for options in self.PLACES:
            for name in ("launcher", "tandem-agent", "sh"):
                with self.subTest(killed=name, options=options), self.launched(options) as launch:
                    pid = launch.process.pid if name == "launcher" else launch.named(name)[-1]
                    os.kill(pid, signal.SIGKILL)
                    if name != "launcher":
                        code = launch.process.wait(tandem.within(3))
                        self.assertEqual(code, 69 if name == "tandem-agent" else 137, launch.errors())
                    launch.nothing_is_left()

    def test_the_guard_of_an_agent_is_no_weak_point(self):
        with self.launched(self.PLACES[1]) as launch:
            guard = next(pid for pid in launch.named("tandem") if "launch-agent" in words_of(pid))
            os.kill(guard, signal.SIGKILL)
            self.assertEqual(launch.process.wait(tandem.within(3)), 69, launch.errors())
            launch.nothing_is_left()

    def test_the_launcher_ends_with_its_parent(self):
        for options in self.PLACES:
            words = " ".join("'" + word.replace("'", "'\\''") + "'"
                             for word in [*LAUNCH, "-np", "3", *options, "--", *self.RANK])
            with self.subTest(options), \
                    self.launched(options, command=["sh", "-c", f"{words}; true"]) as launch:
                os.kill(launch.process.pid, signal.SIGKILL)
                launch.nothing_is_left()

    def test_not_so_under_nohup_or_setsid(self):
        for how in ("nohup", "setsid"):
            with self.subTest(how):
                launch = Launch(command=["sh", "-c", f"{how} {tandem.PROGRAM} launch --tag-output -- {PROBE} "
                                                     "ready forever; true"])
                with launch:
                    launch.wait_for_errors("1 rank ready")
                    launcher = next(pid for pid in launch.census() if "launch" in words_of(pid))
                    os.kill(launch.process.pid, signal.SIGKILL)
                    time.sleep(1.5)
                    self.assertTrue(is_there(launcher))
                    os.kill(launcher, signal.SIGTERM)
                    launch.nothing_is_left()

    def test_an_ordinary_end_leaves_nothing_either(self):
        for options in self.PLACES:
            with self.subTest(options), self.launched(options) as launch:
                launch.signal(signal.SIGTERM)
                self.assertEqual(launch.process.wait(tandem.within(6)), 143, launch.errors())
                self.assertFalse([pid for pid in launch.seen if is_there(pid)])


class OtherHosts(unittest.TestCase):
    def test_ranks_are_dealt_over_the_hosts(self):
        file = tandem.write("hostfile", "# two\na slots=2\nb slots=1 max_slots=2\n")
        show = ("sh", "-c", "echo $TANDEM_RANK: $TANDEM_LOCAL_RANK of $TANDEM_LOCAL_WORLD_SIZE on $TANDEM_NODE")
        cases = (
            (("-np", 3), ["0: 0 of 2 on 0", "1: 1 of 2 on 0", "2: 0 of 1 on 1"]),
            ((), ["0: 0 of 2 on 0", "1: 1 of 2 on 0", "2: 0 of 1 on 1"]),
            (("-np", 3, "--map-by", "node"), ["0: 0 of 2 on 0", "1: 0 of 1 on 1", "2: 1 of 2 on 0"]),
            (("-np", 4, "--oversubscribe"),
             ["0: 0 of 3 on 0", "1: 1 of 3 on 0", "2: 2 of 3 on 0", "3: 0 of 1 on 1"]),
        )
        for options, wanted in cases:
            with self.subTest(options):
                rc, out, err = run("--hostfile", file, *HOSTS, *options, "--", *show)
                self.assertEqual((rc, err), (0, ""))
                self.assertEqual(sorted(out.splitlines()),
                                 [f"[rank {text[0]}] {text}" for text in wanted])

    def test_output_input_and_failures_come_from_there(self):
        rc, out, err = run("-np", 2, *HOSTS, "-H", "a,b", "--", PROBE, "rank=0", "read", "all", "many=20000",
                           "rank=1", "sleep=300", "error=oh", "exit=7", stdin=b"x\n" * 1000)
        self.assertEqual(rc, 7, err)
        self.assertEqual(out.count("[rank 0] read x\n"), 1000)
        self.assertEqual(out.count("] a line that"), 40000)
        self.assertRegex(err, r"launch:   rank 1 on b, after .*: exit status 7; its last line: oh\n$")

    def test_an_agent_that_is_none_is_one_sentence(self):
        cases = (
            ("sh -c 'echo Welcome to this host; sleep 100'", 69, "it says 'Welcome to this host?' where its agent"),
            ("sh -c 'echo no route to $0 >&2; exit 255'", 69,
             "exit status 255 before it was there: no route to a"),
            ("/no/such/agent", 127, "exit status 127 before it was there"),
            ("sh -c 'head -c 4096 /dev/zero; sleep 100'", 69, "it says '????"),
            ("true", 69, "exit status 0 before it was there"),
        )
        for agent, code, part in cases:
            with self.subTest(agent):
                began = time.monotonic()
                rc, _, err = run("--launch-agent", agent, "-H", "a", "--", "true")
                self.assertEqual(rc, code, err)
                self.assertIn(f"host a is lost: ", err)
                self.assertIn(part, err)
                self.assertLess(time.monotonic() - began, tandem.within(4))

    def test_another_build_is_refused_and_its_words_are_not_obeyed(self):
        build = b"\x1b[2J" + b"0" * 36
        body = b"\x01" + b"\xc4\x01a" + b"\xc4" + bytes([len(build)]) + build
        hello = tandem.write("hello", len(body).to_bytes(4, "little") + b"\x08" + body)
        rc, _, err = run("--launch-agent", f"sh -c 'cat {hello}; sleep 100'", "-H", "a", "--", "true")
        self.assertEqual(rc, 76, err)
        self.assertIn("host a is lost: tandem is another build there, ?[2J00000000, than here, ", err)

    def test_a_machine_that_stands_still_loses_nothing(self):
        """As one that is paused: nobody is there to hear, so nobody was silent."""
        for order in (1, -1):
            with self.subTest(order), Launch("-np", 2, *HOSTS, "-H", "a,b", "--", PROBE, "ready", "forever") as launch:
                launch.wait_for_errors("2 ranks ready")
                stand_still([launch.process.pid, *launch.census()][::order], 2)
                self.assertIsNone(launch.process.poll())
                self.assertEqual(len(launch.ranks()), 2)
                self.assertNotIn("is lost", launch.errors())

    def test_a_silent_link_is_noticed_on_both_sides(self):
        relay = tandem.write("relay", f"""#!{sys.executable}
import os, select, subprocess, sys
agent = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
pairs = {{0: agent.stdin.fileno(), agent.stdout.fileno(): 1}}
while pairs:
    for fd in select.select(list(pairs), [], [], 0.05)[0]:
        data = os.read(fd, 65536)
        if os.path.exists(os.environ["CUT"]):
            continue
        if not data:
            sys.exit()
        os.write(pairs[fd], data)
""")
        os.chmod(relay, 0o755)
        cut = tandem.path("cut")
        with Launch("-np", 2, "--launch-agent", relay, "-H", "localhost,b", "--", PROBE, "ready", "forever",
                    env={"CUT": cut}) as launch:
            launch.wait_for_errors("2 ranks ready")
            launch.census()
            began = time.monotonic()
            tandem.write("cut", "")
            launch.wait_for_errors("host b is lost: nothing was heard for ", 3)
            self.assertLess(time.monotonic() - began, tandem.within(2.5))
            self.assertEqual(launch.process.wait(tandem.within(5)), 69)
            launch.nothing_is_left()


class Cluster:
    """Three hosts in namespaces; the launcher runs on the first, and reaches the others by `agent`."""

    def __init__(self, kind):
        self.group = hosts.Hosts(3)
        self.daemons = []
        try:
            self.agent = {"ssh": self.serve_ssh, "tcp": self.serve_tcp}[kind]()
        except BaseException:
            self.group.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for daemon in self.daemons:
            daemon.kill()
            daemon.stdout.close()
        self.group.close()

    def daemon(self, host, *words):
        self.daemons.append(self.group.start(host, *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        return self.daemons[-1].stdout

    def serve_tcp(self):
        shell = os.path.join(os.path.dirname(os.path.abspath(__file__)), "far_shell.py")
        for host in ("h2", "h3"):
            assert self.daemon(host, sys.executable, shell, "serve",
                               self.group.address(host)).readline() == b"ready\n"
        return f"{sys.executable} {shell}"

    def serve_ssh(self):
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")
        if not sshd or not shutil.which("ssh"):
            raise unittest.SkipTest("there is no sshd (openssh-server), or no ssh")
        folder = self.group.folder
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/{name}"], check=True)
        os.makedirs("/run/sshd", exist_ok=True)
        with open(f"{folder}/client", "w") as file:
            file.write(f"Host *\n User root\n IdentityFile {folder}/user\n IdentitiesOnly yes\n BatchMode yes\n"
                       " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n")
        for host in ("h2", "h3"):
            config = f"{folder}/sshd.{host}"
            with open(config, "w") as file:
                file.write(f"ListenAddress {self.group.address(host)}\nHostKey {folder}/host\nPidFile none\n"
                           f"AuthorizedKeysFile {folder}/user.pub\nPasswordAuthentication no\nUsePAM no\n"
                           "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\n")
            out = self.daemon(host, sshd, "-D", "-e", "-f", config)
            while b"listening" not in (line := out.readline()):
                assert line, "no sshd"
        return f"ssh -F {folder}/client"

    def launch(self, *args):
        return Launch(command=self.group.command("h1", *LAUNCH, "--launch-agent", self.agent, "-np", 4, "-H",
                                                 "h2:2,h3:2", "--", *args))


class Networks(unittest.TestCase):
    def all_of_it(self, kind):
        with Cluster(kind) as cluster:
            with cluster.launch(PROBE, "drain=100", "variable=TANDEM_NODE", "ready", "forever") as launch:
                launch.wait_for_errors("4 ranks ready in ")
                print(launch.errors().strip(), end=" ", flush=True)
                self.assertEqual(launch.output().count("TANDEM_NODE=1"), 2)
                launch.signal(signal.SIGTERM)
                self.assertEqual(launch.process.wait(tandem.within(10)), 0, launch.errors())

            rank = "sh", "-c", f"sleep 1000 & {PROBE} daemon ready forever; true"
            with cluster.launch(*rank) as launch:
                launch.wait_for_errors("4 ranks ready in ")
                os.kill(launch.process.pid, signal.SIGKILL)
                wait_for("empty hosts", lambda: self.num_ranks(cluster) == 0, 3)

            with cluster.launch(*rank) as launch:
                launch.wait_for_errors("4 ranks ready in ")
                self.assertGreaterEqual(self.num_ranks(cluster), 12)
                began = time.monotonic()
                cluster.group.cut("h3")
                launch.wait_for_errors("host h3 is lost: nothing was heard for ", 3)
                noticed = time.monotonic() - began
                wait_for("an empty host that is cut off", lambda: self.num_ranks(cluster, "h3") == 0, 4)
                gone = time.monotonic() - began
                self.assertEqual(launch.process.wait(tandem.within(5)), 69, launch.errors())
                print(f"cut noticed in {noticed:.2f} s, cut-off ranks gone in {gone:.2f} s", end=" ", flush=True)
                self.assertLess(noticed, tandem.within(2.5))
                self.assertLess(gone, tandem.within(4))

    @staticmethod
    def num_ranks(cluster, *names):
        """Processes in the network of these hosts that a rank is, or started."""
        networks = {os.readlink(f"/proc/{cluster.group._holders[name].pid}/ns/net")
                    for name in names or ("h2", "h3")}
        count = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                count += (os.readlink(f"/proc/{pid}/ns/net") in networks and
                          any(word in (PROBE, "1000") or PROBE in word for word in words_of(pid)))
            except OSError:
                pass
        return count

    def test_launch_kill_and_cut_over_tcp(self):
        self.all_of_it("tcp")

    def test_launch_kill_and_cut_over_ssh(self):
        self.all_of_it("ssh")


if __name__ == "__main__":
    unittest.main()
