"""What is measured: a measurement asks a contestant once for the figures of one or more rows."""
import random
from typing import Callable, NamedTuple

from contestants import Failed, Load, Serving
from load import Request, random_prompt, run_disturbed, run_load

SMOLLM2, GEMMA3 = "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"
BATCHES = (1, 2, 4, 8, 16, 32)
CONTEXTS = (100, 1000, 2000, 4000, 8000)
NUM_STREAMS, STREAMS_PER_S = 256, 3


class Row(NamedTuple):
    name: str
    unit: str
    key: str  # of the figure
    what: str = ""


class Measurement(NamedTuple):
    what: str
    rows: tuple
    measure: Callable  # (contestant, the model's path, the round) -> the figures
    model: str = SMOLLM2
    # The column of a row, and whom it shows; a text in parentheses says why there is nobody.
    who: dict = {"tandem": "tandem", "llama_cpp": "llama_cpp", "vllm": "vllm"}
    not_alike: str = ""


WEIGHTS = ("tandem and llama.cpp compute with the file's 4-bit weights and activations of 8 bits, "
           "vLLM with the same weights widened to bf16")
CONTEXT_FREE = "llama.cpp's prompt and its next tokens are random, and nothing is sampled"

# ---- loads without a server ----------------------------------------------------------------------


def model_load(prefill, decode, batch=1):
    def measure(contestant, model, _):
        figures = contestant.measure(Load(model, prefill, decode, batch))
        limit = figures.get("bandwidth_limit_tok_s")
        if limit and figures.get("decode_tok_s"):
            figures["of_limit"] = 100 * figures["decode_tok_s"] / limit
        return figures
    return measure


def over_contexts(contestant, model, _):
    figures = {}
    for context in CONTEXTS:
        got = contestant.measure(Load(model, context, 64))
        figures[f"ms_{context}"] = 1000 / got["decode_tok_s"]
        figures["settings"] = got["settings"]
    figures["times"] = figures[f"ms_{CONTEXTS[-1]}"] / figures[f"ms_{CONTEXTS[0]}"]
    return figures


def decode_rows(batch):
    rows = (Row(f"decode-{batch}", "tokens/s", "decode_tok_s"),
            Row(f"decode-{batch}-whole", "tokens/s", "whole_tok_s",
                "tokens in and out, by the time of both"))
    return rows + ((Row("decode-1-of-limit", "%", "of_limit",
                        "of the tokens/s at which the weights and the KV cache could be read"),)
                   if batch == 1 else ())


# ---- servers -------------------------------------------------------------------------------------

def percentile(values, percent):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def mixed_streams(poisson, turn):
    """The lengths and the times of arrival are the same in each round, the tokens are not."""
    generator, at, requests = random.Random(256), 0.0, []
    for number in range(NUM_STREAMS):
        length = int(2 ** generator.uniform(4, 8))
        max_tokens = generator.randint(16, 64)
        at += generator.expovariate(STREAMS_PER_S)
        requests.append(Request(random_prompt(length, poisson, turn, number), max_tokens,
                                at if poisson else 0))
    return requests


def warm_up(server):
    run_load(server, [Request(random_prompt(64, "warm", number), 8) for number in range(16)])


def load_figures(streams, seconds, prefix):
    waits = [1000 * (end - begin) for stream in streams for begin, end in stream.gaps()]
    firsts = [1000 * stream.first_token_s() for stream in streams]
    figures = {f"{prefix}_tok_s": sum(s.request.max_tokens for s in streams) / seconds}
    for name, values in (("itl", waits), ("ttft", firsts)):
        for percent in (50, 99):
            figures[f"{prefix}_{name}_p{percent}"] = percentile(values, percent)
    return figures


def best_variant(contestant, serving):
    if len(contestant.variants) == 1:
        return contestant.variants[0]
    seconds = {}
    for variant in contestant.variants:
        with contestant.serve(serving, variant) as server:
            warm_up(server)
            seconds[variant] = run_load(server, mixed_streams(False, -1))[1]
    return min(seconds, key=seconds.get)


def http_load(contestant, model, turn):
    figures, serving = {}, Serving(model, 98304, NUM_STREAMS, 8192)
    contestant.variants = (best_variant(contestant, serving),)
    with contestant.serve(serving, contestant.variants[0]) as server:
        warm_up(server)
        for prefix, poisson in (("closed", False), ("poisson", True)):
            streams, seconds = run_load(server, mixed_streams(poisson, turn))
            figures |= load_figures(streams, seconds, prefix)
        figures["settings"] = server.settings
    return figures


def http_rows(prefix, what):
    return (Row(f"http-{prefix}", "tokens/s", f"{prefix}_tok_s", f"{what}: answers' tokens"),
            *(Row(f"http-{prefix}-{name}-p{percent}", "ms", f"{prefix}_{name}_p{percent}", words)
              for name, words in (("itl", "between tokens"), ("ttft", "to the first token"))
              for percent in (50, 99)))


