"""GPUs: the tokens and logprobs are the CPU's, bit for bit, and what goes wrong is one sentence.

The module that drives them is named by TANDEM_TEST_CUDA_MODULE: without a GPU it is the same source on an emulated one
(tests/cuda), with one it may be build/tandem_cuda.so.
"""
import itertools
import json
import os
import signal
import subprocess
import time
import unittest
import unittest.mock

import folders
import ranks
import tandem
from server import Server, children_of, wait_for
from test_control import Controlled
from test_dummy import GEMMA3, SHAPE, folder
from test_one_answer import MODEL, requests

MODULE = os.environ.get("TANDEM_TEST_CUDA_MODULE")
IS_EMULATED = MODULE is not None and "emulated" in MODULE
CUDA = ["--device", "cuda", "--cuda-module", MODULE or ""]
LIBRARY = os.environ.get("TANDEM_TEST_NCCL")  # emulated; else the machine's own, if it has one
LT_LIBRARY = os.environ.get("TANDEM_TEST_CUBLASLT")  # likewise
CUBLASLT = ["--batch-invariant", "off"] + (["--cublaslt-library", LT_LIBRARY] if LT_LIBRARY else [])
NCCL = ["--tp", "2", "--device-comm", "nccl"] + (["--nccl-library", LIBRARY] if LIBRARY else [])


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
        self.compare(MODEL, path, ["", "--max-num-batched-tokens 7 --max-num-seqs 7",
                                   "--executor multiproc --no-async-scheduling"])

    def test_tokens_that_the_device_draws_are_those_of_the_cpu(self):
        path = tandem.write_lines("cuda-plain.jsonl", [plain(r) for r in requests(16, 40, 8)])
        self.compare(MODEL, path, ["--no-async-scheduling --max-num-seqs 3",
                                   "--num-gpu-blocks-override 12 --max-num-seqs 8", "--tp 3"])

    def test_steps_drawn_on_the_device_and_on_the_host_take_turns(self):
        lines = [r if i % 6 == 0 else plain(r) for i, r in enumerate(requests(18, 30, 8))]
        self.compare(MODEL, tandem.write_lines("cuda-mixed.jsonl", lines), ["--max-num-seqs 4", "--tp 2"])

    def test_ranks_on_gpus_do_not_change_an_answer(self):
        path = tandem.write_lines("cuda-ranks.jsonl", requests(8, 30, 4))
        self.compare(MODEL, path, ["--tp 2", "--tp 3 --max-num-batched-tokens 16 --max-num-seqs 8",
                                   "--tp 4 --max-num-seqs 5 --enforce-eager"])

    def test_steps_that_only_decode_are_recorded_before_the_first_and_replayed(self):
        """Steps are of one row and of four. MODEL has no more than 256 positions."""
        rows = [(["--tp", "1"], True), (["--tp", "2"], True), (["--tp", "1", "--enforce-eager"], False),
                (["--tp", "2", "--device-comm", "host"], False)]
        if LIBRARY:
            rows += [(NCCL, True), ([*NCCL, "--enforce-eager"], False)]
        for options, are_recorded in rows:
            with self.subTest(options=options), \
                 Server("--max-num-seqs", "4", *CUDA, *options, model_file=MODEL) as server:
                def count(what, **labels):
                    return server.metric(f"tandem:{what}_total", **labels)

                for n in (1, 4):
                    server.complete(n=n, max_tokens=20, temperature=1, ignore_eos=True)
                for rank in range(int(options[1])):
                    wait_for("passes", lambda r=rank: sum(count("passes", rank=r, how=how)
                                                          for how in ("replayed", "launched")) > 35)
                    self.assertEqual(count("recorded_passes", rank=rank, when="start"), 3 if are_recorded else 0)
                    self.assertEqual(count("recorded_passes", rank=rank, when="step"), 0)
                    if are_recorded:
                        self.assertGreater(count("passes", rank=rank, how="replayed"), 30)
                    else:
                        self.assertEqual(count("passes", rank=rank, how="replayed"), 0)

    @unittest.skipUnless(LIBRARY, "TANDEM_TEST_NCCL names no NCCL, and two GPUs there may not be")
    def test_however_ranks_add_up_an_answer_is_the_same(self):
        path = tandem.write_lines("cuda-nccl.jsonl", requests(8, 30, 4))
        row = " ".join(NCCL)
        self.compare(MODEL, path, [row, row + " --max-num-batched-tokens 16 --max-num-seqs 8 --no-async-scheduling",
                                   "--tp 2 --device-comm host"])
        path = tandem.write_lines("cuda-nccl-plain.jsonl", [plain(r) for r in requests(16, 40, 8)])
        with unittest.mock.patch.dict(os.environ, EMULATED_CUDA_DEVICES="3"):
            self.compare(MODEL, path, [row + " --max-num-seqs 5", row + " --no-async-scheduling", row + " --tp 3"])

    @unittest.skipUnless(LIBRARY, "TANDEM_TEST_NCCL names no NCCL, and two GPUs there may not be")
    def test_ranks_that_add_up_by_nccl_draw_together_and_replay(self):
        """What NCCL did tells: steps of one row that decode are replays, and each puts logits together, twice told."""
        def count(**params):
            counts = tandem.path("nccl-counts.txt")
            open(counts, "w").close()
            path = tandem.write_lines("cuda-counted.jsonl", [
                {"prompt": "hello", "max_tokens": 30, "ignore_eos": True, **params}])
            with unittest.mock.patch.dict(os.environ, EMULATED_NCCL_COUNTS=counts):
                self.ask(MODEL, path, *CUDA, *NCCL)
            with open(counts) as file:
                return sorted(tuple(map(int, line.split())) for line in file)

        first, second = count(), count(repetition_penalty=1.1)
        for (rank, sums, gathers, replays), drawn_by_hosts, number in zip(first, second, (0, 1)):
            self.assertEqual((rank, drawn_by_hosts[0]), (number, number))
            self.assertEqual(sums, drawn_by_hosts[1])
            self.assertEqual(gathers - drawn_by_hosts[2], 2 * 30)
            self.assertEqual(replays, drawn_by_hosts[3])
            self.assertGreaterEqual(replays, 29 * 2)  # and all of them sums
            self.assertEqual(replays % 29, 0)

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_what_one_rank_can_not_record_all_launch(self):
        path = tandem.write_lines("cuda-one-eager.jsonl", [plain(r) for r in requests(4, 20, 2)])
        cpu = self.ask(MODEL, path, "--max-num-seqs", "4")
        for way in [["--tp", "2"]] + ([NCCL] if LIBRARY else []):
            with self.subTest(way=way), unittest.mock.patch.dict(os.environ, EMULATED_CUDA_FAULT="no_graph:1@1"):
                options = [*CUDA, *way, "--max-num-seqs", "4"]
                self.assertEqual(self.ask(MODEL, path, *options), cpu)
                _, _, err = tandem.run("generate", "--model", MODEL, "--requests", path, *options)
                for why in "another rank has failed", "recording launches .* memory|out of memory":
                    self.assertRegex(err, f"no more passes are recorded, as one of 2 rows .* could not be: .*({why})")

    def test_a_kv_cache_of_8_bits_gives_the_answers_of_the_cpu(self):
        path = tandem.write_lines("cuda-codes.jsonl", requests(8, 50, 4))
        for kind in ("fp8", "int8"):
            self.compare(MODEL, path, ["--tp 2 --max-num-batched-tokens 16"], "--kv-cache-dtype", kind)

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_what_can_not_be_recorded_is_launched(self):
        path = tandem.write_lines("cuda-eager.jsonl", [plain(r) for r in requests(4, 20, 2)])
        module = ["--max-num-seqs", "4", *CUDA]
        with unittest.mock.patch.dict(os.environ, EMULATED_CUDA_FAULT="no_graph:2"):
            answers = self.ask(MODEL, path, *module, "--tp", "2")
            rc, _, err = tandem.run("generate", "--model", MODEL, "--requests", path, *module)
        self.assertEqual(rc, 0, err)
        self.assertRegex(err, "no more passes are recorded, as one of 4 rows up to position 255 could not .*memory")
        self.assertEqual(answers, self.ask(MODEL, path, "--max-num-seqs", "4"))

    def test_weights_of_16_bits_give_one_answer_of_their_own(self):
        """Tensor cores add them up: not as the CPU does, and yet the same for any batch, chunk and number of ranks."""
        path = tandem.write_lines("cuda-half.jsonl", requests(8, 24, 4))
        rows = ("--max-num-seqs 1", "--tp 2", "--tp 2 --max-num-batched-tokens 9")
        for name, shape, kind, cache, some in (("half", SHAPE, "bf16", "auto", rows),
                                               ("half", SHAPE, "f16", "auto", rows[2:]),
                                               ("half", SHAPE, "f8_e4m3", "auto", rows[2:]),
                                               ("half-local", GEMMA3, "bf16", "auto", rows[2:]),
                                               ("half", SHAPE, "bf16", "fp8", rows[2:]),
                                               ("half-local", GEMMA3, "bf16", "int8", rows[2:])):
            dummy = ["--load-format", "dummy", "--dummy-type", kind, "--max-model-len", "256", "--max-num-seqs", "8",
                     "--kv-cache-dtype", cache, *CUDA]
            alone = self.ask(folder(name, shape), path, *dummy)
            for row in some:
                with self.subTest(name=name, kind=kind, cache=cache, row=row):
                    self.assertEqual(self.ask(folder(name, shape), path, *dummy, *row.split()), alone)

    def test_biases_are_added_as_on_the_cpu(self):
        path = tandem.write_lines("cuda-biases.jsonl", [
            {"prompt_token_ids": [20 + (i * 31 + t * 7) % 200 for t in range(length)], "max_tokens": 6,
             "ignore_eos": True, "temperature": 0, "logprobs": 1} for i, length in enumerate((30, 1, 9))])
        self.compare(folder("biases", {**SHAPE, "architectures": ["Qwen2ForCausalLM"]}), path, ["", "--tp 2"],
                     "--load-format", "dummy", "--dummy-type", "q8_0", "--max-model-len", "256")

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
        self.assertEqual(self.ask(model, path, *dummy, "--tp", "2", "--max-num-batched-tokens", "150"), alone)

    @unittest.skipUnless(LT_LIBRARY, "TANDEM_TEST_CUBLASLT names no cuBLASLt: on a GPU tokens may well differ")
    def test_cublaslt_gives_the_tokens_of_our_own_kernels(self):
        """Of a model whose likeliest token is so by far; and those it refuses to give, ours give, to the bit."""
        path = tandem.write_lines("cuda-lt.jsonl", [
            {"prompt_token_ids": [20 + (i * 31 + t * 7) % 200 for t in range(length)], "max_tokens": 6,
             "ignore_eos": True, "temperature": 0, "logprobs": 1}
            for i, length in enumerate((60, 9, 33, 1, 24, 12, 3, 5, 2, 7, 4))])

        def tokens(lines):
            return [json.loads(line)["token_ids"] for line in lines]

        for name, shape, kind, row in (("half", SHAPE, "bf16", "--tp 2"),
                                       ("half-local", GEMMA3, "f16", "--max-num-batched-tokens 30")):
            model = folder(name, shape)
            dummy = [*CUDA, "--load-format", "dummy", "--dummy-type", kind, "--max-model-len", "256",
                     "--max-num-seqs", "16"]
            own = self.ask(model, path, *dummy)
            with self.subTest(name=name, kind=kind, row=row):
                other = self.ask(model, path, *dummy, *CUBLASLT, *row.split())
                self.assertEqual(tokens(other), tokens(own))
                self.assertNotEqual(other, own)  # logprobs: or it is not in use
        rc, out, err = tandem.run("generate", "--model", model, "--requests", path, "--json", *dummy, *CUBLASLT,
                                  env={**os.environ, "EMULATED_CUBLASLT_FAULT": "heuristic"})
        self.assertEqual(rc, 0, err)
        self.assertEqual(sorted(out.splitlines()), sorted(own))
        self.assertEqual(err.count("cuBLASLt refuses a matmul"), 1, err)

    def test_weights_of_8_bits_are_the_halves_that_they_stand_for(self):
        """Bit for bit, for any number of ranks and rows: codes where their scales allow it, halves in one layer's v."""
        path = tandem.write_lines("cuda-fp8.jsonl", requests(4, 30, 4))
        for form, rows in (("blocks-that-ranks-cut", ["--tp 2"]), ("tensors", ["", "--tp 3"]),
                           ("channels", ["--tp 2", "--max-num-batched-tokens 8 --max-num-seqs 4"]),
                           ("blocks", ["", "--tp 2", "--tp 3"])):
            folder, expanded = folders.make_fp8(form)
            wanted = self.ask(expanded, path, *CUDA)
            for row in rows:
                with self.subTest(form=form, row=row):
                    self.assertEqual(self.ask(folder, path, *CUDA, *row.split()), wanted)

    def test_weights_of_8_bits_take_a_byte_each(self):
        """So many bytes less than those of BF16, but for scales. On a CPU, and by other blocks, they are BF16."""
        def bytes_of(model, *options):
            with Server("--max-num-seqs", "2", "--enforce-eager", *options, model_file=model) as server:
                return server.metric("tandem:worker_memory_bytes", rank=0, of="weights")

        for form, options, least in (("blocks", CUDA, 0.9), ("channels", CUDA, 0.9), ("tensors", CUDA, 0.9),
                                     ("blocks-that-ranks-cut", CUDA, 0), ("blocks", [], 0)):
            with self.subTest(form=form, options=options):
                folder, expanded = folders.make_fp8(form)
                count = folders.count_codes(folder)
                saved = bytes_of(expanded, *options) - bytes_of(folder, *options)
                self.assertGreater(count, 50000)
                self.assertGreaterEqual(saved, least * count)
                self.assertLessEqual(saved, count if least else 0)

    @unittest.skipUnless(LT_LIBRARY, "TANDEM_TEST_CUBLASLT names no cuBLASLt: a GPU has one capability")
    def test_rows_of_8_bits_cost_little_likelihood(self):
        """By the library's scales, and by our own; none where it has no codes: our own kernels do it then."""
        path = tandem.write_lines("cuda-fp8-lt.jsonl", [
            {"prompt_token_ids": [20 + (i * 37 + t * t * 11) % 200 for t in range(50)], "max_tokens": 1,
             "prompt_logprobs": 0, "temperature": 0} for i in range(3)])

        def mean_of(lines):
            scores = [entry["logprob"] for line in lines for entry in json.loads(line)["prompt_logprobs"][1:]]
            self.assertEqual(len(scores), 3 * 49)
            return sum(scores) / len(scores)

        for form, capability, row, is_rounded in (
                ("channels", "9.0", "", True), ("channels", "8.9", "--tp 2", True),
                ("blocks", "9.0", "--tp 2", True), ("blocks", "8.0", "", False)):
            with self.subTest(form=form, capability=capability), \
                    unittest.mock.patch.dict(os.environ, EMULATED_CUDA_CAPABILITY=capability):
                folder, expanded = folders.make_fp8(form)
                alone = [*CUDA, *CUBLASLT, "--max-num-seqs", "1", "--no-async-scheduling", *row.split()]
                wanted = self.ask(expanded, path, *(alone if is_rounded else [*CUDA, *row.split()]))
                got = self.ask(folder, path, *alone)
                self.assertEqual(got != wanted, is_rounded)
                self.assertLess(abs(mean_of(got) / mean_of(wanted) - 1), 0.003)

    @unittest.skipUnless(LT_LIBRARY, "TANDEM_TEST_CUBLASLT names no cuBLASLt: a GPU has one capability")
    def test_reloaded_weights_of_8_bits_are_multiplied_as_such(self):
        folder, _ = folders.make_fp8("channels")
        with Controlled(*CUDA, *CUBLASLT, model_file=folder, env={"EMULATED_CUDA_CAPABILITY": "9.0"}) as server:
            def scores():
                return server.complete(prompt=list(range(20, 32)), logprobs=1, max_tokens=2)["choices"]

            before = scores()
            self.assertEqual(server.tell("weights", "reload", folder)["version"], 1)
            self.assertEqual(scores(), before)

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
            self.assertRegex(err, word)
        return out, err

    def test_no_module_is_a_sentence(self):
        self.refuse(1, [r"tandem_cuda\.so", "/nowhere/x.so"], "--device", "cuda", "--cuda-module", "/nowhere/x.so")

    def test_no_cublaslt_is_a_sentence(self):
        for device in ("cuda", "auto"):
            out, err = self.refuse(1, ["cuBLASLt is not found: /nowhere/lt.so: .*--cublaslt-library"],
                                   "--device", device, "--cuda-module", MODULE, "--batch-invariant", "off",
                                   "--cublaslt-library", "/nowhere/lt.so")
            self.assertEqual((out, err.count("cuBLASLt")), ("", 1), err)  # before a rank was ready
        self.refuse(1, ["libc.so.6 is no cuBLASLt: it has no cublasLt"], *CUDA, "--batch-invariant", "off",
                    "--cublaslt-library", "libc.so.6")
        self.refuse(0, ["--batch-invariant off changes nothing on a CPU"], "--batch-invariant", "off",
                    TANDEM_CUBLASLT_LIBRARY="/nowhere/lt.so")

    @unittest.skipUnless(LT_LIBRARY, "faults are those of an emulated cuBLASLt")
    def test_a_cublaslt_that_does_not_fit_is_a_sentence(self):
        for fault, words in (("version", "version number 120100, and tandem_cuda.so was built for CUDA 13's"),
                             ("create", "does not start on GPU 0 .*not initialized")):
            with self.subTest(fault=fault):
                self.refuse(1, [words], *CUDA, *CUBLASLT, EMULATED_CUBLASLT_FAULT=fault)

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_a_machine_that_can_not_is_told_so_in_a_sentence(self):
        for fault, word in (("no_device", "no GPU"), ("no_driver", "driver"), ("old_driver", "driver"),
                            ("no_memory:1000", "memory")):
            with self.subTest(fault=fault):
                self.refuse(1, [word], *CUDA, EMULATED_CUDA_FAULT=fault)

    @unittest.skipUnless(IS_EMULATED, "a GPU may have more memory")
    def test_memory_of_a_rank_s_gpu_is_told_when_it_starts(self):
        _, err = self.refuse(0, [], *CUDA, "--tp", "2", "--log-level", "info")
        for rank in (0, 1):
            self.assertRegex(err, rf"rank {rank} holds 0\.00 GiB of weights, 0\.\d\d GiB of KV cache and "
                                  r"0\.\d\d GiB of workspaces; 0\.\d\d of the 1\.00 GiB of its GPU are free")

    @unittest.skipUnless(LIBRARY, "how much NCCL takes is emulated, too")
    def test_a_kv_cache_has_what_nccl_leaves(self):
        """Beside NCCL's 100 MiB there is no room for one that 1000 rows could fill, of 0.12 GiB."""
        self.refuse(0, [r"0\.07 GiB of KV cache .* 0\.01 of the 0\.25 GiB of its GPU are free"], *CUDA, *NCCL,
                    "--max-num-seqs", "1000", "--enforce-eager", "--log-level", "info",
                    EMULATED_CUDA_MEMORY=str(260 << 20), EMULATED_NCCL_MEMORY=str(100 << 20))

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_auto_goes_on_with_the_cpu_and_says_so(self):
        _, err = self.refuse(0, ["the CPU is used"], "--device", "auto", "--cuda-module", MODULE,
                             EMULATED_CUDA_FAULT="no_device")

    @unittest.skipUnless(IS_EMULATED, "faults are those of emulated GPUs")
    def test_a_kernel_that_fails_ends_the_step_with_its_name(self):
        self.refuse(1, ["illegal memory access"], *CUDA, "--max-tokens", "100", "--ignore-eos",
                    "--max-restarts", "0", EMULATED_CUDA_FAULT="launch:300")

    def test_nccl_that_can_not_be_is_a_sentence_before_the_first_token(self):
        out, _ = self.refuse(1, ["ranks 0 and 1 share a GPU|NCCL is not found"], *CUDA, *NCCL,
                             EMULATED_CUDA_DEVICES="1", CUDA_VISIBLE_DEVICES="0")
        self.assertEqual(out, "")
        self.refuse(1, ["--device-comm can't be nccl: rank 0: NCCL is not found: /nowhere/nccl.so: "], *CUDA, *NCCL,
                    "--nccl-library", "/nowhere/nccl.so")

    @unittest.skipUnless(LIBRARY, "faults are those of an emulated NCCL")
    def test_what_one_rank_s_nccl_can_not_do_is_told_by_all(self):
        for fault, words in (
                ("version@1", r"rank 0 has NCCL 2\.28\.9 and rank 1 has 2\.28\.8: give all ranks the same"),
                ("init@1", "can't be nccl: rank 1: NCCL: meeting the other ranks: unhandled system error")):
            with self.subTest(fault=fault):
                self.refuse(1, [words], *CUDA, *NCCL, EMULATED_NCCL_FAULT=fault)

    @unittest.skipUnless(LIBRARY, "faults are those of emulated GPUs")
    def test_ranks_take_the_first_way_that_all_can_go(self):
        for library, words in ((LIBRARY, [r"go by NCCL 2\.28\.9"]),
                               ("/nowhere/nccl.so", ["go through their hosts; ipc: .* operation not supported; "
                                                     "nccl: rank 0: NCCL is not found"])):
            with self.subTest(library=library):
                self.refuse(0, words, *CUDA, "--tp", "2", "--nccl-library", library, EMULATED_CUDA_FAULT="no_ipc")
        self.refuse(1, ["can't be ipc: .*operation not supported"], *CUDA, "--tp", "2", "--device-comm", "ipc",
                    EMULATED_CUDA_FAULT="no_ipc")

    @staticmethod
    def spans(path):
        """Of a trace, of each process's threads: (begin, end, name, step), microseconds, in order."""
        with open(path) as file:
            events = json.load(file)["traceEvents"]
        names = {(event["name"], event["pid"], event.get("tid")): event["args"]["name"]
                 for event in events if event["ph"] == "M" and "args" in event}
        spans = {}
        for event in events:
            if event["ph"] == "X":
                key = (names["process_name", event["pid"], 0], names["thread_name", event["pid"], event["tid"]])
                spans.setdefault(key, []).append((event["ts"], event["ts"] + event["dur"], event["name"],
                                                  event["args"]["step"]))
        return {key: sorted(value) for key, value in spans.items()}

    def test_a_trace_has_every_step_of_every_gpu_by_its_own_clock(self):
        """Which is set to another time than the host's. A rank above 0 answers before its GPU is through."""
        doubt_us = 50000  # of one clock about the other, where threads wait for a core
        for row, processes in ([], ["engine"]), (["--tp", "2"], ["worker.0", "worker.1"]):
            path = tandem.path("cuda-trace.json")
            with self.subTest(row=row), Server(*CUDA, *row, "--trace", path, model_file=MODEL) as server:
                server.complete(max_tokens=12, ignore_eos=True)
                answered = time.monotonic()
                time.sleep(0.3)
                asked = time.monotonic()
                server.complete(max_tokens=12, ignore_eos=True)
                server.stop()
                spans = self.spans(path)
                scheduled = {step: begin for begin, _, name, step in spans["engine", "core"] if name == "schedule"}
                collected = {step: end for _, end, name, step in spans["engine", "core"] if name == "collect"}
                for process in processes:
                    device = spans[process, "device"]
                    self.assertEqual([name for _, _, name, _ in device],
                                     ["execute_model", "sample"] * (len(device) // 2))
                    steps = [step for _, _, _, step in device]
                    self.assertEqual(steps[::2], steps[1::2])
                    if process == "worker.1":
                        # Of steps that it has answered and whose end is yet to come it knows two; the last may not have
                        # ended when the trace was written.
                        self.assertEqual(steps[::2], sorted(set(steps)))
                        self.assertGreaterEqual(len(steps), 2 * 12)
                    else:
                        self.assertEqual(steps[::2], list(range(len(device) // 2)))
                        self.assertGreaterEqual(len(steps), 2 * 24)
                    for before, after in zip(device, device[1:]):
                        self.assertLessEqual(before[1], after[0] + 0.002)  # the file has three digits
                    for begin, end, _, step in device:
                        self.assertGreater(begin, scheduled[step] - doubt_us)
                        self.assertLess(end, collected.get(step, float("inf")) + doubt_us)
                rc, out, err = tandem.run("trace", path, "--json")
                self.assertEqual(rc, 0, err)
                report = json.loads(out)
                self.assertEqual([device["process"] for device in report["devices"]], processes)
                for device in report["devices"]:
                    self.assertEqual(device["steps"], len(spans[device["process"], "device"]) // 2)
                    # It stood still between the two requests, at least.
                    self.assertGreater(device["idle_us_max"], (asked - answered) * 1e6 - doubt_us)

    @unittest.skipUnless(IS_EMULATED, "who listens is emulated, too")
    def test_a_profiler_is_told_of_verbs_and_steps(self):
        path = tandem.path("nvtx.txt")
        self.refuse(0, [], *CUDA, "--tp", "2", "--max-tokens", "6", "--ignore-eos", EMULATED_NVTX=path)
        open_ranges, told = {}, {}
        with open(path) as file:
            for line in file:
                pid, tid, what, domain, *range_ = line.split()
                self.assertEqual(domain, "tandem")
                if what == "push":
                    self.assertNotIn(tid, open_ranges)
                    open_ranges[tid] = range_
                    told.setdefault((pid, tid), []).append((range_[0], int(range_[1])))
                else:
                    del open_ranges[tid]
        self.assertEqual(open_ranges, {})
        threads = sorted(told.values())
        device = [(verb, step) for step in range(6) for verb in ("execute_model", "sample")]
        self.assertEqual(threads, [device] * 2 + [[("prepare_inputs", step) for step in range(6)]] * 2)

    @staticmethod
    def rank(engine, number):
        """The process of this rank."""
        for pid in children_of(engine):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
            if b"--rank" in words and words[words.index(b"--rank") + 1] == b"%d" % number:
                return pid
        raise AssertionError(f"no rank {number} of {engine}")

    def disturbed(self, path, kills, options, **environment):
        """What requests are told, of which the first is short. When that is over a rank is killed, and so is each
        that follows in `kills` when the ranks meet again."""
        log = tandem.path("cuda-killed.log")
        words = ["generate", "--model", MODEL, "--requests", path, "--json", "--log-level", "debug", *options]
        with open(log, "wb") as err:
            process = subprocess.Popen([tandem.PROGRAM, *words], stdout=subprocess.PIPE, stderr=err, text=True,
                                       env={**os.environ, **environment})
        self.addCleanup(process.kill)
        with process.stdout, open(log, errors="replace") as err:
            lines, text = [process.stdout.readline()], ""
            for number, rank in enumerate(kills):
                os.kill(self.rank(process.pid, rank), signal.SIGKILL)
                while text.count("2 ranks meet") < number + 2:
                    text += wait_for("another meeting", err.read, 30)
            lines += process.stdout
            process.wait(tandem.within(30))
            text += err.read()
        self.assertEqual(process.returncode, 0, text)
        return {(line := json.loads(answer))["index"]: line["token_ids"] for answer in lines}, text

    @unittest.skipUnless(LIBRARY, "TANDEM_TEST_NCCL names no NCCL, and two GPUs there may not be")
    def test_ranks_of_several_hosts_add_up_by_nccl_or_through_these(self):
        path = tandem.write_lines("cuda-hosts.jsonl", [{"prompt": f"hello {i}", "max_tokens": 20, "seed": i}
                                                       for i in range(4)])
        cpu = ranks.local_answers(path)
        counts = tandem.path("nccl-hosts.txt")
        for way, words in ((["--device-comm", "nccl"], "go by NCCL 2.28.9, which does not encrypt"),
                           ([], "ipc: they are on several hosts; nccl: it does not encrypt between hosts")):
            open(counts, "w").close()
            with self.subTest(way=way), unittest.mock.patch.dict(os.environ, EMULATED_NCCL_COUNTS=counts), \
                 ranks.Job(2, "--comm", "net", *CUDA, "--nccl-library", LIBRARY, *way, requests=path) as job:
                job.ranks = {rank: job.start(rank) for rank in range(2)}
                self.assertEqual(job.answers(), (0, cpu), job.log())
                self.assertIn(words, job.ranks[0].communicate()[1])
                job.ranks[1].wait(tandem.within(30))
                with open(counts) as file:
                    done = [tuple(map(int, line.split())) for line in file]
                self.assertEqual(len(done), 2 if way else 0)
                for _, _, gathers, replays in done:  # tokens are drawn on the devices there, too
                    self.assertGreater(gathers, 2 * 20)
                    self.assertGreater(replays, 0)

    @unittest.skipUnless(LIBRARY, "TANDEM_TEST_NCCL names no NCCL, and three GPUs there may not be")
    def test_of_ranks_that_add_up_the_one_that_hangs_is_named(self):
        """All others are in a replay: by NCCL, each in wait for its next."""
        for way in (NCCL, ["--device-comm", "ipc"]):
            with self.subTest(way=way):
                _, err = self.refuse(0, [r"rank 1 \(process \d+\) hangs in step 12"], *CUDA, *way, "--tp", "3",
                                     "--max-tokens", "20", "--ignore-eos", "--inject-fault",
                                     "step=12,rank=1,kind=hang", EMULATED_CUDA_DEVICES="3")
                self.assertEqual(err.count("is emulated"), 4, err)

    def test_streams_go_on_when_a_rank_is_killed_whose_steps_are_replayed(self):
        ways = [["--tp", "2"]] + ([NCCL] if LIBRARY else [])
        lines = [{"prompt": "hello", "max_tokens": 1, "seed": 9}]
        lines += [{"prompt": "hello", "max_tokens": 40, "ignore_eos": True, "seed": i} for i in range(4)]
        path = tandem.write_lines("cuda-killed-replays.jsonl", lines)
        undisturbed, _ = self.disturbed(path, [], [])
        for rank, way in itertools.product(range(2), ways):
            with self.subTest(rank=rank, way=way):
                answers, err = self.disturbed(path, [rank], [*CUDA, *way, "--max-num-seqs", "8"])
                self.assertEqual(answers, undisturbed)
                self.assertEqual(err.count("is emulated"), 2 + 1)
                self.assertEqual(err.count(" passes are recorded"), 2 + 2)  # anew by the survivor, as well

    @unittest.skipUnless(LIBRARY, "TANDEM_TEST_NCCL names no NCCL, and two GPUs there may not be")
    def test_streams_go_on_when_a_rank_is_killed_beside_nccl(self):
        lines = [{"prompt": "hello", "max_tokens": 1, "seed": 9}]
        lines += [{"prompt": "hello", "max_tokens": 40, "ignore_eos": True, "seed": i} for i in range(4)]
        path = tandem.write_lines("cuda-killed.jsonl", lines)
        undisturbed, _ = self.disturbed(path, [], [])
        # The last, while the ranks meet by NCCL: rank 1, which does not come the second time, is told to give up.
        for kills, fault in ([0], ""), ([1], ""), ([0, 0], "never:2@1"):
            with self.subTest(kills=kills):
                answers, err = self.disturbed(path, kills, [*CUDA, *NCCL], EMULATED_NCCL_FAULT=fault)
                self.assertEqual(answers, undisturbed)
                self.assertEqual(err.count("go by NCCL"), 2)  # the survivor, too, has met anew
                self.assertEqual(err.count("is emulated"), 2 + len(kills))  # and has kept its device


if __name__ == "__main__":
    unittest.main()
