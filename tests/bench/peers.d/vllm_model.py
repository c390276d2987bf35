"""vLLM's engine on a bf16 folder, in this process: what it makes of prompts and streams.

usage: vllm_model.py FOLDER [--first-token]   (in vLLM's venv)

A line on stdin is {"prefill", "decode", "batch"}: so many prompts of so many random tokens, and so
many new tokens of each. A line of JSON on stdout gives the tokens per second of the prompts, of the
rest, and of the whole, or {"error": SENTENCE}. --first-token makes one token and ends.
"""
import json
import os
import random
import sys
import time

# vLLM and its libraries print where they like.
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0")

from vllm import LLM, SamplingParams  # noqa: E402


class Engine:
    def __init__(self, folder, **settings):
        self.engine = LLM(model=folder, dtype="bfloat16", max_model_len=8192, seed=0,
                          enable_prefix_caching=False, skip_tokenizer_init=True,
                          disable_log_stats=True, **settings).llm_engine
        self.vocabulary = self.engine.model_config.get_vocab_size()
        self.number = 0

    def run(self, prefill, decode, batch):
        """The seconds until every stream has its first token, and until the end."""
        params = SamplingParams(temperature=0, max_tokens=decode, ignore_eos=True, detokenize=False)
        prompts = [[random.randrange(self.vocabulary) for _ in range(prefill)]
                   for _ in range(batch)]
        start = first = time.perf_counter()
        for prompt in prompts:
            self.number += 1
            self.engine.add_request(str(self.number), {"prompt_token_ids": prompt}, params)
        begun = set()
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            if len(begun) < batch:
                begun |= {output.request_id for output in outputs}
                first = time.perf_counter()
        return first - start, time.perf_counter() - start

    def measure(self, prefill, decode, batch):
        # The first token is of the prompt.
        first, whole = self.run(prefill, decode, batch)
        return {"prefill_tok_s": batch * prefill / first,
                "decode_tok_s": batch * (decode - 1) / (whole - first) if decode > 1 else None,
                "whole_tok_s": batch * (prefill + decode) / whole}


def main():
    if "--first-token" in sys.argv:
        Engine(sys.argv[1], enforce_eager=True, max_num_seqs=1).run(5, 1, 1)
        print("token", file=answers)
        return
    engine = Engine(sys.argv[1], max_num_seqs=64)
    engine.run(512, 8, 1)
    engine.run(64, 8, 32)
    print("{}", file=answers)
    for line in sys.stdin:
        try:
            figures = engine.measure(**json.loads(line))
        except Exception as error:  # whatever it is, the other measurements go on
            figures = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(figures), file=answers)


if __name__ == "__main__":
    main()
