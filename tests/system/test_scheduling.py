"""What clients and operators see of the scheduler: cached prefixes, full queues, pauses."""
import json
import threading
import unittest

import tandem
from server import Server, model, shared, wait_for


class Prefixes(unittest.TestCase):
    def chat(self, server, messages, **more):
        status, _, answer = server.post("/v1/chat/completions", {
            "messages": messages, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **more})
        assert status == 200, answer
        return answer["choices"][0]["message"]["content"], answer["usage"]

    def test_the_second_turn_of_a_chat_computes_only_what_is_new(self):
        with Server("--max-num-seqs", "4") as server:
            said = [{"role": "user", "content": "Tell me of the river. " * 20}]
            content, first = self.chat(server, said)
            assert first["prompt_tokens_details"]["cached_tokens"] == 0, first

            again = said + [{"role": "assistant", "content": content},
                            {"role": "user", "content": "And then?"}]
            _, second = self.chat(server, again)
            cached = second["prompt_tokens_details"]["cached_tokens"]
            # What was said is tokenized anew; the prompt of the first turn is the same in full blocks.
            assert cached % 16 == 0 and cached > first["prompt_tokens"] - 16, (first, second)
            assert server.metric("vllm:prefix_cache_hits_total") == cached
            assert (server.metric("vllm:prefix_cache_queries_total") ==
                    first["prompt_tokens"] + second["prompt_tokens"])

    def test_what_was_answered_is_not_computed_again_either(self):
        first = shared().complete("Tell me of the lake. " * 10, max_tokens=40, ignore_eos=True,
                                  return_token_ids=True)["choices"][0]
        known = first["prompt_token_ids"] + first["token_ids"]
        usage = shared().complete(known + [5, 6, 7])["usage"]
        # Of the last token that was said nothing is computed yet.
        assert usage["prompt_tokens_details"]["cached_tokens"] == (len(known) - 1) // 16 * 16, usage

    def test_turns_answer_as_without_a_cache(self):
        said = [{"role": "user", "content": "Tell me of the river. " * 20}]
        answers = []
        for flags in [], ["--no-enable-prefix-caching"]:
            with Server(*flags) as server:
                content, _ = self.chat(server, said)
                again = said + [{"role": "assistant", "content": content},
                                {"role": "user", "content": "And then?"}]
                answers.append((content, self.chat(server, again)[0]))
        assert answers[0] == answers[1], answers

    def test_a_salt_keeps_prefixes_apart(self):
        prompt = "Once upon a time there was a river that ran to the sea. " * 8
        cached = []
        for salt in "a", "a", "b", None:
            answer = shared().complete(prompt, **({"cache_salt": salt} if salt else {}))
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == cached[2] == cached[3] == 0 < cached[1], cached

    def test_an_empty_salt_is_refused(self):
        for salt in "", 7, ["a"]:
            status, _, answer = shared().post("/v1/completions", {"prompt": "a", "cache_salt": salt})
            assert status == 400 and answer["error"]["param"] == "cache_salt", answer
            assert "must be a non-empty string" in answer["error"]["message"], answer


class Queues(unittest.TestCase):
    def test_a_full_queue_answers_503_and_when_to_come_again(self):
        with Server("--max-num-queued-reqs", "2", "--max-num-seqs", "1") as server:
            with server.open_stream(), server.open_stream():
                wait_for("both inside", lambda: server.num_running() == 2)
                status, headers, answer = server.post("/v1/completions", {"prompt": "Hi"})
                assert status == 503 and 1 <= int(headers["Retry-After"]) <= 60, (status, headers)
                assert "2 requests are unfinished, --max-num-queued-reqs is 2" in (
                    answer["error"]["message"]), answer
                status, _, answer = server.ask("GET", "/ready")
                assert status == 503 and "queue is full" in answer["error"]["message"], answer
                assert server.ask("GET", "/health")[0] == 200
                status, headers, answer = server.post("/v1/completions", {"prompt": "Hi", "n": 3})
                assert status == 400 and "3 sequences" in answer["error"]["message"], answer
            assert server.metric("vllm:admission_rejections_total",
                                 reason="max_num_queued_reqs") == 1
            assert server.metric("vllm:admission_rejections_total",
                                 reason="max_num_queued_tokens") == 0
            wait_for("room again", lambda: server.num_running() == 0)
            assert server.ask("GET", "/ready")[0] == 200
            assert server.complete()["usage"]

    def test_generate_waits_for_room(self):
        requests = tandem.write_lines("queue.jsonl", [{"prompt": f"Number {i}", "max_tokens": 3}
                                                      for i in range(30)])
        code, out, err = tandem.run("generate", "--model", model(), "--requests", requests, "--json",
                                    "--max-num-queued-reqs", "4", "--max-num-queued-tokens", "10")
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert sorted(line["index"] for line in lines) == list(range(30)), lines
        assert not any("error" in line for line in lines), lines


