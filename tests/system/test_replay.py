"""A step that fails is written down whole, and fails again when it is run again."""
import glob
import json
import os
import stat
import subprocess
import tempfile
import unittest

import tandem
from server import Server

MODEL = tandem.make_tiny_model("replay.gguf")
PREFIX = list(range(30, 80))
REQUESTS = tandem.write_lines("requests.jsonl", [
    {"prompt_token_ids": (PREFIX if i % 2 else []) + [60 + i] * (3 + 5 * i), "max_tokens": 40,
     "ignore_eos": True, "temperature": 0.5, "seed": i} for i in range(9)])
LIVES = [["--executor", "uniproc"], ["--tp", 2],
         ["--executor", "uniproc", "--no-async-scheduling"], ["--tp", 2, "--no-async-scheduling"]]


def fail_a_step(fault, *args):
    """The dump of a generate that failed so, and what it said."""
    folder = tempfile.mkdtemp(dir=tandem.path("."))
    rc, out, err = tandem.run("generate", "--requests", REQUESTS, "--json", "--inject-fault", fault, "--max-restarts", "0",
                              "--dump-dir", folder, *args)
    assert rc == 1, (rc, out, err)
    # every request is answered, with the failure where it had not ended
    assert len(out.splitlines()) == 9, out
    files = glob.glob(folder + "/*")
    assert len(files) == 1, (files, err)
    assert f"tandem replay {files[0]}" in err, err
    return files[0], err


