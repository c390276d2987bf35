"""What the storms share: streams through HTTP that are held against an undisturbed run, and whose processes are whose."""
import array
import bisect
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import time

import tandem
from schemas import schemas
from server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRAMMARS = next((folder for folder in (pathlib.Path(tandem.PROGRAM).resolve().parent / "grammar",
                                       ROOT / ".cache/grammar")
                 if (folder / "libllguidance.so").exists()), None)
MODELS = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}


def say(words):
    print(words, file=sys.stderr, flush=True)


def seconds(values):
    """What is told of a list of times."""
    values = sorted(values)
    if not values:
        return {"n": 0}
    at = {"p50": 0.5, "p99": 0.99, "max": 1}
    return {"n": len(values), **{name: round(values[min(int(share * len(values)), len(values) - 1)], 4)
                                 for name, share in at.items()}}


# ---- processes -----------------------------------------------------------------------------------

def stat_of(pid):
    """(state, parent), or None: a zombie is gone, it waits for its parent alone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            state, parent = file.read().rsplit(")", 1)[1].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else (state, int(parent))


def words_of(pid):
    """The command line of a process; [] if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [word.decode(errors="replace") for word in file.read().split(b"\0")[:-1]]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid):
    """All processes below this one, whichever of its threads started them."""
    found = []
    for other in filter(str.isdigit, os.listdir("/proc")):
        stat = stat_of(other)
        if stat and int(other) != pid:
            found.append((int(other), stat[1]))
    below, grew = {pid}, True
    while grew:
        more = {child for child, parent in found if parent in below} - below
        below |= more
        grew = bool(more)
    return below - {pid}


def rank_of(pid):
    """The rank that a process runs, as it was told by word or by its launcher; None: it runs none."""
    words = words_of(pid)
    if "worker" not in words[1:3]:
        return None
    if "--rank" in words:
        return int(words[words.index("--rank") + 1])
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            told = [word[12:] for word in file.read().split(b"\0") if word.startswith(b"TANDEM_RANK=")]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(told[0]) if told else None


def workers(pid):
    """{rank: process} of the ranks below this process that are there now."""
    ranks = {rank_of(child): child for child in descendants(pid)}
    ranks.pop(None, None)
    return ranks


def engine(pid):
    """The engine, which may be this process or one that it has launched."""
    return next((child for child in descendants(pid) if "serve" in words_of(child)[1:3]
                 and tandem.PROGRAM in words_of(child)[:1]), pid)


