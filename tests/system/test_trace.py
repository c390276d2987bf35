"""A trace of the whole program, told and drawn by tandem trace."""
import json
import os
import unittest
import xml.etree.ElementTree as ET

import tandem

MODEL = tandem.make_tiny_model("trace.gguf")
SIM = os.path.join(os.path.dirname(__file__), "../../kernels/sim/free.json")
REQUESTS = tandem.write_lines("requests.jsonl", [
    {"prompt": "hello " * (1 + i), "max_tokens": 30, "ignore_eos": True} for i in range(4)])


def trace_of(name, *args):
    path = tandem.path(name)
    rc, _, err = tandem.run("generate", "--requests", REQUESTS, "--json", "--trace", path, *args)
    assert rc == 0, err
    return path


class Trace(unittest.TestCase):
    def test_every_process_and_its_threads_are_told(self):
        for args, workers in ((["--model", MODEL, "--tp", 2], ["worker.0", "worker.1"]),
                              (["--model", MODEL, "--tp", 2, "--no-async-scheduling"],
                               ["worker.0", "worker.1"]),
                              (["--sim", SIM, "--tp", 2], ["worker.0", "worker.1"]),
                              (["--model", MODEL], ["engine"])):
            with self.subTest(args=args):
                rc, out, err = tandem.run("trace", trace_of("t.json", *args), "--json")
                self.assertEqual(rc, 0, err)
                report = json.loads(out)
                self.assertEqual([d["process"] for d in report["devices"]], workers)
                steps = {d["steps"] for d in report["devices"]}
                self.assertLessEqual(max(steps), min(steps) + 1)  # a rank above 0 may yet be in the last
                self.assertGreaterEqual(max(steps), 30)
                for device in report["devices"]:
                    self.assertTrue(0 <= device["busy_pct"] <= 100)
                verbs = {(w["thread"], w["name"]) for w in report["work"]}
                for name in ("schedule", "prepare_inputs", "sample", "collect", "update_from_output"):
                    self.assertIn(("core", name), verbs)
                if len(workers) == 2:
                    for name in ("decode", "prepare_inputs", "reply"):
                        self.assertIn(("wire", name), verbs)
                for work in report["work"]:
                    self.assertTrue(0 <= work["hidden_pct"] <= 100, work)

    def test_a_picture_is_svg_with_a_lane_a_thread(self):
        path = trace_of("p.json", "--model", MODEL, "--tp", 3)
        picture = tandem.path("p.svg")
        rc, out, err = tandem.run("trace", path, "--svg", picture, "--ranks", 2, "--steps", 3)
        self.assertEqual(rc, 0, err)
        self.assertIn("worker.2", out)  # told, though not drawn
        text = " ".join(ET.parse(picture).getroot().itertext())
        for lane in ("core", "front", "worker.0", "worker.1", "1 more ranks are not drawn"):
            self.assertIn(lane, text)
        self.assertNotIn("worker.2", text)

    def test_people_read_a_table(self):
        rc, out, _ = tandem.run("trace", trace_of("t.json", "--model", MODEL))
        self.assertEqual(rc, 0)
        self.assertRegex(out, r"(?m)^device +steps +ms +busy %")
        self.assertRegex(out, r"(?m)^engine +core +schedule ")
        self.assertRegex(out, r"(?m)^(longest wait: |the first device never waited)")

    def test_what_is_no_trace_is_refused(self):
        for args, status, words in (([], 2, "one FILE is wanted"),
                                    (["/nonexistent.json"], 1, "/nonexistent.json"),
                                    ([tandem.write("x.json", "[1]")], 1, "event 0: is no object"),
                                    ([trace_of("t.json", "--model", MODEL), "--svg", "/nonexistent/x"],
                                     74, "/nonexistent/x"),
                                    (["x", "--steps", 0], 2, "--steps must be 1 to 100")):
            rc, _, err = tandem.run("trace", *args)
            self.assertEqual(rc, status, err)
            self.assertIn(words, err)


if __name__ == "__main__":
    unittest.main()