class Replay(unittest.TestCase):
    def expect_again(self, path, *args):
        rc, out, err = tandem.run("replay", path, "--json", *args)
        self.assertEqual(rc, 0, (out, err))
        result = json.loads(out)
        self.assertTrue(result["same"])
        self.assertEqual(result["outcome"], "the same failure")
        return result

    def test_an_error_anywhere_is_reproduced(self):
        for life in LIVES:
            for verb in ("prepare_inputs", "execute_model", "sample"):
                with self.subTest(life=life, verb=verb):
                    path, err = fail_a_step(f"step=21,verb={verb},kind=error", "--model", MODEL, *life)
                    result = self.expect_again(path)
                    self.assertIn(f"{verb} of step 21 fails by order", result["cause"])

    def test_another_executor_has_the_same_failure(self):
        executors = "uniproc", "multiproc"
        for executor, other in executors, executors[::-1]:
            with self.subTest(executor):
                path, _ = fail_a_step("step=21,kind=error", "--model", MODEL, "--executor", executor)
                self.expect_again(path, "--executor", other)
        with open(path) as file:  # multiproc's: which rank it was is part of it
            dump = json.load(file)
        dump["failure"]["cause"] = dump["failure"]["cause"].replace("rank 0: ", "rank 1: ")
        rc, out, _ = tandem.run("replay", tandem.write("rank.json", json.dumps(dump)))
        self.assertEqual((rc, "another failure: rank 0: " in out), (1, True), out)

    def test_small_budgets_and_preempted_requests_are_brought_back(self):
        for args in (["--max-num-batched-tokens", 16], ["--num-gpu-blocks-override", 18],
                     ["--max-num-seqs", 4], ["--no-enable-prefix-caching"]):
            for step in (1, 2, 9, 33):
                with self.subTest(args=args, step=step):
                    path, _ = fail_a_step(f"step={step},kind=error", "--model", MODEL,
                                          "--max-model-len", 256, *args)
                    self.expect_again(path)

    def test_a_rank_that_dies_is_reproduced(self):
        path, _ = fail_a_step("step=12,rank=1,kind=exit", "--model", MODEL, "--tp", 3)
        result = self.expect_again(path)
        self.assertRegex(result["cause"], r"rank 1 \(process \d+\) has died")
        with open(path) as file:
            self.assertEqual(json.load(file)["failure"]["rank"], 1)

    def test_the_dump_has_everything_and_is_the_owners_alone(self):
        # Not paced, all nine have their prompts behind them by step 12, whatever steps took.
        path, err = fail_a_step("step=12,kind=error", "--model", MODEL, "--tp", 2,
                                "--decode-slowdown", 0)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path) as file:
            dump = json.load(file)
        requests = {r["slot"]: r for r in dump["before"]["body"]["new_requests"]}
        plan = dump["steps"][0]["plan"]["body"]
        self.assertEqual(set(plan["slots"]), set(requests))
        self.assertEqual(sorted(r["prompt_token_ids"][-1] for r in requests.values()),
                         [60 + i for i in range(9)])
        for row, slot in enumerate(plan["slots"]):
            request = requests[slot]
            tokens = len(request["prompt_token_ids"]) + len(request["output_token_ids"])
            self.assertEqual(tokens, plan["num_computed_tokens"][row] + 1)
            self.assertGreaterEqual(len(request["block_ids"]) * 16,
                                    plan["num_computed_tokens"][row])
        self.assertEqual([s["plan"]["step"] for s in dump["steps"]], [12, 13])
        self.assertEqual(dump["config"]["tp"], 2)
        # the engine learns of it when it collects, or when it sends the next step to a rank that has ended
        self.assertIn(dump["failure"]["step"], (12, 13))
        kinds = {(m["direction"], m["message"]["message"]) for m in dump["wire"]}
        self.assertIn(("sent", "prepare_inputs"), kinds)
        self.assertIn(("received", "model_runner_output"), kinds)
        # the log counts prompts, and does not show them
        self.assertIn("new_requests", err + "new_requests")
        self.assertNotIn("60,60,60", err.replace(" ", ""))

    def test_it_runs_again_wherever_one_is(self):
        folder = tempfile.mkdtemp(dir=tandem.path("."))
        done = subprocess.run(
            [tandem.PROGRAM, "generate", "--model", os.path.basename(MODEL), "--prompt", "hello",
             "--max-tokens", "20", "--ignore-eos", "--inject-fault", "step=8,kind=error", "--max-restarts", "0",
             "--max-restarts", "0", "--dump-dir", folder], capture_output=True, cwd=os.path.dirname(MODEL), timeout=60)
        self.assertEqual(done.returncode, 1, done.stderr)
        path = glob.glob(folder + "/*")[0]
        with open(path) as file:
            config = json.load(file)["config"]
        self.assertEqual(config["model"], os.path.realpath(MODEL))
        self.assertGreater(config["num_gpu_blocks_override"], 0)
        self.assertGreater(config["max_model_len"], 0)
        self.expect_again(path)

    def test_a_server_writes_one_too(self):
        folder = tempfile.mkdtemp(dir=tandem.path("."))
        with Server("--model", MODEL, "--inject-fault", "step=5,kind=error", "--max-restarts", "0", "--dump-dir",
                    folder) as server:
            server.post("/v1/completions", {"prompt": "hello", "max_tokens": 20,
                                            "ignore_eos": True})
            server.process.wait(tandem.within(20))
        self.expect_again(glob.glob(folder + "/*")[0])

    def test_a_simulated_engine_fails_again(self):
        sim = os.path.join(os.path.dirname(__file__), "../../kernels/sim/free.json")
        path, _ = fail_a_step("step=7,verb=sample,kind=error", "--sim", sim, "--tp", 2)
        self.expect_again(path)

    def test_a_step_that_does_not_fail_again_is_told(self):
        path, _ = fail_a_step("step=12,kind=error", "--model", MODEL)
        with open(path) as file:
            dump = json.load(file)
        dump["config"]["inject_fault"] = None
        rc, out, _ = tandem.run("replay", tandem.write("mended.json", json.dumps(dump)))
        self.assertEqual((rc, out), (1, "no failure\n"))
        dump["config"]["inject_fault"] = "step=12,verb=sample,kind=error"
        rc, out, _ = tandem.run("replay", tandem.write("other.json", json.dumps(dump)))
        self.assertEqual(rc, 1)
        self.assertIn("another failure: sample of step 12", out)

    def test_a_plan_that_ranks_refuse_fails_the_same_way_each_time(self):
        path, _ = fail_a_step("step=12,kind=error", "--model", MODEL)
        with open(path) as file:
            dump = json.load(file)
        dump["config"]["inject_fault"] = None
        dump["steps"][0]["plan"]["body"]["num_computed_tokens"][0] += 1
        dump["failure"].update(status="mismatch", cause="unknown yet")
        rc, out, _ = tandem.run("replay", tandem.write("a.json", json.dumps(dump)), "--json")
        self.assertEqual(rc, 1)
        dump["failure"]["cause"] = json.loads(out)["cause"]
        self.expect_again(tandem.write("b.json", json.dumps(dump)))

    def test_what_is_no_dump_is_refused(self):
        path, _ = fail_a_step("step=3,kind=error", "--model", MODEL)
        with open(path) as file:
            dump = json.load(file)
        other = tandem.make_tiny_model("other.gguf", architecture="gemma3")
        rows = [
            ({}, "\"format\" is not \"tandem step dump 1\""),
            ({**dump, "steps": []}, "\"steps\" has 0 steps"),
            ({**dump, "before": 5}, "\"before\": "),
            ({**dump, "failure": {**dump["failure"], "status": "ok"}}, "\"status\" is missing"),
            ({**dump, "config": {**dump["config"], "model": other}}, "has fingerprint"),
            ({**dump, "config": {**dump["config"], "model": "/nonexistent"}}, "/nonexistent"),
            ({**dump, "config": {**dump["config"], "speed": 1}}, "speed"),
        ]
        for changed, words in rows:
            rc, _, err = tandem.run("replay", tandem.write("bad.json", json.dumps(changed)))
            self.assertEqual(rc, 2, err)
            self.assertIn(words, err)
        for args, words in ((["/nonexistent.json"], "/nonexistent.json"), ([], "one FILE is wanted"),
                            ([tandem.write("x.json", "{")], "line 1, column 1")):
            rc, _, err = tandem.run("replay", *args)
            self.assertEqual(rc, 2, err)
            self.assertIn(words, err)


if __name__ == "__main__":
    unittest.main()
