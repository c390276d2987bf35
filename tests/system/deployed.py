"""An engine whose ranks something else starts, from outside: its answers, its processes, its end."""
import contextlib
import ctypes
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import time
import uuid

import tandem
from server import wait_for
from slurm_mini import free_ports

MARK = "MARK_OF_TANDEM_TESTS"  # in the environment of all that a deployment starts
LENGTH, SEED = 1500, 7         # of the answer, which is drawn: a greedy one of a tiny model says one word


@functools.cache
def model():
    return tandem.make_tiny_model("deployed.gguf", max_position=32768)


@functools.cache
def expected():
    """What ranks that the engine starts itself answer."""
    status, out, err = tandem.run("generate", "--model", model(), "--executor", "multiproc", "--tp",
                                  "2", "--prompt", "Once", "--seed", SEED, "--temperature", "1",
                                  "--ignore-eos", "--max-tokens", LENGTH, "--json")
    assert status == 0, err
    return json.loads(out)["text"]


@functools.cache
def token():
    status, _, err = tandem.run("token", tandem.path("token"))
    assert status == 0, err
    return tandem.path("token")


@functools.cache
def path_of_programs():
    """PATH, with `tandem` in it."""
    folder = tandem.path("bin")
    os.mkdir(folder)
    os.symlink(tandem.PROGRAM, os.path.join(folder, "tandem"))
    return folder + ":" + os.environ["PATH"]


def free_address():
    return f"tcp://127.0.0.1:{free_ports(1)[0]}"


def marked(mark):
    """Processes that have the mark and are no zombies: {pid: name}."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if f"{MARK}={mark}\0".encode() not in file.read():
                    continue
            with open(f"/proc/{pid}/comm") as file:
                found[int(pid)] = file.read().strip()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            pass
    return found


@contextlib.contextmanager
def network_of(pid):
    """Sockets that are made meanwhile belong to the network of this process; None: to ours."""
    if pid is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(namespace):
        if libc.setns(namespace.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    with open("/proc/self/ns/net") as own, open(f"/proc/{pid}/ns/net") as there:
        enter(there)
        try:
            yield
        finally:
            enter(own)


class Deployment:
    """All that a test starts under one mark; what is left of it at the end is killed, and is a failure."""

    def __init__(self, **env):
        self.mark = uuid.uuid4().hex
        self.log_path = tandem.write(f"log-{self.mark}", "")
        self.env = {"PATH": path_of_programs(), MARK: self.mark, "TANDEM_RUN_DIR": tandem.path("."),
                    "TANDEM_PROGRAM": "", **env}
        self.commands, self.connection, self.pending = [], None, None
        self.found_port = None
        self.network = None  # of which process; None: ours
        self.check = lambda: None  # raises when there will be no engine

    def start(self, *words, **env):
        with open(self.log_path, "ab") as log:
            # Whatever ends this test, its commands are told.
            command = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", *words],
                                       stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **self.env, **env}, cwd=tandem.path("."),
                                       start_new_session=True)
        self.commands.append(command)
        return command

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.connection:
            self.connection.close()
        if kind:
            print(f"what it said: {self.log()[-5000:]}")
        for pid in marked(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for command in self.commands:
            command.wait(tandem.within(10))

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    # ---- asking -------------------------------------------------------------------------------

    def port(self):
        def is_serving():
            for command in self.commands:
                assert command.poll() in (None, 0), f"ended with {command.returncode}"
            self.check()
            return re.search(r"tandem: serving \S+ on http://\S+?:(\d+)\n", self.log())
        self.found_port = self.found_port or int(
            wait_for("an engine that serves", is_serving, 30).group(1))
        return self.found_port

    def connect(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=60)
        with network_of(self.network):
            connection.connect()
        return connection

    def status_of(self, path):
        """None: nobody answers."""
        try:
            with contextlib.closing(self.connect()) as connection:
                connection.request("GET", path)
                return connection.getresponse().status
        except OSError:
            return None

    def wait_until_ready(self):
        wait_for("readiness", lambda: self.status_of("/ready") == 200, 30)

    def ask(self):
        """Begins to answer, as a stream; returns when there is something of it."""
        body = {"prompt": "Once", "seed": SEED, "temperature": 1, "ignore_eos": True,
                "max_tokens": LENGTH, "stream": True}
        self.connection = self.connect()
        self.connection.request("POST", "/v1/completions", json.dumps(body),
                                {"Content-Type": "application/json",
                                 "Authorization": "Bearer " + self.env.get("TANDEM_API_KEY", "")})
        self.pending = self.connection.getresponse()
        assert self.pending.status == 200, self.pending.read()
        self.first = self.pending.readline()

    def answer(self):
        """The rest of it, to its end."""
        text = ""
        for line in (self.first + self.pending.read()).decode().split("\n"):
            if line.startswith("data: {"):
                event = json.loads(line[len("data: "):])
                assert "error" not in event, event
                text += event["choices"][0]["text"]
        self.connection.close()
        return text

    # ---- processes ------------------------------------------------------------------------------

    def ranks(self):
        return sorted(pid for pid, name in marked(self.mark).items() if name == "tandem-worker")

    def kill_a_rank(self):
        os.kill(self.ranks()[-1], signal.SIGKILL)

    def wait_until_gone(self, seconds=10):
        wait_for(f"the end of all processes, not {marked(self.mark)}",
                 lambda: not marked(self.mark), seconds)


def end(command, deployment, signal_number=signal.SIGTERM):
    """Its exit status, when nothing is left of it."""
    command.send_signal(signal_number)
    status = command.wait(tandem.within(20))
    deployment.wait_until_gone()
    return status