def num_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def rss_kib(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS:"))


def signal_if_there(pid, number):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


# ---- what is asked -------------------------------------------------------------------------------

def model_of(name):
    """None is the tiny one; else a file, or a name of MODELS in the folder of weights."""
    if not name or os.path.exists(name):
        return name
    folder = pathlib.Path(os.environ.get("TANDEM_TEST_MODELS") or ROOT / ".cache/models")
    return str(folder / MODELS.get(name, name))


def requests(count, seed, is_tiny):
    """Prompts, lengths and ways to sample of all sorts; a third of them follow a grammar, if there are libraries."""
    rng = random.Random(seed)
    forms = list(schemas(count, seed))
    most_prompt, lengths = (600, (50, 400, 1500)) if is_tiny else (120, (8, 32, 96))
    made = []
    for i in range(count):
        body = {"prompt": [rng.randrange(20, 220) for _ in range(rng.randint(1, most_prompt))],
                "max_tokens": rng.randint(lengths[i % 3] // 2, lengths[i % 3]),
                "stream": True, "return_token_ids": True, "logprobs": 1}
        kind = i // 3 % 4 if GRAMMARS else i // 3 % 2
        if kind == 0:  # greedy answers repeat themselves: their logprobs tell one place from the next
            body.update(temperature=0, ignore_eos=True)
        elif kind == 1:
            body.update(temperature=1, top_p=0.95, seed=1000 + i, ignore_eos=True)
        elif kind == 2:
            body.update(temperature=1, seed=1000 + i, response_format={
                "type": "json_schema", "json_schema": {"name": "form", "schema": forms[i]}})
        else:
            body.update(temperature=1, seed=1000 + i,
                        structured_outputs={"regex": "([a-z]{1,8} ){20,400}[0-9]{3}"})
        made.append(body)
    return made


class Stream:
    """One answer, as it came: every token with its logprob, and when."""

    def __init__(self, number):
        self.number = number
        self.tokens, self.logprobs, self.text = [], [], []
        self.times = array.array("d")  # of its events that brought tokens
        self.finish = self.error = None
        self.has_left = False

    def run(self, port, body, on_tokens=None, patience_s=120, leave_at=None):
        """leave_at: the client leaves when it has so many tokens."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience_s)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                self.error = f"{answer.status} {answer.read(1000).decode(errors='replace')}"
                return self
            for line in answer:
                if line.startswith(b"data: ") and not self.take(line[6:].strip(), on_tokens):
                    break
                if leave_at is not None and len(self.tokens) >= leave_at and not self.finish:
                    self.has_left = True
                    return self
            if self.error is None and self.finish is None:
                self.error = "the stream ended without a reason"
        except (OSError, http.client.HTTPException, socket.timeout) as error:
            self.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        return self

    def take(self, data, on_tokens):
        if data == b"[DONE]":
            return False
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]["message"]
            return False
        choice = event["choices"][0]
        tokens = choice.get("token_ids") or []
        if tokens:
            self.times.append(time.monotonic())
            self.tokens += tokens
            self.logprobs += choice["logprobs"]["token_logprobs"]
            if on_tokens:
                on_tokens()
        self.text.append(choice["text"])
        self.finish = choice["finish_reason"] or self.finish
        return True

    def difference(self, wanted):
        """As of difference(); of an answer whose client left the beginning is compared."""
        got = self.answer()
        if self.has_left:
            n = len(self.tokens)
            wanted = {**wanted, "tokens": wanted["tokens"][:n], "logprobs": wanted["logprobs"][:n],
                      "text": got["text"], "finish": None}
        return difference(got, wanted)

    def answer(self):
        return {"tokens": self.tokens, "logprobs": self.logprobs, "text": "".join(self.text),
                "finish": self.finish}


def difference(got, wanted):
    """None, or what is wrong with an answer: {"lost": tokens, "repeated": tokens, "changed": tokens, "at": the first}."""
    if got == wanted:
        return None
    a = list(zip(got["tokens"], got["logprobs"]))
    b = list(zip(wanted["tokens"], wanted["logprobs"]))
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    found = {"lost": 0, "repeated": 0, "changed": 0, "at": at}
    if a == b:
        found["changed"] = 1  # its text, or why it ended
    elif at == len(a):
        found["lost"] = len(b) - len(a)
    elif at == len(b):
        found["repeated"] = len(a) - len(b)
    else:
        ahead = a[at:at + 8]
        again = next((k for k in range(1, at + 1) if b[at - k:at - k + len(ahead)] == ahead), 0)
        skipped = next((k for k in range(1, len(b) - at) if b[at + k:at + k + len(ahead)] == ahead), 0)
        if again:
            found["repeated"] = again
        elif skipped:
            found["lost"] = skipped
        else:
            found["changed"] = sum(x != y for x, y in zip(a[at:], b[at:])) + abs(len(a) - len(b))
    return found


class Load:
    """Clients that ask one request after the other, of those given, until told to stop; one in eight times they leave
    before the answer has come to its end."""

    def __init__(self, server, bodies, clients, seed):
        self.server, self.bodies = server, bodies
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.streams = []
        self.num_events = 0  # a race loses some: it moves all the same
        self.threads = [threading.Thread(target=self.ask, args=(random.Random(seed * 1000 + i),),
                                         daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def on_tokens(self):
        self.num_events += 1

    def ask(self, rng):
        while not self.stopping.is_set() and self.server.process.poll() is None:
            number = rng.randrange(len(self.bodies))
            stream = Stream(number)
            with self.lock:
                self.streams.append(stream)
            leave_at = rng.randrange(60) if rng.random() < 1 / 8 else None
            stream.run(self.server.port, self.bodies[number], self.on_tokens, leave_at=leave_at)
            if stream.error:
                time.sleep(0.2)  # one that ends is not asked in a circle

    def wait_for_tokens(self, seconds):
        """Waits until somebody gets something; False: nobody did, or the server has ended."""
        seen, end = self.num_events, time.monotonic() + seconds
        while self.num_events == seen:
            if time.monotonic() > end or self.server.process.poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def stop(self):
        """Lets every answer come to its end."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.streams


def undisturbed(port, bodies, clients):
    """The answers of a server that nobody disturbs: what all others are held against."""
    answers, left, lock = [None] * len(bodies), list(range(len(bodies))), threading.Lock()

    def ask():
        while True:
            with lock:
                if not left:
                    return
                number = left.pop()
            stream = Stream(number).run(port, bodies[number])
            assert stream.error is None, stream.error
            answers[number] = stream.answer()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in answers, "the undisturbed run failed"
    return answers


# ---- pauses --------------------------------------------------------------------------------------

def longest_pause(times, begin, end):
    """The pause of sorted `times` that a blow at `begin` made, up to `end`: (seconds from the blow to its end, how long
    it was), or None if nothing came before or behind it."""
    first, last = bisect.bisect_right(times, begin), bisect.bisect_left(times, end)
    if first == 0 or first >= last:
        return None
    length, over = max((times[i] - times[i - 1], times[i]) for i in range(first, last))
    return over - begin, length


def serve(options, model_file, launcher=()):
    """tandem serve with what the grammars need."""
    if GRAMMARS:
        options = [*options, "--grammar-folder", str(GRAMMARS), "--grammar-compile-timeout", "30",
                   "--grammar-mask-timeout", "30"]
    return Server(*options, model_file=model_file, launcher=launcher)


KILLS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
