"""tandem serve for the tests that ask it, and plain HTTP to ask it with."""
import atexit
import glob
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import unittest

import tandem


def wait_for(what, condition, seconds=10, every=0.02):
    """Polls until condition() is true and returns what it returned."""
    seconds = tandem.within(seconds)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {what}")


def children_of(pid):
    """Of all its threads: ranks are replaced by the core's."""
    children = []
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path) as file:
                children += [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            pass  # a thread that has ended
    return sorted(children)


def stand_still(pids, seconds):
    """All of them, as on a machine that is paused; they go on in this order."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(0.7)  # a beat is due within


_model = None


def model():
    """A tiny model with a context that streams do not reach the end of."""
    global _model
    _model = _model or tandem.make_tiny_model("serve.gguf", max_position=32768)
    return _model


_shared = None


def shared():
    """One server for the tests that leave it as they found it."""
    global _shared
    if not _shared:
        _shared = Server("--tp", "2")
        unittest.addModuleCleanup(_shared.stop)
    return _shared


class Server:
    """tandem serve on a free port, as a context manager; launcher: the words that it is started by."""

    def __init__(self, *options, env=None, model_file=None, launcher=()):
        self.log_path = tandem.path(f"log-{time.monotonic_ns()}")
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*launcher, tandem.PROGRAM, "serve", "--model", model_file or model(),
                 "--served-model-name", "tiny", "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=log, env={**os.environ, **(env or {})})
        atexit.register(self.process.kill)  # whatever happens
        line = self.process.stdout.readline().decode()
        match = re.fullmatch(r"tandem: serving (\S+) on (http://\S+:(\d+))\n", line)
        if not match:
            self.process.wait(tandem.within(10))
            raise AssertionError(f"no server: {line!r} {self.log_text()}")
        self.url, self.port = match.group(2), int(match.group(3))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.stop()
        if kind:
            print(f"log of the server: {self.log_text()[-3000:]}")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(tandem.within(20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still there 20 s after SIGTERM: {self.log_text()}")
        finally:
            self.process.stdout.close()
        assert "assertion failed" not in self.log_text(), self.log_text()

    def log_text(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def ask(self, method, path, body=None, headers=None, seconds=60):
        """(status, headers, body): body is JSON where it says so, else text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        is_json = answer.headers.get_content_type() == "application/json" and method != "HEAD"
        return answer.status, answer.headers, json.loads(text) if is_json else text

    def post(self, path, body, **more):
        return self.ask("POST", path, body, **more)

    def complete(self, prompt="Hello", **more):
        body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 8, **more}
        status, _, answer = self.post("/v1/completions", body)
        assert status == 200, answer
        return answer

    def events(self, body, path="/v1/completions"):
        """The JSON of each server-sent event; checks that [DONE] is the last."""
        status, headers, text = self.post(path, {"stream": True, **body})
        assert status == 200, text
        assert headers.get_content_type() == "text/event-stream", headers
        events = [line[len("data: "):] for line in text.split("\n") if line]
        assert text.count("data: ") >= len(events) and events[-1] == "[DONE]", text
        return [json.loads(event) for event in events[:-1]]

    def open_stream(self, receive_bytes=None, **more):
        """A raw socket on which a long stream comes; nothing of it is read yet."""
        body = json.dumps({"prompt": "Once", "stream": True, "ignore_eos": True,
                           "temperature": 0, "max_tokens": 30000, **more}).encode()
        client = socket.socket()
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(20)
        client.connect(("127.0.0.1", self.port))
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                       b"Content-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return client

    def metric(self, name, **labels):
        """The value of one line of /metrics."""
        status, _, text = self.ask("GET", "/metrics")
        assert status == 200, text
        for line in text.split("\n"):
            if line.startswith(name + "{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}{labels}")

    def num_running(self):
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")
