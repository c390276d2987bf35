"""One answer: the bits of a request's answer depend on nothing but the request.

Not on the number of ranks, the executor, who else runs, nor on how the scheduler cuts its steps: the
lines that generate prints, token ids and logprobs of nine digits, are compared as text. The tiny model
has 9 heads over 3 KV heads, which no number of ranks but 3 divides.
"""
import os
import unittest

import tandem

NUM_REQUESTS = 32
MODEL = tandem.make_tiny_model("nine.gguf", num_heads=9, num_kv_heads=3)


# The ways to sample: every other request is greedy, the rest take them in turn.
WAYS = [
    {"top_k": 50},
    {},
    {"top_p": 0.8},
    {"min_p": 0.4, "logprobs": -1, "prompt_logprobs": -1},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.01, "repetition_penalty": 1.3},
    {"allowed_token_ids": list(range(3, 250, 7)), "top_p": 0.9},
    {"logit_bias": {"40": 3, "190": 4}, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 2, "top_p": 0.99},
]


def requests(num_requests, num_prompt, max_tokens):
    """Half of them greedy, half of them drawn; some share the beginnings of their prompts."""
    num_prompt, max_tokens = tandem.reduced(num_prompt, 2), tandem.reduced(max_tokens, 2)
    return [{
        "prompt_token_ids": [30 + t if t < 40 and i % 4 == 0 else 20 + (i * 13 + t * 7) % 200
                             for t in range(1 + i * 37 % num_prompt)],
        "max_tokens": max_tokens + i % 5,
        "ignore_eos": True,
        "logprobs": 2,
        "temperature": 0.9 if i % 2 else 0,
        "seed": 1000 + i,
        **(WAYS[i // 2 % len(WAYS)] if i % 2 else {"prompt_logprobs": 3} if i % 3 == 0 else {}),
    } for i in range(num_requests)]


class OneAnswer(unittest.TestCase):
    def ask(self, model, path, *options):
        """The lines of the answers, in order of the requests."""
        rc, out, err = tandem.run("generate", "--model", model, "--requests", path, "--json",
                                  "--max-logprobs", -1, *options, timeout=300)
        self.assertEqual(rc, 0, err)
        return sorted(out.splitlines(), key=lambda line: int(line.split(",")[0].split(":")[1]))

    def compare(self, model, path, rows, *options):
        alone = self.ask(model, path, "--max-num-seqs", 1, "--no-async-scheduling",
                         "--no-enable-prefix-caching", *options)
        self.assertGreater(len(set(alone)), 1)
        for row in rows:
            with self.subTest(row=row, options=options):
                self.assertEqual(self.ask(model, path, *row.split(), *options), alone)
        return alone

    def test_ranks_and_steps_do_not_change_an_answer(self):
        rows = [f"--tp {tp} --max-num-seqs {min(tokens, 32)} --max-num-batched-tokens {tokens}"
                for tp in (1, 2, 3, 4, 5) for tokens in (7, 64, 512)]
        rows += ["--executor multiproc", "--executor multiproc --max-num-seqs 1",
                 "--tp 3 --max-num-seqs 1", "--tp 2 --no-async-scheduling",
                 "--tp 2 --num-gpu-blocks-override 12 --max-num-seqs 16"]
        self.compare(MODEL, tandem.write_lines("tiny.jsonl", requests(NUM_REQUESTS, 90, 6)), rows)

    def test_the_type_of_the_kv_cache_is_all_that_changes_one(self):
        """Prompts in chunks, prefix hits, preemption and ranks that share KV heads."""
        rows = ["--max-num-batched-tokens 64 --max-num-seqs 32", "--max-num-batched-tokens 7 --max-num-seqs 7",
                "--tp 2 --max-num-batched-tokens 64 --max-num-seqs 32",
                "--tp 2 --num-gpu-blocks-override 12 --max-num-seqs 16", "--tp 5 --max-num-seqs 1"]
        path = tandem.write_lines("kv.jsonl", requests(NUM_REQUESTS, 90, 6))
        answers = [self.compare(MODEL, path, rows, "--kv-cache-dtype", word) for word in ("float16", "fp8", "int8")]
        answers.append(self.ask(MODEL, path))
        self.assertEqual(len({tuple(lines) for lines in answers}), 4)
        for word, lines in (("fp8_e4m3", answers[1]), ("int8_per_token_head", answers[2]), ("bfloat16", answers[3])):
            self.assertEqual(self.ask(MODEL, path, "--kv-cache-dtype", word), lines)

    @unittest.skipUnless(os.environ.get("TANDEM_TEST_MODELS"),
                         "TANDEM_TEST_MODELS names no folder of weights")
    def test_ranks_and_steps_do_not_change_an_answer_of_real_weights(self):
        model = os.path.join(os.environ["TANDEM_TEST_MODELS"], "SmolLM2-135M-Instruct.Q4_1.gguf")
        rows = ["--tp 1 --max-num-seqs 7 --max-num-batched-tokens 7",
                "--tp 3 --max-num-seqs 32 --max-num-batched-tokens 64",
                "--tp 5 --max-num-seqs 32 --max-num-batched-tokens 512"]
        self.compare(model, tandem.write_lines("real.jsonl", requests(6, 24, 3)),
                     [row + " --max-model-len 256" for row in rows])


if __name__ == "__main__":
    unittest.main()