class Pauses(unittest.TestCase):
    def test_they_are_there_when_asked_for_only(self):
        for method, path in (("POST", "/pause"), ("POST", "/resume"), ("GET", "/is_paused"),
                             ("POST", "/reset_prefix_cache"), ("POST", "/sleep"),
                             ("POST", "/wake_up"), ("GET", "/is_sleeping")):
            status, _, answer = shared().ask(method, path)
            assert status == 404 and "--enable-dev-endpoints" in answer["error"]["message"], answer

    def paused(self, server):
        status, _, answer = server.ask("GET", "/is_paused")
        assert status == 200, answer
        return answer["is_paused"]

    def ok(self, server, path):
        status, _, answer = server.ask("POST", path)
        assert status == 200, answer
        return answer["status"]

    def test_what_is_wrong_is_named(self):
        with Server("--enable-dev-endpoints") as server:
            for path, part in (("/pause?mode=freeze", "the modes are abort, wait and keep"),
                               ("/pause?mod=keep", "`mod`"),
                               ("/pause?clear_cache=maybe", "clear_cache must be true or false"),
                               ("/pause?mode=" + "x" * 99, "99 bytes"),
                               ("/reset_prefix_cache?reset_running=1", "`reset_running`"),
                               ("/sleep?level=3", "level must be 1 or 2, not '3'")):
                status, _, answer = server.ask("POST", path)
                assert status == 400 and part in answer["error"]["message"], (path, answer)
            assert not self.paused(server)

    def test_requests_wait_while_the_ranks_sleep_and_go_on_as_if_nothing_had_been(self):
        body = {"prompt": "Once", "temperature": 0, "ignore_eos": True, "max_tokens": 2000}
        with Server("--enable-dev-endpoints", "--tp", "2") as server:
            whole = server.post("/v1/completions", body)[2]["choices"][0]["text"]
            for level in 1, 2:
                answers = []
                thread = threading.Thread(
                    target=lambda: answers.append(server.post("/v1/completions", body)))
                thread.start()
                wait_for("a running request", lambda: server.metric("vllm:num_requests_running"))
                assert self.ok(server, f"/sleep?level={level}") == "asleep"
                assert server.ask("GET", "/is_sleeping")[2] == {"is_sleeping": True}
                status, _, answer = server.ask("GET", "/ready")
                assert status == 503 and "is asleep" in answer["error"]["message"], answer
                steps = server.metric("tandem:steps_total")
                assert server.metric("tandem:steps_total") == steps and not answers
                assert self.ok(server, "/wake_up") == "awake"
                assert server.ask("GET", "/is_sleeping")[2] == {"is_sleeping": False}
                thread.join(60)
                assert answers[0][2]["choices"][0]["text"] == whole, answers

    def test_a_pause_ends_keeps_or_awaits_what_runs(self):
        with Server("--enable-dev-endpoints") as server:
            answers = []

            def ask():
                answers.append(server.post("/v1/completions", {
                    "prompt": "Once", "temperature": 0, "ignore_eos": True, "max_tokens": 3000}))

            def start():
                thread = threading.Thread(target=ask)
                thread.start()
                wait_for("a running request", lambda: server.metric("vllm:num_requests_running"))
                return thread

            thread = start()
            assert self.ok(server, "/pause?mode=keep") == "paused"
            assert self.paused(server)
            steps = server.metric("tandem:steps_total")
            assert server.ask("GET", "/health")[0] == 200
            status, _, answer = server.ask("GET", "/ready")
            assert status == 503 and "is paused" in answer["error"]["message"], answer
            status, _, answer = server.ask("POST", "/reset_prefix_cache")
            assert status == 409 and "1 requests run" in answer["error"]["message"], answer
            assert self.ok(server, "/reset_prefix_cache?reset_running_requests=true") == "reset"
            assert server.metric("tandem:steps_total") == steps
            assert self.ok(server, "/resume") == "resumed"
            thread.join()

            thread = start()
            assert self.ok(server, "/pause?mode=wait&clear_cache=false") == "paused"
            thread.join(5)
            assert not thread.is_alive() and self.ok(server, "/resume") == "resumed"

            thread = start()
            assert self.ok(server, "/pause") == "paused" and self.paused(server)
            thread.join(5)
            reasons = [answer["choices"][0]["finish_reason"] for _, _, answer in answers]
            assert reasons == ["length", "length", "abort"], reasons
            texts = [answer["choices"][0]["text"] for _, _, answer in answers]
            assert texts[0] == texts[1] and texts[0].startswith(texts[2]), texts

            late = threading.Thread(target=ask)
            late.start()
            wait_for("a waiting request", lambda: server.metric("vllm:num_requests_waiting") == 1)
            assert server.metric("vllm:num_requests_waiting_by_reason", reason="capacity") == 1
            self.ok(server, "/resume")
            late.join()
            assert answers[-1][2]["choices"][0]["text"] == texts[0], answers[-1]

    def test_a_drain_is_not_taken_back(self):
        control = "ipc://" + tandem.path("drained")
        with Server("--enable-dev-endpoints", "--control", control) as server:
            self.assertEqual(tandem.run("ctl", "--socket", control, "drain")[0], 0)
            status, _, answer = server.ask("POST", "/resume")
            self.assertEqual((status, "the engine drains for good" in answer["error"]["message"]), (503, True), answer)

    def test_a_client_that_leaves_while_it_waits_for_a_pause_is_harmless(self):
        with Server("--enable-dev-endpoints") as server:
            with server.open_stream():
                wait_for("a running request", lambda: server.metric("vllm:num_requests_running"))
                try:
                    server.ask("POST", "/pause?mode=wait", seconds=0.3)
                    raise AssertionError("it did not wait")
                except TimeoutError:
                    pass
                assert self.paused(server)
            wait_for("the end of what ran", lambda: server.num_running() == 0)
            assert self.ok(server, "/resume") == "resumed" and server.complete()["usage"]


if __name__ == "__main__":
    unittest.main()
