"""tandem generate as a user and a script meet it: answers, refusals, exit status."""
import json
import os
import select
import signal
import struct
import subprocess
import time
import unittest

import folders
import tandem
from plain_model import PlainModel

MODEL = tandem.make_tiny_model()
EXIT_SIGNAL = 128


def generate(*args, stdin=b"", model=MODEL):
    return tandem.run("generate", "--model", model, *args, stdin=stdin)


def answers(requests, *args, status=0):
    """Runs a file of requests; the answers by index."""
    rc, out, err = generate("--requests", tandem.write_lines("requests.jsonl", requests), "--json",
                            *args)
    lines = [json.loads(line) for line in out.splitlines()]
    assert rc == status, (rc, out, err)
    assert sorted({line["index"] for line in lines}) == list(range(len(requests))), out
    return {line["index"]: line for line in lines}


class Prompt(unittest.TestCase):
    def test_a_prompt_is_answered_and_measured(self):
        rc, out, err = generate("--prompt", "hello", "--max-tokens", 8)
        self.assertEqual(rc, 0, err)
        self.assertEqual(len(err.splitlines()), 3, err)
        self.assertIn("ranks:", err)
        self.assertIn("tokens/s", err)
        self.assertIn("first token:", err)
        self.assertEqual((rc, out), generate("--prompt", "hello", "--max-tokens", 8)[:2])

    def test_json_has_the_keys_in_order(self):
        rc, out, err = generate("--prompt", "hello", "--max-tokens", 4, "--json", "--logprobs", 2,
                                "--ignore-eos")
        line = json.loads(out)
        self.assertEqual(rc, 0, err)
        self.assertEqual(list(line), ["index", "prompt_token_ids", "token_ids", "text",
                                      "finish_reason", "logprobs"])
        self.assertEqual(line["finish_reason"], "length")
        self.assertEqual(len(line["token_ids"]), 4)
        for token, entry in zip(line["token_ids"], line["logprobs"]):
            self.assertEqual(list(entry), ["token_id", "logprob", "top"])
            self.assertEqual(entry["token_id"], token)
            self.assertEqual(entry["top"][0], [token, entry["logprob"]])  # greedy: the likeliest
            self.assertEqual(len(entry["top"]), 2)

    def test_logprobs_restore_a_floats_bits(self):
        out = generate("--prompt", "hello", "--max-tokens", 16, "--json", "--logprobs", 3)[1]
        for entry in json.loads(out)["logprobs"]:
            for value in [entry["logprob"]] + [logprob for _, logprob in entry["top"]]:
                exact = struct.unpack("f", struct.pack("f", value))[0]
                self.assertEqual("%.9g" % exact, "%.9g" % value)

    def test_a_chat_goes_through_the_template(self):
        chat = json.loads(generate("--prompt", "hello", "--chat", "--json", "--max-tokens", 1)[1])
        plain = json.loads(generate("--prompt", "hello", "--json", "--max-tokens", 1)[1])
        self.assertGreater(len(chat["prompt_token_ids"]), len(plain["prompt_token_ids"]))

    def test_a_template_of_a_file_comes_first(self):
        template = tandem.write("template.jinja", "{{ messages[0].content }}")
        chat = json.loads(generate("--prompt", "hello", "--chat", "--chat-template", template,
                                   "--json", "--max-tokens", 1)[1])
        plain = json.loads(generate("--prompt", "hello", "--json", "--max-tokens", 1)[1])
        self.assertEqual(chat["prompt_token_ids"], plain["prompt_token_ids"])

    def test_an_answer_has_256_tokens_or_what_fits(self):
        def num_tokens(*args):
            rc, out, err = generate("--json", "--ignore-eos", *args, model=long)
            self.assertEqual(rc, 0, err)
            line = json.loads(out)
            return len(line["prompt_token_ids"]), len(line["token_ids"])

        long = tandem.make_tiny_model("long.gguf", max_position=400)
        self.assertEqual(num_tokens("--prompt", "hello")[1], 256)
        for chat in (), ("--chat",):
            prompt, answer = num_tokens("--prompt", "x" * 300, *chat)
            self.assertLess(answer, 256)
            self.assertEqual(prompt + answer, 400)

    def test_a_closed_stdout_is_told(self):
        done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", tandem.PROGRAM, "generate", "--model", MODEL,
                               "--prompt", "hello", "--max-tokens", "4"], capture_output=True)
        self.assertEqual((done.returncode, done.stderr.decode().splitlines()[-1]),
                         (74, "tandem generate: writing the answers failed: Bad file descriptor"))

    def test_ranks_do_not_change_the_answer(self):
        one = generate("--prompt", "hello", "--json", "--logprobs", 1, "--max-tokens", 16)
        for ranks in (2, 3):
            more = generate("--prompt", "hello", "--json", "--logprobs", 1, "--max-tokens", 16,
                            "--tp", ranks)
            self.assertEqual(one[:2], more[:2], more[2])


