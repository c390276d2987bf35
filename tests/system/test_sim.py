"""The whole program on a device that only takes time: many ranks, one answer, honest figures."""
import json
import os
import time
import unittest

import tandem

SHAPE = {"name": "small", "weight_type": "BF16", "num_layers": 2, "hidden_size": 256,
         "intermediate_size": 1024, "num_heads": 8, "num_kv_heads": 8, "head_dim": 32,
         "vocab_size": 1000, "max_position": 2048}
DEVICE = {"memory_gb": 10, "memory_gb_per_s": 0, "tflops": 0, "kernel_overhead_us": 0,
          "link_latency_us": 0, "link_gb_per_s": 0}


def sim_file(name, tp=1, **device):
    return tandem.write(name, json.dumps({"device": {**DEVICE, **device}, "model": SHAPE, "tp": tp}))


FREE = sim_file("free.json")
REQUESTS = tandem.write_lines("requests.jsonl", [
    {"prompt_token_ids": [(i * 7 + t) % 200 for t in range(5 + 11 * i)], "max_tokens": 30 + i,
     "ignore_eos": True, "temperature": 0} for i in range(12)])


def answers(*args, sim=FREE, requests=REQUESTS):
    rc, out, err = tandem.run("generate", "--sim", sim, "--requests", requests, "--json", *args)
    assert rc == 0, err
    lines = sorted((json.loads(line) for line in out.splitlines()), key=lambda line: line["index"])
    assert len(lines) == 12
    return [line["token_ids"] for line in lines], err