def long_prompt(contestant, model, turn):
    with contestant.serve(Serving(model, 9 * 4608, 9, 4608)) as server:
        warm_up(server)
        streams = [Request(random_prompt(128, "stream", turn, number), 3000) for number in range(8)]
        quiet, busy, wait = run_disturbed(
            server, streams, Request(random_prompt(4000, "long", turn), 2), quiet_s=3)
        settings = server.settings
    if not quiet or not busy:
        raise Failed("too few tokens came to tell")
    figures = {"idle_p99": 1000 * percentile(quiet, 99), "busy_p99": 1000 * percentile(busy, 99),
               "ttft_s": wait, "settings": settings}
    return figures | {"times": figures["busy_p99"] / figures["idle_p99"]}


def memory(contestant, model, turn):
    with contestant.serve(Serving(model, 8192, 1, 8192)) as server:
        run_load(server, [Request(random_prompt(512, "memory", turn), 16)])
        return {"pss_mb": server.memory_mb(), "settings": server.settings}


# ---- the table -----------------------------------------------------------------------------------

PEERS_AS_BEFORE = {"llama_cpp": "llama_cpp", "vllm": "vllm"}
TANDEM_ALONE = {"tandem": "tandem_tp2", "tandem_tp1": "tandem",
                "llama_cpp": "(one process only)", "vllm": "(its ranks are not measured)"}
NO_VLLM = {"tandem": "tandem", "llama_cpp": "llama_cpp", "vllm": "(not measured)"}
SERVERS = WEIGHTS + "; an inter-token time is the time between two events of a stream"

MEASUREMENTS = (
    Measurement("a prompt of 512 tokens", (Row("prefill-512", "tokens/s", "prefill_tok_s"),),
                model_load(512, 1), not_alike=WEIGHTS),
    Measurement("the same, tandem without AVX-512",
                (Row("prefill-512-avx2", "tokens/s", "prefill_tok_s"),), model_load(512, 1),
                who={"tandem": "tandem_avx2"} | PEERS_AS_BEFORE,
                not_alike=WEIGHTS + "; the peers use all that the machine has"),
    *(Measurement(f"{batch} streams, 128 tokens in, 64 out of each" if batch > 1 else
                  "one stream, 128 tokens in, 64 out", decode_rows(batch),
                  model_load(128, 64, batch), not_alike=f"{WEIGHTS}; {CONTEXT_FREE}")
      for batch in BATCHES),
    Measurement("Gemma 3 270M, a prompt of 512 tokens",
                (Row("gemma-prefill-512", "tokens/s", "prefill_tok_s"),), model_load(512, 1),
                GEMMA3, not_alike=WEIGHTS),
    Measurement("Gemma 3 270M, one stream, 128 tokens in, 64 out",
                (Row("gemma-decode-1", "tokens/s", "decode_tok_s"),), model_load(128, 64),
                GEMMA3, not_alike=f"{WEIGHTS}; {CONTEXT_FREE}"),
    Measurement("2 ranks of 1 thread beside 1 rank of 2, a prompt of 512 tokens",
                (Row("tp2-prefill-512", "tokens/s", "prefill_tok_s"),), model_load(512, 1),
                who=TANDEM_ALONE),
    *(Measurement(f"2 ranks of 1 thread beside 1 rank of 2, streams: {batch}",
                  (Row(f"tp2-decode-{batch}", "tokens/s", "decode_tok_s"),),
                  model_load(128, 64, batch), who=TANDEM_ALONE) for batch in (1, 32)),
    Measurement(f"{NUM_STREAMS} streams through HTTP, 16 to 256 tokens in, 16 to 64 out",
                http_rows("closed", "all at once")
                + http_rows("poisson", f"{STREAMS_PER_S} a second, Poisson"),
                http_load, not_alike=SERVERS),
    Measurement("8 streams, 128 tokens in, while a prompt of 4,000 tokens comes", (
        Row("long-prompt-itl-p99", "ms", "busy_p99", "until that prompt has its first token"),
        Row("long-prompt-idle-itl-p99", "ms", "idle_p99", "before it came"),
        Row("long-prompt-itl-times", "times", "times", "the one by the other"),
        Row("long-prompt-ttft", "s", "ttft_s", "of the long prompt")),
        long_prompt, not_alike=SERVERS),
    Measurement("exec to the first token of a short prompt, files in the page cache",
                (Row("first-token", "s", "seconds"),),
                lambda contestant, model, _: contestant.first_token(model),
                not_alike="vLLM is a Python script, the others are programs"),
    Measurement("memory of a server with room for 8,192 tokens, after a prompt of 512",
                (Row("memory", "MB", "pss_mb", "proportional set size of its processes"),), memory,
                not_alike=WEIGHTS + "; pages of the KV cache count once they are touched"),
    Measurement("decoding one stream by its context", (
        *(Row(f"context-{context}", "ms/token", f"ms_{context}") for context in CONTEXTS),
        Row("context-times", "times", "times", f"at {CONTEXTS[-1]} by at {CONTEXTS[0]}")),
        over_contexts, who=NO_VLLM, not_alike=CONTEXT_FREE),
)


def select(words):
    """The measurements and rows that a word names, or begins if it is no name; all for none."""
    names = {row.name for measurement in MEASUREMENTS for row in measurement.rows}

    def fits(name, word):
        return name == word if word in names else name.startswith(word)

    chosen = []
    for measurement in MEASUREMENTS:
        rows = tuple(row for row in measurement.rows
                     if not words or any(fits(row.name, word) for word in words))
        if rows:
            chosen.append(measurement._replace(rows=rows))
    return chosen