class Requests(unittest.TestCase):
    def test_every_line_is_answered(self):
        requests = [{"prompt": "hello", "max_tokens": 1 + i % 5, "temperature": 0}
                    for i in range(40)]
        for index, line in answers(requests, "--ignore-eos").items():
            self.assertEqual(len(line["token_ids"]), 1 + index % 5)

    def test_a_prompt_has_three_forms(self):
        first = answers([{"prompt": "hello", "temperature": 0}])[0]
        got = answers([{"prompt_token_ids": first["prompt_token_ids"], "temperature": 0},
                       {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}])
        self.assertEqual(got[0]["token_ids"], first["token_ids"])
        self.assertLessEqual(len(got[1]["token_ids"]), 2)

    def test_flags_are_defaults(self):
        got = answers([{"prompt": "hello"}, {"prompt": "hello", "max_tokens": 2}],
                      "--max-tokens", 3, "--ignore-eos", "--temperature", 0)
        self.assertEqual([len(got[i]["token_ids"]) for i in (0, 1)], [3, 2])

    def test_several_answers_have_a_line_each(self):
        path = tandem.write_lines("n.jsonl", [{"prompt": "hello", "n": 3, "seed": 1}])
        out = generate("--requests", path, "--json")[1]
        lines = sorted((json.loads(line) for line in out.splitlines()), key=lambda l: l["sample"])
        self.assertEqual([(l["index"], l["sample"]) for l in lines], [(0, 0), (0, 1), (0, 2)])
        alone = answers([{"prompt": "hello", "seed": 3}])[0]  # a sample's seed is seed + sample
        self.assertEqual(alone["token_ids"], lines[2]["token_ids"])

    def test_a_stop_string_ends_the_answer(self):
        whole = answers([{"prompt": "hello", "temperature": 0, "max_tokens": 32,
                          "ignore_eos": True}])[0]
        stop = whole["text"][3:5]
        cut = answers([{"prompt": "hello", "temperature": 0, "max_tokens": 32, "ignore_eos": True,
                        "stop": [stop]}])[0]
        self.assertEqual(cut["finish_reason"], "stop")
        self.assertEqual(cut["text"], whole["text"][:whole["text"].index(stop)])

    def test_a_refused_line_harms_no_other(self):
        rows = [
            ({"prompt": "hello", "max_tokens": 2}, None),
            ("{\"prompt\": \"hello\" \"n\": 1}", "Invalid JSON at line 2, column 22"),
            ({"prompt": "hello", "temprature": 1}, "did you mean `temperature`?"),
            ({"prompt": "hello", "temperature": 9}, "temperature must be in [0, 2], got 9"),
            ({"prompt": [], "max_tokens": 2}, "The decoder prompt cannot be empty"),
            ({"prompt_token_ids": [5] * 300}, "(length 300) is longer than the maximum model "
                                              "length of 256"),
            ({"prompt_token_ids": [999999]}, "Token id 999999 is out of vocabulary"),
            ({"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
             "`tools` is not supported yet"),
            ({"prompt": "hello", "priority": 5}, "Priority scheduling is not enabled"),
            ({"prompt": "hello", "max_tokens": 3}, None),
        ]
        got = answers([request for request, _ in rows], status=1)
        for index, (_, words) in enumerate(rows):
            if words is None:
                self.assertIn("text", got[index])
            else:
                self.assertEqual(list(got[index]), ["index", "error"])
                self.assertIn(words, got[index]["error"]["message"])
                self.assertIn(got[index]["error"]["code"], ("invalid", "unsupported"))

    def test_bytes_that_are_no_utf8_are_refused_with_their_place(self):
        rc, out, _ = generate("--requests", "-", "--json", stdin=b'{"prompt": "\xff"}\n')
        self.assertEqual(rc, 1)
        self.assertIn("line 1, column 13", json.loads(out)["error"]["message"])

    def test_requests_come_by_stdin_and_blank_lines_do_not_count(self):
        rc, out, err = generate("--requests", "-", "--json",
                                stdin=b'\n{"prompt": "a"}\n\n{"prompt": "b"}')
        self.assertEqual(rc, 0, err)
        self.assertEqual(sorted(json.loads(line)["index"] for line in out.splitlines()), [0, 1])

    def test_a_byte_order_mark_does_not_count(self):
        rc, out, err = generate("--requests", "-", "--json", stdin=b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b" 5}\n')
        self.assertEqual(rc, 1, err)
        lines = sorted(map(json.loads, out.splitlines()), key=lambda line: line["index"])
        self.assertIn("text", lines[0])
        self.assertIn("line 2, column", lines[1]["error"]["message"])


class Pipe(unittest.TestCase):
    """Whoever writes requests reads the answer to one before it writes the next."""

    def talk(self, *args, stdin):
        return subprocess.Popen([tandem.PROGRAM, "generate", "--model", MODEL, "--json", "--max-tokens", "2", *args],
                                stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def answer(self, process):
        self.assertTrue(select.select([process.stdout], [], [], tandem.within(20))[0], "no answer")
        return json.loads(process.stdout.readline())

    def converse(self, process, pipe):
        for i in range(3):
            pipe.write(b'{"prompt": "a"}\n')
            self.assertEqual(self.answer(process)["index"], 2 * i)
            for half in b'{"prompt":', b' "b"}\n':
                pipe.write(half)
                time.sleep(0.05)
            self.assertEqual(self.answer(process)["index"], 2 * i + 1)
        pipe.write(b'{"prompt": "c"}')  # the last line needs no newline
        pipe.close()
        self.assertEqual(self.answer(process)["index"], 6)
        self.assertEqual((process.wait(tandem.within(20)), process.stdout.read()), (0, b""))

    def test_a_request_is_answered_while_stdin_stays_open(self):
        read, write = os.pipe()
        with self.talk("--requests", "-", stdin=read) as process, open(write, "wb", buffering=0) as pipe:
            os.close(read)
            self.converse(process, pipe)

    def test_a_fifo_is_a_pipe_too(self):
        fifo = tandem.path("requests.fifo")
        os.mkfifo(fifo)
        with self.talk("--requests", fifo, stdin=subprocess.DEVNULL) as process, open(fifo, "wb", buffering=0) as pipe:
            self.converse(process, pipe)


class BadInput(unittest.TestCase):
    """One sentence on stderr, nothing on stdout, the exit status that says whose fault it is."""

    def refused(self, status, words, *args, model=MODEL):
        rc, out, err = generate(*args, model=model)
        self.assertEqual((rc, out), (status, ""), err)
        self.assertEqual(len(err.splitlines()), 1, err)
        self.assertIn(words, err)

    def test_command_lines(self):
        self.refused(2, "--prompt TEXT or --requests FILE is missing")
        self.refused(2, "cannot both be given", "--prompt", "x", "--requests", "-")
        self.refused(2, "did you mean --max-tokens", "--prompt", "x", "--max-token", "1")
        self.refused(2, "temperature must be in [0, 2]", "--prompt", "x", "--temperature", "5")
        self.refused(2, "max_tokens must be an integer", "--prompt", "x", "--max-tokens", "many")
        self.refused(2, "--prompt is not UTF-8 at byte 1", "--prompt", b"a\xff".decode(
            errors="surrogateescape"))
        self.refused(2, "--max-logprobs -1: ", "--prompt", "x", "--max-logprobs", -1,
                     "--max-num-seqs", 65536, "--max-num-batched-tokens", 65536)
        self.refused(1, "No such file", "--requests", tandem.path("none.jsonl"))
        self.refused(1, "cannot be read: Is a directory", "--requests", tandem.path("."))
        rc, _, err = tandem.run("generate", "--prompt", "x")
        self.assertEqual((rc, err), (2, "tandem generate: --model FILE is missing\n"))

    def test_a_trace_that_cannot_be_written_is_told_before_the_work(self):
        self.refused(74, "--trace /no/such/folder/x: No such file", "--prompt", "x", "--trace",
                     "/no/such/folder/x")

    def test_prompts(self):
        self.refused(1, "cannot be empty", "--prompt", "")
        self.refused(1, "longer than the maximum model length of 256", "--prompt", "x" * 1000)

    def test_model_files(self):
        with open(MODEL, "rb") as f:
            whole = f.read()
        flipped = bytearray(whole)
        flipped[9] ^= 0x40  # in the number of tensors
        for name, data, words in (
                ("cut.gguf", whole[:len(whole) // 2], "cut.gguf"),
                ("flipped.gguf", bytes(flipped), "flipped.gguf"),
                ("swapped.gguf", whole[:4] + whole[4:8][::-1] + whole[8:], "endian"),
                ("empty.gguf", b"", "empty.gguf"),
                ("text.gguf", b"this is no model\n" * 100, "text.gguf")):
            self.refused(1, words, "--prompt", "x", model=tandem.write(name, data))
        self.refused(1, "none.gguf", "--prompt", "x", model=tandem.path("none.gguf"))

    def test_weights_that_are_no_numbers_end_each_request_with_an_error(self):
        with open(MODEL, "rb") as f:
            whole = f.read()
        model = tandem.write("nan.gguf", whole[:-100000] + b"\xff" * 100000)
        requests = [{"prompt": "hello", "presence_penalty": 1}, {"prompt": "x", "temperature": 0},
                    {"prompt": "hello", "logprobs": 2, "top_k": 3}]
        for ranks in 1, 2:
            rc, out, err = generate("--requests", tandem.write_lines("nan.jsonl", requests),
                                    "--json", "--tp", ranks, model=model)
            self.assertEqual((rc, err), (1, ""))
            for line in out.splitlines():
                self.assertIn("logits are not numbers", json.loads(line)["error"]["message"])
            self.assertEqual(len(out.splitlines()), 3)


class Folder(unittest.TestCase):
    """A model as Hugging Face has it, against the file of GGUF with the same values."""
    PROMPTS = [{"prompt": "hello the and 12 \u00e9<|im_end|> x"}, {"prompt": "in the ring  and <eos> more\n"},
               {"messages": [{"role": "user", "content": "hello"}]}]

    def answers(self, model, *args):
        requests = [{**prompt, "max_tokens": 16, "ignore_eos": True, "temperature": t, "seed": 1, "logprobs": 3}
                    for prompt in self.PROMPTS for t in (0, 1)]
        rc, out, err = generate("--requests", tandem.write_lines("folder.jsonl", requests), "--json", *args,
                                model=model)
        self.assertEqual(rc, 0, err)
        return sorted((json.loads(line) for line in out.splitlines()), key=lambda line: line["index"])

    def test_it_answers_as_the_file_does(self):
        for architecture, dtype, num_shards in (("qwen2", "BF16", 2), ("qwen3", "F16", 3), ("gemma3", "BF16", 1), ("gemma3", "F32", 2)):
            with self.subTest(architecture=architecture, dtype=dtype):
                folder, file = folders.make(f"{architecture}-{dtype}", architecture, dtype, num_shards)
                wanted = self.answers(file)
                self.assertEqual(self.answers(folder), wanted)
                self.assertEqual(self.answers(folder + "/", "--tp", 2, "--load-format", "safetensors"), wanted)

    def test_llamas_heads_are_ordered_otherwise_there(self):
        """Rows of q and k are not those of GGUF, so they add up in another order: the last bits differ."""
        for dtype, num_shards in (("F32", 1), ("BF16", 2)):
            with self.subTest(dtype=dtype):
                folder, file = folders.make(f"llama-{dtype}", "llama", dtype, num_shards)
                wanted, got = self.answers(file), self.answers(folder)
                self.assertEqual(self.answers(folder, "--tp", 2), got)
                for ours, theirs in zip(got, wanted):
                    self.assertEqual(ours["prompt_token_ids"], theirs["prompt_token_ids"])
                for ours, theirs in zip(got[::2], wanted[::2]):  # those without chance
                    self.assertEqual(ours["token_ids"], theirs["token_ids"])
                    for a, b in zip(ours["logprobs"], theirs["logprobs"]):
                        self.assertAlmostEqual(a["logprob"], b["logprob"], delta=1e-3)

    def test_biases_are_added_as_plain_python_adds_them(self):
        folder, file = folders.make("plain", "qwen2", "F32")
        ids = [3 + i * 37 % 270 for i in range(24)]

        def told(model, *args):
            request = {"prompt_token_ids": ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
            rc, out, err = generate("--requests", tandem.write_lines("plain.jsonl", [request]), "--json",
                                    "--kv-cache-dtype", "float16", *args, model=model)  # it rounds the least
            self.assertEqual(rc, 0, err)
            return [entry["logprob"] for entry in json.loads(out)["prompt_logprobs"][1:]]

        def computed(model):
            return [row[token] for row, token in zip(model.logprobs(ids), ids[1:])]

        plain = PlainModel(folder)
        wanted = computed(plain)
        for got in told(folder), told(folder, "--tp", 2), told(file):
            for a, b in zip(got, wanted):
                self.assertAlmostEqual(a, b, delta=3e-3)
        for part in "qkv":  # each of them shows
            names = [name for name in plain.tensors if name.endswith(f".{part}_proj.bias")]
            without = PlainModel(folder)
            for name in names:
                shape, values = without.tensors[name]
                without.tensors[name] = shape, [0.0] * len(values)
            self.assertGreater(max(abs(a - b) for a, b in zip(computed(without), wanted)), 0.05, names)

    def test_its_generation_config_is_what_requests_leave_open(self):
        folder, file = folders.make("sampled", "llama", "F32")
        says = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 20}
        folders.edit(folder, "generation_config.json", lambda config: config.update(says, eos_token_id=[2, 0]))

        def tokens(*args, model=folder, **fields):
            request = {"prompt": "hello", "seed": 1, "ignore_eos": True, "max_tokens": 24, **fields}
            rc, out, err = generate("--requests", tandem.write_lines("one.jsonl", [request]), "--json", *args,
                                    model=model)
            self.assertEqual(rc, 0, err)
            return json.loads(out)["token_ids"], err

        explicit = {key: says[key] for key in says if key != "max_new_tokens"}
        neutral = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1}
        got, err = tokens()
        self.assertEqual(len(got), 20)
        self.assertIn('as generation_config.json says, {"repetition_penalty": 1.3, "temperature": 0.7', err)
        plain, err = tokens("--generation-config", "vllm")
        self.assertEqual(len(plain), 24)
        self.assertNotIn("generation_config.json", err)
        self.assertNotEqual(got, plain[:20])
        self.assertEqual(tokens("--generation-config", "vllm", **explicit)[0][:20], got)
        self.assertEqual(tokens(**neutral)[0], plain[:20])
        flags = [word for key, value in neutral.items() for word in ("--" + key.replace("_", "-"), value)]
        self.assertEqual(tokens(*flags)[0], plain[:20])

        def prompt(*args):
            return generate("--prompt", "hello", "--ignore-eos", *args, model=folder)[1]

        neither = "--generation-config", "vllm"
        self.assertEqual(prompt(*neither), prompt("--temperature", 0, *neither))
        self.assertEqual(prompt("--seed", 1), prompt("--seed", 1, "--temperature", 0.7))
        folders.edit(folder, "generation_config.json", lambda config: config.update(temperature=-1))
        rc, _, err = generate("--prompt", "x", model=folder)
        self.assertEqual(rc, 2, err)
        self.assertIn("sampled: generation_config.json: temperature must be in [0, 2], got -1. "
                      "(--generation-config vllm does without it)", err)
        tokens("--generation-config", "vllm")

    def test_weights_of_8_bits_are_what_their_codes_and_scales_stand_for(self):
        """Bit for bit, for any number of ranks: three of them cut blocks of 128."""
        for i, form in enumerate(folders.FP8_FORMS):
            with self.subTest(form=form):
                folder, expanded = folders.make_fp8(form)
                wanted = self.answers(expanded)
                self.assertEqual(self.answers(folder), wanted)
                self.assertEqual(self.answers(folder, "--tp", 3 - i % 2), wanted)

    def test_one_that_is_not_whole_is_refused(self):
        folder, file = folders.make("broken", "llama", "BF16", 2)
        index = f"{folder}/model.safetensors.index.json"
        with open(index) as f:
            places = json.load(f)["weight_map"]
        shard = places["model.norm.weight"]

        def refused(words, model=folder, *args):
            rc, out, err = generate("--prompt", "x", *args, model=model)
            self.assertEqual((rc, out), (1, ""), err)
            self.assertEqual(len(err.splitlines()), 1, err)
            self.assertIn(words, err)

        refused("broken.gguf: is no folder", file, "--load-format", "safetensors")
        refused("is a file of safetensors; a model is the folder around it", f"{folder}/{shard}")
        tandem.write("broken/model.safetensors.index.json",
                     json.dumps({"weight_map": {**places, "model.norm.weight": "../broken.gguf"}}))
        refused('broken: model.safetensors.index.json: model.norm.weight is "../broken.gguf"; the name of a file')
        del places["model.norm.weight"]
        tandem.write("broken/model.safetensors.index.json", json.dumps({"weight_map": places}))
        refused("tensor output_norm.weight (1 x 64) is missing")
        with open(f"{folder}/{shard}", "rb") as f:
            whole = f.read()
        tandem.write(f"broken/{shard}", whole[:-100])
        refused(f"broken: {shard}: tensor '")
        tandem.write(f"broken/{shard}", whole.replace(b'"BF16"', b'"F8x2"'))
        refused("dtype F8x2 is not supported; these are: F32, F16, BF16, F8_E4M3")
        os.unlink(f"{folder}/{shard}")
        refused(f"broken: {shard}: No such file")


class Interrupt(unittest.TestCase):
    def test_an_interrupt_ends_it_in_order(self):
        lines = [{"prompt": "hello", "max_tokens": 1}]
        lines += [{"prompt": "hello", "max_tokens": 200, "ignore_eos": True}] * 100
        with subprocess.Popen(
                [tandem.PROGRAM, "generate", "--model", MODEL, "--tp", "2", "--json",
                 "--requests", tandem.write_lines("long.jsonl", lines)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            self.assertIn(b"token_ids", process.stdout.readline())  # it is at work
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
                ranks = f.read().split()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=tandem.within(20))
        self.assertEqual(process.returncode, EXIT_SIGNAL + signal.SIGINT, err)
        self.assertLess(len(out.splitlines()), 100)
        self.assertNotIn(b"rank", err.replace(b"ranks:", b""))
        self.assertEqual(len(ranks), 2)
        self.assertEqual([rank for rank in ranks if os.path.exists(f"/proc/{rank}")], [])

    def test_the_exit_status_says_by_which_signal(self):
        for number in signal.SIGINT, signal.SIGTERM:
            with self.subTest(number), subprocess.Popen(
                    [tandem.PROGRAM, "generate", "--model", MODEL, "--requests", "-"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                process.stdin.write(b'{"prompt": "hello"}\n')
                process.stdin.flush()
                process.stdout.readline()  # it waits for another request
                process.send_signal(number)
                self.assertEqual(process.wait(tandem.within(20)), EXIT_SIGNAL + number)


if __name__ == "__main__":
    unittest.main()