class Sim(unittest.TestCase):
    def test_any_number_of_ranks_gives_one_answer_sync_and_async(self):
        alone, _ = answers()
        self.assertEqual([len(ids) for ids in alone], [30 + i for i in range(12)])
        self.assertGreater(len({tuple(ids) for ids in alone}), 11)
        for args in (["--no-async-scheduling"], ["--tp", 2], ["--tp", 8, "--no-async-scheduling"],
                     ["--tp", 8], ["--executor", "multiproc"], ["--max-num-batched-tokens", 16],
                     ["--num-gpu-blocks-override", 16, "--max-model-len", 200, "--tp", 3]):
            self.assertEqual(answers(*args)[0], alone, args)

    def test_requests_whose_tokens_meet_go_on_apart(self):
        # One length and one last token: only the prompts' beginnings tell them apart.
        requests = tandem.write_lines("meet.jsonl", [
            {"prompt_token_ids": [i // 2, 9, 9], "max_tokens": 20, "ignore_eos": True,
             "temperature": 0} for i in range(12)])
        ids, _ = answers(requests=requests)
        self.assertEqual(len({tuple(x) for x in ids}), 6)
        self.assertEqual(ids[0::2], ids[1::2])
        self.assertGreater(len({x[0] for x in ids}), 3)

    def test_the_file_says_how_many_ranks_there_are(self):
        self.assertIn("ranks:       4,", answers(sim=sim_file("four.json", tp=4))[1])

    def test_a_step_takes_as_long_as_the_file_says(self):
        # 2 layers launch 9 kernels each, and the rest a few: at least 2 * 9 * 1 ms a step
        start = time.monotonic()
        rc, out, err = tandem.run("generate", "--sim", sim_file("slow.json", kernel_overhead_us=1000),
                                  "--prompt", "hi", "--max-tokens", 10, "--ignore-eos", "--json")
        self.assertEqual(rc, 0, err)
        self.assertGreater(time.monotonic() - start, 10 * 0.018)
        self.assertEqual(json.loads(out)["prompt_token_ids"], [ord("h"), ord("i")])

    def test_a_model_beside_it_lends_its_words_and_its_template(self):
        model = tandem.make_tiny_model()
        ask = ["--prompt", "hello", "--max-tokens", 40, "--ignore-eos", "--json"]
        _, out, _ = tandem.run("generate", "--model", model, *ask)
        real = json.loads(out)
        for args in (["--tp", 1], ["--tp", 2]):
            rc, out, err = tandem.run("generate", "--sim", FREE, "--model", model, *ask, *args)
            self.assertEqual(rc, 0, err)
            answer = json.loads(out)
            self.assertEqual(answer["prompt_token_ids"], real["prompt_token_ids"])
            self.assertEqual(len(answer["token_ids"]), 40)
            self.assertLess(max(answer["token_ids"]), 300)  # words; there are logits for 1000
        rc, out, err = tandem.run("generate", "--sim", FREE, "--model", model, "--chat", *ask)
        self.assertEqual(rc, 0, err)
        self.assertGreater(len(json.loads(out)["prompt_token_ids"]), len(real["prompt_token_ids"]))

    def test_what_does_not_fit_is_refused(self):
        model = tandem.make_tiny_model()
        narrow = tandem.write("narrow.json", json.dumps(
            {"device": DEVICE, "model": {**SHAPE, "vocab_size": 257}, "tp": 1}))
        for args, words in ((["--sim", FREE, "--tp", 16], "at most 8"),
                            (["--sim", FREE, "--model", "x.gguf"], "x.gguf: No such file"),
                            (["--sim", narrow, "--model", model], "there are logits for 257"),
                            (["--sim", FREE, "--model", FREE], "a model file, not a description"),
                            (["--model", FREE], "give it to --sim")):
            rc, _, err = tandem.run("generate", "--prompt", "x", *args)
            self.assertNotEqual(rc, 0)
            self.assertIn(words, err)
        rc, _, err = tandem.run("generate", "--sim", tandem.write("bad.json", "{\"device\": 1}"),
                                "--prompt", "x")
        self.assertEqual(rc, 1)
        self.assertIn("bad.json: \"device\" is missing", err)

    def test_a_cache_larger_than_the_device_is_refused(self):
        rc, _, err = tandem.run("generate", "--sim", sim_file("tiny.json", memory_gb=0.1),
                                "--prompt", "x", "--num-gpu-blocks-override", 100000)
        self.assertEqual(rc, 1)
        self.assertIn("lower --num-gpu-blocks-override", err)


class Bench(unittest.TestCase):
    def figures(self, *args):
        rc, out, err = tandem.run("bench", *args, "--json")
        self.assertEqual(rc, 0, err)
        return json.loads(out)

    def test_overlap_tells_what_the_device_waited(self):
        sim = sim_file("steps.json", kernel_overhead_us=20)
        for args in ([], ["--no-async-scheduling"], ["--structured", 0.5],
                     ["--structured", 1, "--executor", "multiproc"]):
            figures = self.figures("overlap", "--sim", sim, "--running", 6, "--steps", 30, *args)
            self.assertEqual(list(figures), ["step_ms", "idle_pct", "idle_us_p50", "idle_us_p99",
                                             "tokens_per_s", "device_tokens_per_s"])
            self.assertGreater(figures["step_ms"], 2 * 9 * 0.02)
            self.assertLessEqual(figures["idle_us_p50"], figures["idle_us_p99"])
            self.assertLess(figures["tokens_per_s"], 1.05 * figures["device_tokens_per_s"])

    def test_load_counts_what_clients_got(self):
        for args in ([], ["--http"], ["--executor", "uniproc", "--no-async-scheduling"]):
            figures = self.figures("load", "--sim", FREE, "--clients", 5, "--tokens", 20,
                                   "--seconds", 1, *args)
            self.assertAlmostEqual(figures["tokens_per_s"] / figures["requests_per_s"], 20, delta=0.2)

    def test_what_is_missing_is_said(self):
        for args, words in ((["overlap"], "--sim is missing"),
                            (["load"], "say what is to run: --model FILE, or --sim FILE"),
                            (["overlap", "--sim", FREE, "--steps", 4000], "before all steps")):
            rc, _, err = tandem.run("bench", *args)
            self.assertNotEqual(rc, 0)
            self.assertIn(words, err)


if __name__ == "__main__":
    unittest.main()
