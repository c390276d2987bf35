"""Those who are measured: each runs a load, serves HTTP, and is started cold, by the same methods.

A figure is a dict: the measured values by name, and "settings", the words for what it ran with.
What can't be measured raises Failed with a sentence. `variants` are the ways to serve many streams
that are worth a try; one is left when the best is known.
"""
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

from install import CACHE, HERE, VLLM, hf_folder, install_llama_cpp, install_vllm, say

PROMPT = "The capital of France is"
KV_BLOCK_TANDEM, KV_BLOCK_VLLM = 16, 128


class Failed(RuntimeError):
    """There is no figure, and this is why."""


class Load(NamedTuple):
    """`batch` streams at once, of `prefill` tokens in and `decode` out, the first by the prompt."""
    model: Path
    prefill: int
    decode: int
    batch: int = 1


class Serving(NamedTuple):
    """A server that holds `kv_tokens` tokens, of `streams` requests, none longer than `longest`."""
    model: Path
    kv_tokens: int
    streams: int
    longest: int


def run(command, timeout=900, **environment):
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                              check=False, timeout=timeout, env=os.environ | environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise Failed(f"{Path(command[0]).name}: status {done.returncode}: {last[:300]}")
    return done.stdout


def seconds_to_output(command, timeout=300, **environment):
    """From exec until it prints something; then it is ended."""
    start = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
                          start_new_session=True, env=os.environ | environment) as process:
        watchdog = time.monotonic() + timeout
        os.set_blocking(process.stdout.fileno(), False)
        got = b""
        while not got.strip() and process.poll() is None and time.monotonic() < watchdog:
            got = process.stdout.read() or b""
            time.sleep(0.0005)
        seconds = time.perf_counter() - start
        got = got or process.stdout.read() or b""
        end_session(process)
    if not got.strip():
        raise Failed(f"{Path(command[0]).name} printed nothing")
    return seconds


