"""Weights that are random: any shape runs, and its answers are one on any number of ranks."""
import json
import os
import unittest

import tandem

SHAPE = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 256,
         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
         "vocab_size": 1000, "max_position_embeddings": 512}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
          "original_max_position_embeddings": 64}
GEMMA3 = {**SHAPE, "architectures": ["Gemma3ForCausalLM"], "sliding_window": 16,
          "sliding_window_pattern": 2, "query_pre_attn_scalar": 32}
SHAPES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "shapes")


def folder(name, shape):
    os.makedirs(tandem.path(name), exist_ok=True)
    tandem.write(f"{name}/config.json", json.dumps(shape))
    return tandem.path(name)


REQUESTS = tandem.write_lines("requests.jsonl", [
    {"prompt_token_ids": [(i * 7 + t) % 200 for t in range(5 + 11 * i)], "max_tokens": 20,
     "ignore_eos": True, "temperature": i % 2, "seed": i} for i in range(8)])


class Dummy(unittest.TestCase):
    def answers(self, model, *args):
        rc, out, err = tandem.run("generate", "--load-format", "dummy", "--model", model,
                                  "--requests", REQUESTS, "--json", *args)
        self.assertEqual(rc, 0, err)
        lines = sorted((json.loads(line) for line in out.splitlines()), key=lambda line: line["index"])
        return [line["token_ids"] for line in lines]

    def test_every_architecture_has_one_answer_on_any_number_of_ranks(self):
        for name, shape, args in (
                ("llama", {**SHAPE, "rope_scaling": LLAMA3}, []),
                ("llama", {**SHAPE, "rope_scaling": LLAMA3}, ["--dummy-type", "q4_0"]),
                ("qwen2", {**SHAPE, "architectures": ["Qwen2ForCausalLM"]}, []),
                ("qwen3", {**SHAPE, "architectures": ["Qwen3ForCausalLM"]}, ["--dummy-type", "q8_0"]),
                ("qwen3", {**SHAPE, "architectures": ["Qwen3ForCausalLM"]}, ["--dummy-type", "f8_e4m3"]),
                ("gemma3", GEMMA3, ["--dummy-type", "f32"])):
            with self.subTest(name=name, args=args):
                model = folder(name, shape)
                alone = self.answers(model, *args)
                self.assertEqual([len(ids) for ids in alone], [20] * 8)
                self.assertEqual(len({tuple(ids) for ids in alone}), 8)
                self.assertEqual(self.answers(os.path.join(model, "config.json"), "--tp", 2, *args), alone)
                self.assertEqual(self.answers(model, "--executor", "multiproc", *args), alone)

    def test_a_seed_and_a_type_make_other_weights(self):
        model = folder("llama", SHAPE)
        answers = [self.answers(model, *args)
                   for args in ([], ["--dummy-seed", 1], ["--dummy-type", "q8_0"])]
        self.assertEqual(len({json.dumps(answer) for answer in answers}), 3)
        self.assertEqual(self.answers(model, "--dummy-seed", 1), answers[1])

    def test_bench_model_measures_it(self):
        rc, out, err = tandem.run("bench", "model", "--model", folder("llama", SHAPE), "--load-format", "dummy",
                                  "--dummy-type", "q8_0", "--prefill", 16, "--decode", 4, "--rounds", 1,
                                  "--json", timeout=120)
        self.assertEqual(rc, 0, err)
        self.assertGreater(json.loads(out)["decode_tok_s"], 0)

    def test_what_does_not_fit_is_refused(self):
        model = folder("llama", SHAPE)
        sim = os.path.join(SHAPES, "..", "..", "..", "kernels", "sim", "h100-llama-3.1-8b.json")
        for args, words in (
                (["--model", model], "llama: has no model.safetensors and no model.safetensors.index.json"),
                (["--load-format", "dummy"], "--model FILE is missing"),
                (["--load-format", "dummy", "--sim", sim], "--load-format dummy is for --model alone"),
                (["--load-format", "dumy", "--model", model], "must be one of auto safetensors dummy"),
                (["--load-format", "dummy", "--dummy-type", "q9", "--model", model], "must be one of f32"),
                (["--load-format", "dummy", "--dummy-type", "q4_k", "--model", model],
                 "llama/config.json: token_embd.weight has 64 columns; Q4_K has blocks of 256"),
                (["--load-format", "dummy", "--model", folder("wide", {**SHAPE, "hidden_size": 1 << 40})],
                 "wide/config.json: hidden_size is 1099511627776; a whole number from 32 to 131072 is possible"),
                (["--load-format", "dummy", "--model", os.path.join(SHAPES, "none.json")], "No such file"),
                (["--load-format", "dummy", "--model", model, "--tp", 16], "at most 4 ranks")):
            with self.subTest(args=args):
                rc, _, err = tandem.run("generate", "--prompt", "x", *args)
                self.assertNotEqual(rc, 0)
                self.assertIn(words, err)


if __name__ == "__main__":
    unittest.main()
