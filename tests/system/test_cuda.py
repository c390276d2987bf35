"""GPUs: the tokens and logprobs are the CPU's, bit for bit, and what goes wrong is one sentence.

The module that drives them is named by TANDEM_TEST_CUDA_MODULE: without a GPU it is the same source on an emulated one
(tests/cuda), with one it may be build/tandem_cuda.so.
"""
import os
import unittest

import tandem
from test_dummy import GEMMA3, SHAPE, folder
from test_one_answer import MODEL, requests

MODULE = os.environ.get("TANDEM_TEST_CUDA_MODULE")
IS_EMULATED = MODULE is not None and "emulated" in MODULE
CUDA = ["--device", "cuda", "--cuda-module", MODULE or ""]


def plain(request):
    """Without what the host must see the logits for: such steps are drawn on the device."""
    for key in ("logprobs", "prompt_logprobs", "repetition_penalty", "presence_penalty", "frequency_penalty",
                "logit_bias", "allowed_token_ids"):
        request.pop(key, None)
    return request


@unittest.skipUnless(MODULE, "TANDEM_TEST_CUDA_MODULE names no module")
class Cuda(unittest.TestCase):
    def ask(self, model, path, *options):
        rc, out, err = tandem.run("generate", "--model", model, "--requests", path, "--json", "--max-logprobs", -1,
                                  *options, timeout=500)
        self.assertEqual(rc, 0, err)
        return sorted(out.splitlines(), key=lambda line: int(line.split(",")[0].split(":")[1]))

    def compare(self, model, path, rows, *options):
        cpu = self.ask(model, path, *options)
        self.assertGreater(len(set(cpu)), 1)
        for row in rows:
            with self.subTest(row=row):
                self.assertEqual(self.ask(model, path, *options, *CUDA, *row.split()), cpu)

    def test_answers_are_those_of_the_cpu(self):
        path = tandem.write_lines("cuda.jsonl", requests(16, 50, 5))
        self.compare(MODEL, path, ["", "--max-num-batched-tokens 7 --max-num-seqs 7", "--no-async-scheduling",
                                   "--executor multiproc"])

    def test_tokens_that_the_device_draws_are_those_of_the_cpu(self):
        path = tandem.write_lines("cuda-plain.jsonl", [plain(r) for r in requests(24, 40, 12)])
        self.compare(MODEL, path, ["", "--no-async-scheduling", "--max-num-seqs 3",
                                   "--num-gpu-blocks-override 12 --max-num-seqs 8"])

    def test_steps_drawn_on_the_device_and_on_the_host_take_turns(self):
        lines = [r if i % 6 == 0 else plain(r) for i, r in enumerate(requests(18, 30, 8))]
        self.compare(MODEL, tandem.write_lines("cuda-mixed.jsonl", lines), ["", "--max-num-seqs 4"])

    def test_ranks_on_gpus_do_not_change_an_answer(self):
        path = tandem.write_lines("cuda-ranks.jsonl", requests(8, 30, 4))
        self.compare(MODEL, path, ["--tp 2", "--tp 3 --max-num-batched-tokens 16 --max-num-seqs 8"])

    def test_weights_of_16_bits_give_one_answer_of_their_own(self):
        """Tensor cores add them up: not as the CPU does, and yet the same for any batch, chunk and number of ranks."""
        path = tandem.write_lines("cuda-half.jsonl", requests(8, 40, 5))
        rows = ("--max-num-seqs 1", "--max-num-batched-tokens 9", "--tp 2", "--tp 2 --max-num-batched-tokens 40")
        for name, shape, kind, some in (("half", SHAPE, "bf16", rows), ("half", SHAPE, "f16", rows[1:3]),
                                        ("half-local", GEMMA3, "bf16", rows[1:3])):
            dummy = ["--load-format", "dummy", "--dummy-type", kind, "--max-model-len", "256", "--max-num-seqs", "8", *CUDA]
            alone = self.ask(folder(name, shape), path, *dummy)
            for row in some:
                with self.subTest(name=name, kind=kind, row=row):
                    self.assertEqual(self.ask(folder(name, shape), path, *dummy, *row.split()), alone)

    def test_a_long_answer_of_16_bit_weights_is_one_too(self):
        """Past a tile of attention, which other blocks of threads then take."""
        path = tandem.write_lines("cuda-long.jsonl", [
            {"prompt_token_ids": [20 + (i + t * 7) % 200 for t in range(length)], "max_tokens": 10,
             "ignore_eos": True, "temperature": 0}
            for i, length in enumerate((506, 90))])
        model = folder("half-long", {**SHAPE, "num_hidden_layers": 1, "max_position_embeddings": 1024})
        dummy = ["--load-format", "dummy", "--dummy-type", "bf16", "--max-num-seqs", "2", "--max-model-len", "600",
                 *CUDA]
        alone = self.ask(model, path, *dummy, "--max-num-seqs", "1", "--no-async-scheduling")
        for row in ("--max-num-batched-tokens 150", "--tp 2"):
            with self.subTest(row=row):
                self.assertEqual(self.ask(model, path, *dummy, *row.split()), alone)

    @unittest.skipUnless(os.environ.get("TANDEM_TEST_MODELS"), "TANDEM_TEST_MODELS names no folder of weights")
    def test_real_weights_give_the_answers_of_the_cpu(self):
        for name in ("SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"):
            model = os.path.join(os.environ["TANDEM_TEST_MODELS"], name)
            path = tandem.write_lines("cuda-real.jsonl", requests(3, 20, 2))
            self.compare(model, path, ["--max-model-len 256"], "--max-num-seqs", 8)

    def refuse(self, code, words, *options, **environment):
        rc, out, err = tandem.run("generate", "--model", MODEL, "--prompt", "a", "--max-tokens", "2", *options,
                                  env={**os.environ, **environment})
        self.assertEqual(rc, code, err)
        for word in words:
            self.assertIn(word, err)
        return out, err

    def test_no_module_is_a_sentence(self):
        self.refuse(1, ["tandem_cuda.so", "/nowhere/x.so"], "--device", "cuda", "--cuda-module", "/nowhere/x.so")

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_a_machine_that_can_not_is_told_so_in_a_sentence(self):
        for fault, word in (("no_device", "no GPU"), ("no_driver", "driver"), ("old_driver", "driver"),
                            ("no_memory:1000", "memory")):
            with self.subTest(fault=fault):
                self.refuse(1, [word], *CUDA, EMULATED_CUDA_FAULT=fault)

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_auto_goes_on_with_the_cpu_and_says_so(self):
        _, err = self.refuse(0, ["the CPU is used"], "--device", "auto", "--cuda-module", MODULE,
                             EMULATED_CUDA_FAULT="no_device")

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_a_kernel_that_fails_ends_the_step_with_its_name(self):
        self.refuse(1, ["illegal memory access"], *CUDA, "--max-tokens", "100", "--ignore-eos",
                    "--max-restarts", "0", EMULATED_CUDA_FAULT="launch:300")


if __name__ == "__main__":
    unittest.main()