def session_of(leader):
    """The processes of a session, by /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                yield folder
        except (OSError, IndexError):
            continue


def end_session(process):
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        until = time.monotonic() + patience
        while time.monotonic() < until:
            process.poll()
            if not any(session_of(process.pid)):
                return
            time.sleep(0.05)


class Server:
    """A server of OpenAI's completions on a free port, until the `with` ends."""

    def __init__(self, name, command, settings, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.settings, self.model, self.log = settings, None, CACHE / f"{name}-server.log"
        CACHE.mkdir(parents=True, exist_ok=True)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--host", "127.0.0.1", "--port", str(self.port)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env=os.environ | environment)

    def __enter__(self):
        until, models = time.monotonic() + 300, f"http://127.0.0.1:{self.port}/v1/models"
        while time.monotonic() < until and self.process.poll() is None:
            try:  # one that still loads refuses
                with urllib.request.urlopen(models, timeout=5) as answer:
                    self.model = json.load(answer)["data"][0]["id"]
                    return self
            except OSError:
                time.sleep(0.05)
        self.__exit__()
        raise Failed(f"its server did not start; {self.log} tells why")

    def __exit__(self, *_):
        end_session(self.process)

    def memory_mb(self):
        """The proportional set size of all its processes."""
        total = 0
        for folder in session_of(self.process.pid):
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total * 1024 / 1e6


# ---- tandem --------------------------------------------------------------------------------------

class Tandem:
    name = "tandem"
    variants = ((),)

    def __init__(self, program, threads, ranks=1, isa=None):
        self.program = program
        self.options = ["--threads", threads] + (["--tp", ranks] if ranks > 1 else []) + \
            (["--isa", isa] if isa else [])
        self.settings = f"{ranks} x {threads} threads" if ranks > 1 else f"{threads} threads"
        self.settings += f", {isa}" if isa else ""

    def version(self):
        return self.name

    def measure(self, load):
        """The tokens per second of the prompts, of the rest, and of the whole."""
        line = run([self.program, "bench", "model", "--model", load.model,
                    "--prefill", load.prefill, "--decode", load.decode, "--batch", load.batch,
                    "--rounds", 1, *self.options, "--json"])
        return json.loads(line.splitlines()[-1]) | {"settings": self.settings}

    def serve(self, serving, _=()):
        return Server("tandem", [
            self.program, "serve", "--model", serving.model, "--max-model-len", serving.longest,
            "--max-num-seqs", serving.streams, "--num-gpu-blocks-override",
            serving.kv_tokens // KV_BLOCK_TANDEM, "--log-level", "warn", *self.options],
            self.settings)

    def first_token(self, model):
        return {"settings": self.settings, "seconds": seconds_to_output(
            [self.program, "generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 1,
             "--max-model-len", 2048, *self.options])}

    def close(self):
        pass


# ---- llama.cpp -----------------------------------------------------------------------------------

class LlamaCpp:
    """Its own programs, each load with the settings that were best for it when they were tried."""
    name = "llama.cpp"

    def __init__(self, threads):
        self.threads = threads
        self.programs = install_llama_cpp()
        self.tuned = {}
        # A slot has its share of the KV cache, or all share it.
        self.variants = [("-np", slots) for slots in (32, 64, 128, 256)] + [("-np", 64, "-kvu")]

    def version(self):
        return f"{self.name} (of llama-cpp-python 0.3.36)"

    @staticmethod
    def words(settings):
        return f"-t {settings['t']} -fa {settings['fa']} -ub {settings['ub']}, KV f16"

    def run_load(self, load, settings):
        context, decode = load.batch * (load.prefill + load.decode), max(1, load.decode - 1)
        # Twice: the first prompt of a process finds its buffers untouched. The last counts.
        line = run([self.programs / "llama-batched-bench", "-m", load.model,
                    "-npp", f"{load.prefill},{load.prefill}" if context < 2048 else load.prefill,
                    "-ntg", decode, "-npl", load.batch, "-c", context, "-b", 2048,
                    "-ub", settings["ub"], "-fa", settings["fa"], "-t", settings["t"],
                    "-tb", self.threads, "--output-format", "jsonl"])
        figures = json.loads([line for line in line.splitlines() if line.startswith("{")][-1])
        return {"prefill_tok_s": figures["speed_pp"], "decode_tok_s": figures["speed_tg"],
                "whole_tok_s": context / figures["t"]}

    def best_settings(self, load):
        """Tries one setting after the other, on a prompt of 2048 tokens where it is longer."""
        load = load._replace(prefill=min(load.prefill, 2048))
        if load in self.tuned:
            return self.tuned[load]
        best = {"t": self.threads, "fa": "on", "ub": 512}
        of_load = "decode_tok_s" if load.decode > 1 else "prefill_tok_s"
        known = self.run_load(load, best)
        large = (2048,) if load.prefill * load.batch > 512 else ()
        for setting, values, figure in (("fa", ("off",), of_load),
                                        ("t", range(1, self.threads), "decode_tok_s"),
                                        ("ub", (256, *large), "prefill_tok_s")):
            if setting == "t" and load.decode == 1:
                continue
            for value in values:
                tried = self.run_load(load, best | {setting: value})
                if tried[figure] > known[figure]:
                    best, known = best | {setting: value}, tried
        self.tuned[load] = best
        return best

    def measure(self, load):
        best = self.best_settings(load)
        return self.run_load(load, best) | {"settings": self.words(best)}

    def serve(self, serving, variant=()):
        best = self.best_settings(Load(serving.model, 128, 64, 32 if serving.streams > 16 else 8))
        slots = variant or ("-np", serving.streams)
        return Server("llama.cpp", [
            self.programs / "llama-server", "-m", serving.model, "-c", serving.kv_tokens, *slots,
            "-cb", "-t", best["t"], "-tb", self.threads, "-fa", best["fa"], "-b", 2048,
            "-ub", best["ub"], "--cache-ram", 0, "--no-webui"],
            f"{self.words(best)}, {' '.join(map(str, slots))}")

    def first_token(self, model):
        return {"settings": f"-t {self.threads} --no-warmup", "seconds": seconds_to_output(
            [self.programs / "llama-completion", "-m", model, "-p", PROMPT, "-n", 1, "-c", 2048,
             "-t", self.threads, "--no-warmup", "-no-cnv", "--no-display-prompt", "--temp", 0])}

    def close(self):
        pass


# ---- vLLM ----------------------------------------------------------------------------------------

class Vllm:
    """vllm_model.py, which stays for all rounds; while it is not asked it sleeps."""
    name = "vLLM"
    variants = ((),)

    def __init__(self, threads):
        self.threads = threads
        self.python = install_vllm()
        self.engine, self.engine_model = None, None
        self.settings = f"bf16, {threads} threads"
        self.environment = {
            "VLLM_TARGET_DEVICE": "cpu", "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "4",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}" if threads > 1 else "0"}

    def version(self):
        return f"{self.name} {VLLM.partition('==')[2]}"

    def answer(self):
        line = self.engine.stdout.readline()
        if not line:
            self.close()
            raise Failed(f"it ended; {CACHE / 'vllm-model.log'} tells why")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def open(self, model):
        if self.engine and self.engine_model == model:
            return
        self.close()
        folder = hf_folder(model)
        say("(starting vLLM) ", end="")
        with open(CACHE / "vllm-model.log", "w", encoding="utf-8") as log:
            self.engine = subprocess.Popen(
                [self.python, HERE / "vllm_model.py", folder], text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=os.environ | self.environment)
        self.engine_model = model
        self.answer()

    def measure(self, load):
        self.open(load.model)
        print(json.dumps({"prefill": load.prefill, "decode": load.decode, "batch": load.batch}),
              file=self.engine.stdin)
        return self.answer() | {"settings": self.settings}

    def serve(self, serving, _=()):
        self.close()  # two at once would share the cores
        folder = hf_folder(serving.model)
        return Server("vllm", [
            self.python.parent / "vllm", "serve", folder, "--dtype", "bfloat16",
            "--max-model-len", serving.longest, "--max-num-seqs", serving.streams,
            # One block is nobody's: it pads.
            "--num-gpu-blocks-override", serving.kv_tokens // KV_BLOCK_VLLM + 1,
            "--disable-log-stats", "--disable-uvicorn-access-log"], self.settings,
            **self.environment)

    def first_token(self, model):
        self.close()
        return {"settings": self.settings + ", eager", "seconds": seconds_to_output(
            [self.python, HERE / "vllm_model.py", hf_folder(model), "--first-token"],
            **self.environment)}

    def close(self):
        if self.engine:
            self.engine.stdin.close()
            end_session(self.engine)
        self.engine = None
