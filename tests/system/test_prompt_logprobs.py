"""How likely a prompt was: prompt_logprobs, and OpenAI's echo with logprobs.

A model that is given its own answer as a prompt says of each token what it said when it drew it, to the
bit. With real weights (TANDEM_TEST_MODELS) the logprobs are those of an independent implementation.
"""
import json
import math
import os
import unittest

import tandem

MODEL = tandem.make_tiny_model()


def ask(requests, *args, model=MODEL):
    rc, out, err = tandem.run("generate", "--model", model, "--requests",
                              tandem.write_lines("requests.jsonl", requests), "--json", *args,
                              timeout=300)
    assert rc == 0, (rc, out, err)
    return sorted((json.loads(line) for line in out.splitlines()),
                  key=lambda line: (line["index"], line.get("sample", 0)))


def token_of(entry):
    return {"token_id": entry["token_id"], "logprob": entry["logprob"], "top": entry["top"]}


class PromptLogprobs(unittest.TestCase):
    def test_an_answer_as_a_prompt_has_the_logprobs_it_was_drawn_with(self):
        drawn = ask([{"prompt": "hello", "max_tokens": 100, "seed": 3, "logprobs": 4,
                      "ignore_eos": True}])[0]
        ids = drawn["prompt_token_ids"] + drawn["token_ids"]
        for options in ("", "--max-num-batched-tokens 16 --max-num-seqs 3", "--tp 3"):
            with self.subTest(options=options):
                scored = ask([{"prompt_token_ids": ids, "max_tokens": 1, "prompt_logprobs": 4}],
                             *options.split())[0]["prompt_logprobs"]
                self.assertIsNone(scored[0])
                self.assertEqual([token_of(entry) for entry in scored[-100:]], drawn["logprobs"])

    def test_a_cached_prefix_changes_nothing(self):
        prompt = [20 + i * 7 % 200 for i in range(150)]
        request = {"prompt_token_ids": prompt, "max_tokens": 2, "temperature": 0}
        got = ask([request, {**request, "prompt_logprobs": 1}, request,
                   {**request, "prompt_logprobs": 1}], "--max-num-seqs", 1)
        self.assertEqual(got[1]["prompt_logprobs"], got[3]["prompt_logprobs"])
        self.assertEqual(len(got[1]["prompt_logprobs"]), 150)
        self.assertEqual(len({str(line["token_ids"]) for line in got}), 1)

    def test_every_sample_has_its_prompts(self):
        got = ask([{"prompt": "hello", "n": 3, "seed": 1, "max_tokens": 4, "prompt_logprobs": 0}])
        self.assertEqual(len(got), 3)
        self.assertEqual(len({json.dumps(line["prompt_logprobs"]) for line in got}), 1)
        self.assertEqual([len(entry["top"]) for entry in got[0]["prompt_logprobs"][1:]],
                         [0] * (len(got[0]["prompt_token_ids"]) - 1))

    def test_an_echo_of_nothing_generates_nothing(self):
        got = ask([{"prompt": "hello", "echo": True, "max_tokens": 0, "logprobs": 1}])[0]
        self.assertEqual((got["text"], got["token_ids"], got["finish_reason"]),
                         ("hello", [], "length"))
        self.assertEqual(len(got["prompt_logprobs"]), len(got["prompt_token_ids"]))

    def test_more_than_a_step_can_tell_are_refused(self):
        rc, out, _ = tandem.run(
            "generate", "--model", tandem.make_tiny_model("long.gguf", max_position=32768),
            "--requests", tandem.write_lines("long.jsonl", [
                {"prompt_token_ids": [40] * 32000, "max_tokens": 1, "prompt_logprobs": -1}]),
            "--json", "--max-logprobs", -1, "--max-model-len", 32768)
        self.assertEqual(rc, 1)
        self.assertRegex(json.loads(out)["error"]["message"],
                         r"^prompt_logprobs of \d+ for 32000 prompt tokens are \d+ logprobs; "
                         r"4194304 are the most\.$")

    @unittest.skipUnless(os.environ.get("TANDEM_TEST_MODELS"),
                         "TANDEM_TEST_MODELS names no folder of weights")
    def test_real_models_score_a_text_as_the_reference_does(self):
        data = os.path.join(os.path.dirname(__file__), "..", "data", "model")
        for name, weights in (("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                              ("gemma3", "gemma-3-270m-q4_k_m.gguf")):
            with self.subTest(model=name), open(f"{data}/{name}_reference.json") as f:
                text = json.load(f)["text"]
                model = os.path.join(os.environ["TANDEM_TEST_MODELS"], weights)
                got = ask([{"prompt_token_ids": text["ids"], "max_tokens": 1,
                            "prompt_logprobs": 0}], model=model)[0]["prompt_logprobs"][1:]
                self.assertEqual([entry["token_id"] for entry in got], text["ids"][1:])
                differences = [abs(entry["logprob"] - wanted)
                               for entry, wanted in zip(got, text["logprobs"])]
                perplexity = math.exp(-sum(entry["logprob"] for entry in got) / len(got))
                self.assertLess(sum(differences) / len(differences), 0.1)
                self.assertLess(max(differences), 1)
                self.assertLess(abs(perplexity / text["perplexity"] - 1), 0.01)

    @unittest.skipUnless(os.environ.get("TANDEM_TEST_MODELS"),
                         "TANDEM_TEST_MODELS names no folder of weights")
    def test_ranks_and_chunks_do_not_change_a_real_score(self):
        model = os.path.join(os.environ["TANDEM_TEST_MODELS"], "SmolLM2-135M-Instruct.Q4_1.gguf")
        ids = [20 + i * 131 % 49000 for i in range(200)]
        rows = ["", "--max-num-batched-tokens 37 --max-num-seqs 5", "--tp 2",
                "--tp 3 --max-num-batched-tokens 64 --max-num-seqs 1"]
        got = [ask([{"prompt_token_ids": ids, "max_tokens": 1, "prompt_logprobs": 5}], *row.split(),
                   model=model)[0]["prompt_logprobs"] for row in rows]
        for row, scores in zip(rows, got):
            self.assertEqual(scores, got[0], row)


if __name__ == "__main__":
    unittest.main()
