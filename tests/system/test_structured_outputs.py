"""Answers that follow a form, through tandem serve, on a tiny model that knows nothing of forms."""
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import sys
import time
import unittest

import tandem
from schemas import schemas
from server import Server, children_of, wait_for

FOLDER = next((folder for folder in (pathlib.Path(tandem.PROGRAM).resolve().parent / "grammar",
                                     pathlib.Path(__file__).resolve().parents[2] / ".cache/grammar")
               if (folder / "libllguidance.so").exists()), None)
if not FOLDER:
    print("skipped: no libraries for grammars (deploy/fetch-grammars)")
    sys.exit(77)

try:
    import jsonschema
    import openai
    import pydantic
except ImportError as error:
    print(f"skipped: {error} (tests/system/requirements.txt)")
    sys.exit(77)

_server = None


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def is_alive(pid):
    """A zombie whose parent is not ours to blame is dead."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def server():
    """One server for the tests that leave it as they found it."""
    global _server
    if not _server:
        _server = Server("--tp", "2", "--grammar-folder", str(FOLDER), "--grammar-compile-timeout", "30")
        unittest.addModuleCleanup(_server.stop)
    return _server


def complete(to, **more):
    body = {"prompt": "Hello", "max_tokens": 400, "temperature": 1, "seed": 7, **more}
    status, _, answer = to.post("/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]


def structured(to, kind, grammar, **more):
    return complete(to, structured_outputs={kind: grammar}, **more)


class Forms(unittest.TestCase):
    def test_a_regex_is_matched(self):
        for seed in range(5):
            choice = structured(server(), "regex", r"([0-9]{3}-){1,3}[a-f]{4}", seed=seed)
            assert choice["finish_reason"] == "stop", choice
            assert re.fullmatch(r"([0-9]{3}-){1,3}[a-f]{4}", choice["text"]), choice

    def test_a_choice_is_one_of_them(self):
        texts = {structured(server(), "choice", ["red", "green", "blue \"é\""], seed=seed)["text"]
                 for seed in range(20)}
        assert texts <= {"red", "green", "blue \"é\""} and len(texts) > 1, texts

    def test_grammars_of_both_kinds_are_followed(self):
        lark = 'start: "(" start ")" | "x"'
        gbnf = 'root ::= "(" root ")" | "x"'
        for grammar in (lark, gbnf):
            choices = [structured(server(), "grammar", grammar, seed=seed, temperature=2)
                       for seed in range(8)]
            ended = [choice["text"] for choice in choices if choice["finish_reason"] == "stop"]
            assert ended, choices
            for text in ended:
                half = len(text) // 2
                assert text == "(" * half + "x" + ")" * half, text

    def test_a_structural_tag_is_kept_to(self):
        tag = {"type": "structural_tag", "format": {"type": "sequence", "elements": [
            {"type": "const_string", "value": "<n>"},
            {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}},
            {"type": "const_string", "value": "</n>"}]}}
        status, _, answer = server().post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "x"}], "max_tokens": 50, "seed": 1,
            "response_format": tag})
        assert status == 200, answer
        assert re.fullmatch(r"<n>\d{1,2}</n>", answer["choices"][0]["message"]["content"]), answer

    def test_json_mode_makes_an_object(self):
        ended = 0
        for seed in range(8):
            choice = complete(server(), response_format={"type": "json_object"}, seed=seed)
            if choice["finish_reason"] == "stop":
                assert isinstance(json.loads(choice["text"]), dict), choice
                ended += 1
        assert ended > 0

    def test_schemas_are_followed(self):
        """Finished means valid, for schemas of all sorts."""
        def ask(pair):
            number, schema = pair
            choice = complete(server(), seed=number, structured_outputs={
                "json": schema, "disable_any_whitespace": number % 4 > 0})
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["text"]), schema)
            return choice["finish_reason"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            reasons = list(pool.map(ask, enumerate(schemas(40, seed=3))))
        assert set(reasons) <= {"stop", "length"} and reasons.count("stop") >= 15, reasons

    def test_several_answers_follow_it_each(self):
        status, _, answer = server().post("/v1/completions", {
            "prompt": ["a", "b"], "n": 3, "max_tokens": 20, "guided_regex": "[ab]{5}", "seed": 3})
        assert status == 200, answer
        texts = [choice["text"] for choice in answer["choices"]]
        assert len(texts) == 6 and all(re.fullmatch("[ab]{5}", text) for text in texts), texts
        assert len(set(texts)) > 1

    def test_a_stream_is_what_the_whole_is(self):
        body = {"prompt": "x", "seed": 5, "max_tokens": 60, "temperature": 1,
                "guided_regex": "[a-z]{20}"}
        whole = complete(server(), **body)["text"]
        events = server().events(body)
        assert "".join(event["choices"][0]["text"] for event in events) == whole
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


class Ends(unittest.TestCase):
    def test_what_cuts_it_short_is_no_stop(self):
        choice = structured(server(), "regex", "[ab]{30}c", stop="b")
        assert choice["finish_reason"] == "length" and choice["stop_reason"] == "b", choice
        choice = structured(server(), "regex", "[ab]{30}c", max_tokens=3)
        assert choice["finish_reason"] == "length", choice

    def test_min_tokens_wait_as_far_as_the_grammar_goes(self):
        short = structured(server(), "regex", "a*", min_tokens=30, max_tokens=60)
        assert len(short["text"]) >= 30, short
        bound = structured(server(), "regex", "a{3}", min_tokens=30, max_tokens=60)
        assert bound["text"] == "aaa" and bound["finish_reason"] == "stop", bound

    def test_ignore_eos_does_not_go_on_behind_the_end(self):
        choice = structured(server(), "choice", ["yes"], ignore_eos=True)
        assert choice["text"] == "yes" and choice["finish_reason"] == "stop", choice

    def test_logprobs_go_with_it(self):
        choice = structured(server(), "regex", "[ab]{5}", logprobs=2)
        assert len(choice["logprobs"]["tokens"]) >= 2, choice


class Refusals(unittest.TestCase):
    def ask(self, to, structured_outputs, **more):
        begin = time.monotonic()
        status, headers, answer = to.post("/v1/completions", {
            "prompt": "x", "max_tokens": 5, "structured_outputs": structured_outputs, **more})
        assert time.monotonic() - begin < 5
        return status, headers, answer

    def test_a_grammar_that_is_none_is_refused_by_its_fault(self):
        for grammar, words in (({"regex": "((a"}, "unclosed group"),
                               ({"json": {"not": {"type": "string"}}}, "not"),
                               ({"json": {"type": "object", "if": {}, "then": {}}}, "then"),
                               ({"json": {"uniqueItems": True}, "backend": "xgrammar"},
                                "the keyword `uniqueItems`"),
                               ({"grammar": 'root ::= "a'}, ""),
                               ({"regex": "a", "backend": "other"}, "no grammar backend 'other'"),
                               ({"regex": "(a{1,4000}){1,4000}"}, "repetitions"),
                               ({"json": {"$ref": "#"}}, "dead end")):
            for stream in (False, True):
                status, headers, answer = self.ask(server(), grammar, stream=stream)
                assert status == 400, (grammar, answer)
                assert headers.get_content_type() == "application/json"
                assert words in answer["error"]["message"], (grammar, answer)
        assert structured(server(), "regex", "abc")["text"] == "abc"

    def test_lenient_passes_over_what_cannot_be_enforced(self):
        grammar = {"json": {"type": "integer", "minimum": 5, "maximum": 7, "not": {"const": 6}}}
        assert self.ask(server(), grammar)[0] == 400
        status, _, answer = self.ask(server(), {**grammar, "lenient": True})
        assert status == 200 and answer["choices"][0]["text"] in ("5", "6", "7"), answer

    def test_libraries_that_are_missing_are_named(self):
        for stream in (False, True):
            with Server("--grammar-folder", "/nowhere") as bare:
                status, _, answer = self.ask(bare, {"regex": "a"}, stream=stream)
                assert status == 501 and "deploy/fetch-grammars" in answer["error"]["message"], answer
                assert bare.complete()["choices"]

    def test_one_that_hangs_its_library_harms_nobody(self):
        """The library stalls at this one for ever; its process is killed."""
        with Server("--grammar-folder", str(FOLDER), "--grammar-compile-timeout", "30") as to:
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                stall = pool.submit(self.ask, to, {"regex": r"(\w+\s?)+x", "backend": "xgrammar"},
                                    max_tokens=200)
                for seed in range(10):
                    assert structured(to, "regex", "[ab]{5}", seed=seed)["finish_reason"] == "stop"
                status, _, answer = stall.result()
            assert status in (200, 400), answer
            if status == 400:
                assert "the grammar takes" in answer["error"]["message"], answer


class Life(unittest.TestCase):
    def test_nothing_is_left_of_a_server_that_is_killed(self):
        with Server("--grammar-folder", str(FOLDER), "--grammar-compile-timeout", "30") as to:
            for i in range(3):
                structured(to, "regex", f"[ab]{{{i + 1}}}")
            hosts = [pid for pid in children_of(to.process.pid)
                     if "gramhost" in name_of(pid)]
            processes = hosts + [pid for host in hosts for pid in children_of(host)]
            assert len(processes) == 4, processes
            to.process.kill()
            to.process.wait()
            wait_for("no process", lambda: not any(is_alive(pid) for pid in processes), seconds=3)

    def test_a_host_that_is_killed_ends_its_requests_and_comes_again(self):
        with Server("--grammar-folder", str(FOLDER), "--grammar-compile-timeout", "30") as to:
            structured(to, "regex", "[ab]")
            host, = [pid for pid in children_of(to.process.pid) if "gramhost" in name_of(pid)]
            os.kill(host, signal.SIGKILL)
            wait_for("an answer", lambda: to.post("/v1/completions", {
                "prompt": "x", "guided_regex": "[ab]{3}"})[0] == 200)
            assert to.complete()["choices"]


class OneAnswer(unittest.TestCase):
    def test_it_does_not_depend_on_how_it_was_scheduled(self):
        asks = [{"prompt": "p" * (i * 7 % 40 + 1), "seed": i, "temperature": i % 2, "max_tokens": 60,
                 **({"guided_regex": r"([a-z]{1,9} ){1,20}\."} if i % 3 else
                    {"guided_json": {"type": "array", "items": {"enum": ["a", 1, None]},
                                     "maxItems": 30}})} for i in range(12)]
        answers = []
        for options in ((), ("--no-async-scheduling",), ("--max-num-seqs", "2"),
                        ("--num-gpu-blocks-override", "20", "--max-model-len", "256"),
                        ("--tp", "3", "--no-enable-prefix-caching")):
            with Server("--grammar-folder", str(FOLDER), "--grammar-compile-timeout", "30", *options) as to:
                with concurrent.futures.ThreadPoolExecutor(12) as pool:
                    answers.append([choice["text"] for choice in
                                    pool.map(lambda ask: complete(to, **ask), asks)])
            assert answers[-1] == answers[0], options


class Color(pydantic.BaseModel):
    name: str = pydantic.Field(pattern="^(red|green|blue)$")
    shade: int = pydantic.Field(ge=0, le=100)
    is_dark: bool


class RealClient(unittest.TestCase):
    def client(self):
        return openai.OpenAI(base_url=server().url + "/v1", api_key="none", max_retries=0)

    def test_a_pydantic_model_is_parsed(self):
        parsed = 0
        for seed in range(8):
            try:
                answer = self.client().beta.chat.completions.parse(
                    model="tiny", messages=[{"role": "user", "content": "A color?"}],
                    response_format=Color, seed=seed, temperature=2, max_tokens=500)
            except openai.LengthFinishReasonError:  # this model may like blanks too well to end
                continue
            color = answer.choices[0].message.parsed
            assert color.name in ("red", "green", "blue") and 0 <= color.shade <= 100, color
            parsed += 1
        assert parsed > 0

    def test_extra_body_is_heard(self):
        for body, pattern in (({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
                              ({"structured_outputs": {"regex": "[0-9]{4}"}}, "[0-9]{4}"),
                              ({"guided_choice": ["yes", "no"]}, "yes|no"),
                              ({"guided_grammar": 'root ::= "a" | "b"'}, "a|b")):
            answer = self.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "?"}], extra_body=body,
                max_tokens=20)
            assert re.fullmatch(pattern, answer.choices[0].message.content), answer


if __name__ == "__main__":
    unittest.main()
