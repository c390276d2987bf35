"""tandem serve as its clients see it: plain HTTP, good and bad, on a tiny model with two ranks."""
import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import unittest

import tandem
from server import Server, children_of, model, shared, stand_still, wait_for

RANKS = ["--tp", "2"]


def refused(server, status, part, body, path="/v1/completions", **more):
    got, headers, answer = server.post(path, body, **more)
    assert got == status, (got, answer)
    assert part in answer["error"]["message"], answer
    assert answer["error"]["code"] == status and "type" in answer["error"], answer
    return answer["error"]


class Answers(unittest.TestCase):
    def test_a_completion_has_text_reason_and_usage(self):
        answer = shared().complete(max_tokens=8, ignore_eos=True)
        assert answer["object"] == "text_completion" and answer["model"] == "tiny", answer
        assert answer["choices"][0]["finish_reason"] == "length", answer
        assert re.fullmatch("fp_[0-9a-f]{8}-0", answer["system_fingerprint"]), answer
        assert answer["usage"]["completion_tokens"] == 8, answer
        assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8, answer

    def test_a_chat_is_answered_by_the_assistant(self):
        status, _, answer = shared().post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0})
        assert status == 200, answer
        assert answer["object"] == "chat.completion", answer
        assert answer["choices"][0]["message"]["role"] == "assistant", answer

    def test_a_stream_says_the_same_as_the_whole(self):
        whole = shared().complete(max_tokens=40, ignore_eos=True)
        events = shared().events({"prompt": "Hello", "temperature": 0, "max_tokens": 40,
                                  "ignore_eos": True, "stream_options": {"include_usage": True}})
        text = "".join(event["choices"][0]["text"] for event in events if event["choices"])
        assert text == whole["choices"][0]["text"], (text, whole)
        assert events[-1]["usage"] == whole["usage"], events[-1]
        assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][-1] == "length"

    def test_n_answers_differ_and_repeat_with_their_seed(self):
        ask = dict(n=3, seed=7, temperature=1.5, max_tokens=12, ignore_eos=True)
        first, again = shared().complete(**ask), shared().complete(**ask)
        texts = [choice["text"] for choice in first["choices"]]
        assert [choice["index"] for choice in first["choices"]] == [0, 1, 2], first
        assert len(set(texts)) > 1, texts
        assert texts == [choice["text"] for choice in again["choices"]], (first, again)

    def test_logprobs_come_when_asked_for(self):
        answer = shared().complete(max_tokens=4, logprobs=2, ignore_eos=True)
        logprobs = answer["choices"][0]["logprobs"]
        assert len(logprobs["token_logprobs"]) == 4, answer
        assert all(value <= 0 for value in logprobs["token_logprobs"]), answer
        assert "logprobs" not in answer["choices"][0] or logprobs["top_logprobs"], answer

    def test_a_stop_string_ends_and_is_cut_off(self):
        ask = dict(max_tokens=40, ignore_eos=True, temperature=1, seed=5)
        text = shared().complete(**ask)["choices"][0]["text"]
        stop = next(text[i:i + 2] for i in range(4, len(text) - 2)
                    if text[i:i + 2].isprintable() and text.find(text[i:i + 2]) == i
                    and "\ufffd" not in text[i:i + 2])
        choice = shared().complete(**ask, stop=[stop])["choices"][0]
        assert choice["finish_reason"] == "stop", choice
        assert choice["text"] == text[:text.index(stop)], (choice, stop)
        choice = shared().complete(**ask, stop=[stop], min_tokens=40)["choices"][0]
        assert choice["text"] == text, (choice, text)

    def test_32_streams_at_once_answer_as_one_alone(self):
        prompts = [f"Prompt {i} " + "x" * i for i in range(32)]
        ask = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
        alone = [shared().complete(prompt, **ask)["choices"][0]["text"] for prompt in prompts]

        def stream(prompt):
            events = shared().events({"prompt": prompt, **ask})
            return "".join(event["choices"][0]["text"] for event in events)

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            together = list(pool.map(stream, prompts))
        assert together == alone, [i for i in range(32) if together[i] != alone[i]]

    def test_streams_say_what_generate_says(self):
        prompts = [f"Offline {i}" for i in range(32)]
        ask = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
        requests = tandem.write_lines("requests.jsonl", [{"prompt": p, **ask} for p in prompts])
        code, out, err = tandem.run("generate", "--model", model(), "--requests", requests, "--json")
        assert code == 0, err
        offline = {line["index"]: line["text"] for line in map(json.loads, out.splitlines())}
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            online = list(pool.map(
                lambda prompt: shared().complete(prompt, **ask)["choices"][0]["text"], prompts))
        assert online == [offline[i] for i in range(32)]

    def test_tokens_of_a_text_make_the_text_again(self):
        status, _, answer = shared().post("/tokenize", {"prompt": "Grüße, 世界",
                                                        "return_token_strs": True})
        assert status == 200 and answer["count"] == len(answer["tokens"]), answer
        assert len(answer["token_strs"]) == answer["count"] and answer["max_model_len"] > 0, answer
        status, _, back = shared().post("/detokenize", {"tokens": answer["tokens"]})
        assert (status, back) == (200, {"prompt": "Grüße, 世界"}), back

    def test_messages_are_tokenized_as_chat_does(self):
        messages = [{"role": "user", "content": "Hi"}]
        status, _, answer = shared().post("/tokenize", {"messages": messages})
        assert status == 200, answer
        _, _, chat = shared().post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        assert answer["count"] == chat["usage"]["prompt_tokens"], (answer, chat)

    def test_messages_longer_than_the_context_are_counted(self):
        messages = [{"role": "user", "content": "Hi " * 20000}]
        status, _, answer = shared().post("/tokenize", {"messages": messages})
        assert status == 200 and answer["count"] > answer["max_model_len"] == 32768, status
        refused(shared(), 400, "32768", {"messages": messages}, path="/v1/chat/completions")

    def test_a_name_that_is_no_utf_8_is_repaired(self):
        control = f"ipc://{tandem.path('control')}"
        with Server("--served-model-name", b"caf\xe9", "--control", control) as server:
            _, _, models = server.ask("GET", "/v1/models")
            self.assertEqual([model["id"] for model in models["data"]], ["caf\ufffd"])
            self.assertEqual(server.complete(model="caf\ufffd")["model"], "caf\ufffd")
            self.assertIn('{model_name="caf\ufffd",', server.ask("GET", "/metrics")[2])
            for words in ["status"], ["metrics"]:
                code, out, err = tandem.run("ctl", "--socket", control, *words)
                self.assertEqual(code, 0, err)
                self.assertIn("caf\ufffd", out)

    def test_models_version_load_and_health_are_told(self):
        _, _, models = shared().ask("GET", "/v1/models")
        assert [model["id"] for model in models["data"]] == ["tiny"], models
        assert models["data"][0]["max_model_len"] == 32768, models
        assert "version" in shared().ask("GET", "/version")[2]
        assert shared().ask("GET", "/load")[2] == {"server_load": 0}
        health = shared().ask("GET", "/health")
        assert health[0] == 200 and health[2]["phase"] == "ready", health
        assert health[2]["ranks"] == health[2]["ranks_alive"] == 2, health
        for path in "/ping", "/ready", "/live":
            assert shared().ask("GET", path)[0] == 200, path


def serve_fails(*options):
    code, _, words = tandem.run("serve", "--model", model(), *options)
    return code, words


class Refusals(unittest.TestCase):
    def test_broken_json_is_told_with_line_and_column(self):
        error = refused(shared(), 400, "line 2, column", '{"prompt": "x",\n oops}',
                        headers={"Content-Type": "application/json"})
        assert error["type"] == "BadRequestError", error

    def test_unknown_fields_are_named(self):
        refused(shared(), 400, "temprature", {"prompt": "x", "temprature": 1})

    def test_values_out_of_range_are_named(self):
        error = refused(shared(), 400, "-1", {"prompt": "x", "temperature": -1})
        assert error["param"] == "temperature", error
        refused(shared(), 400, "top_p", {"prompt": "x", "top_p": 2})

    def test_a_prompt_longer_than_the_context_is_told_both_numbers(self):
        error = refused(shared(), 400, "32768", {"prompt": [5] * 40000})
        assert "40000" in error["message"], error

    def test_a_priority_is_told_what_it_needs(self):
        error = refused(shared(), 400, "Got priority 5 but Priority scheduling is not enabled",
                        {"prompt": "x", "priority": 5})
        assert "--scheduling-policy priority" in error["message"] and error["param"] == "priority", error
        shared().complete(priority=0)
        with Server("--scheduling-policy", "priority") as server:
            server.complete(priority=5)

    def test_a_client_that_excludes_every_token_is_told(self):
        ask = {"prompt": "x", "allowed_token_ids": [2], "min_tokens": 5}  # <|im_end|> alone, and no end
        refused(shared(), 400, "no token can be sampled", ask)
        shared().complete(**{**ask, "min_tokens": 0})

    def test_an_empty_prompt_is_refused(self):
        refused(shared(), 400, "", {"prompt": []})

    def test_another_model_is_not_found(self):
        refused(shared(), 404, "gpt-4", {"model": "gpt-4", "prompt": "x"})

    def test_other_content_types_are_refused(self):
        refused(shared(), 415, "application/json", '{"prompt": "x"}',
                headers={"Content-Type": "text/plain"})

    def test_invalid_utf_8_is_refused(self):
        refused(shared(), 400, "", b'{"prompt": "\xff\xfe"}',
                headers={"Content-Type": "application/json"})

    def test_wrong_methods_and_paths_are_told(self):
        status, headers, answer = shared().ask("GET", "/v1/completions")
        assert status == 405 and headers["Allow"] == "POST", (status, answer)
        assert shared().ask("POST", "/metrics", {})[0] == 405
        assert shared().ask("GET", "/nothing")[0] == 404
        status, headers, _ = shared().ask("OPTIONS", "/v1/completions")
        assert status == 204 and headers["Allow"] == "POST", status
        assert shared().ask("HEAD", "/health")[0] == 200

    def test_too_large_a_body_is_refused_with_the_numbers(self):
        with Server(*RANKS, "--max-body-bytes", "4096") as server:
            refused(server, 413, "the limit is 4096", {"prompt": "x" * 5000})
            assert server.complete()["usage"]

    def test_request_ids_come_back(self):
        _, headers, _ = shared().ask("GET", "/version", headers={"X-Request-Id": "mine-7"})
        assert headers["X-Request-Id"] == "mine-7", headers
        assert len(shared().ask("GET", "/version")[1]["X-Request-Id"]) == 32

    def test_a_key_is_asked_for_everywhere_but_at_health(self):
        with Server(*RANKS, env={"TANDEM_API_KEY": "s3cret"}) as server:
            for path in "/v1/models", "/metrics", "/version", "/load", "/nothing":
                assert server.ask("GET", path)[0] == 401, path
            for path in "/health", "/ready", "/live":
                assert server.ask("GET", path)[0] == 200, path
            for given in "Bearer s3cre", "Bearer s3crets", "Bearer ", "s3cret", "Basic s3cret":
                assert server.ask("GET", "/v1/models", headers={"Authorization": given})[0] == 401
            assert server.ask("GET", "/v1/models",
                              headers={"Authorization": "Bearer s3cret"})[0] == 200

    def test_other_machines_need_a_key(self):
        code, words = serve_fails("--host", "0.0.0.0", "--port", "0")
        assert code == 2 and "--allow-unauthenticated" in words and "--api-key" in words, words
        assert len(words.splitlines()) == 1, words

    def test_a_server_without_a_model_is_refused(self):
        self.assertEqual(tandem.run("serve", "--port", 0),
                         (2, "", "tandem serve: --model FILE is missing\n"))

    def test_a_port_in_use_is_one_sentence(self):
        code, words = serve_fails("--port", str(shared().port))
        assert code == 74 and f"port {shared().port} " in words and "in use" in words, words
        assert len(words.splitlines()) == 1, words


class Browsers(unittest.TestCase):
    """CORS: what a page of another origin may ask."""
    HERE, THERE = "https://here.example", "http://there.example:8080"

    def allowed(self, server, origin, **headers):
        """(status, the origin that a browser would let read the answer)."""
        status, got, _ = server.ask("GET", "/v1/models", headers={"Origin": origin, **headers})
        return status, got["Access-Control-Allow-Origin"]

    def preflight(self, server, origin):
        return server.ask("OPTIONS", "/v1/completions", headers={
            "Origin": origin, "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"})[:2]

    def test_no_page_may_ask_unless_it_is_said(self):
        self.assertEqual(self.allowed(shared(), self.HERE), (200, None))
        _, headers = self.preflight(shared(), self.HERE)
        self.assertFalse([name for name in headers if name.startswith("Access-Control-")])

    def test_pages_of_a_list_may(self):
        with Server("--allowed-origins", f"{self.HERE}, {self.THERE}", "--api-key", "s3cret") as server:
            key = {"Authorization": "Bearer s3cret"}
            for origin in self.HERE, self.THERE:
                self.assertEqual(self.allowed(server, origin, **key), (200, origin))
                self.assertEqual(self.allowed(server, origin), (401, origin))  # it may read why
                status, headers = self.preflight(server, origin)  # never has a key
                self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, origin))
                self.assertEqual(headers["Access-Control-Allow-Headers"], "authorization,content-type")
                self.assertIn("POST", headers["Access-Control-Allow-Methods"])
                self.assertEqual(headers["Vary"], "Origin")
            for origin in ("https://here.exampl", "https://here.example.org", "http://here.example",
                           "https://here.example,", "null", ""):
                self.assertEqual(self.allowed(server, origin, **key), (200, None), origin)
                self.assertEqual(self.preflight(server, origin)[0], 401, origin)
            self.assertEqual(server.ask("OPTIONS", "/v1/completions", headers={"Origin": self.HERE})[0], 401)

    def test_what_no_browser_says_is_refused(self):
        for origin in "https://here.example/", "https://Here.example", "here.example", "*", "://x", "https://":
            rc, _, err = tandem.run("serve", "--model", "x", "--port", "0", "--allowed-origins",
                                    f"{self.THERE},{origin}")
            self.assertEqual(rc, 2, err)
            self.assertIn(f"--allowed-origins has '{origin}'", err)

    def test_every_page_may_where_it_is_said(self):
        with Server("--allowed-origins", "*") as server:
            self.assertEqual(self.allowed(server, self.THERE), (200, self.THERE))
            status, headers, text = server.post("/v1/completions", {"prompt": "x", "stream": True},
                                                headers={"Origin": self.HERE})
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (200, self.HERE), text)
            self.assertIn("X-Request-Id", headers["Access-Control-Expose-Headers"])


class Clients(unittest.TestCase):
    def test_a_client_that_leaves_takes_its_request_with_it(self):
        aborted = shared().metric("vllm:request_success_total", finished_reason="abort")
        with shared().open_stream() as client:
            wait_for("its first tokens", lambda: b"data: " in client.recv(65536))
            assert shared().num_running() == 1
        wait_for("nothing running", lambda: shared().num_running() == 0)
        assert shared().metric("vllm:request_success_total", finished_reason="abort") == aborted + 1

    def test_a_client_that_leaves_before_its_whole_answer_takes_its_request_with_it(self):
        with shared().open_stream(stream=False):
            wait_for("a running request", lambda: shared().num_running() == 1)
        wait_for("nothing running", lambda: shared().num_running() == 0)

    def test_a_slow_reader_is_dropped_and_others_go_on(self):
        with Server(*RANKS, "--stream-buffer-bytes", "4096") as server:
            with server.open_stream(receive_bytes=4096, logprobs=5, n=8, temperature=1):
                wait_for("eight running sequences, if not dropped already",
                         lambda: server.num_running() == 8 or "dropped" in server.log_text())
                assert server.complete(max_tokens=4)["usage"]
                wait_for("the slow reader dropped", lambda: server.num_running() == 0, 60)
                assert "dropped" in server.log_text()
            assert server.complete()["usage"]

    def test_clients_that_never_read_cost_themselves_alone(self):
        with Server(*RANKS, "--stream-buffer-bytes", "16384") as server:
            def rss_kib():
                with open(f"/proc/{server.process.pid}/status") as file:
                    return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])

            def storm(num_dropped):
                """The most memory that it took with 200 of them; and what another client got meanwhile."""
                most, answers = 0, []
                with contextlib.ExitStack() as stack:
                    for _ in range(200):
                        stack.enter_context(server.open_stream(receive_bytes=4096, max_tokens=3000,
                                                               logprobs=5))
                    while server.log_text().count("dropped") < num_dropped:  # one by one
                        answers.append(server.complete(max_tokens=20, ignore_eos=True))
                        most = max(most, rss_kib())
                return most, {answer["choices"][0]["text"] for answer in answers}

            alone = server.complete(max_tokens=20, ignore_eos=True)["choices"][0]["text"]
            before = rss_kib()
            with open(f"/proc/{server.process.pid}/maps") as file:
                keeps_what_is_freed = "libasan" in file.read()
            storms = 1 if keeps_what_is_freed else 5
            memory, texts = zip(*(storm(200 * (i + 1)) for i in range(storms)))
            assert set.union(*texts) == {alone}, texts
            if not keeps_what_is_freed:
                # Each may hold its 16 KiB, one event more, and what a request takes; and gives it back.
                assert memory[0] - before < 200 * 128, (before, memory)
                assert memory[4] - memory[0] < 800 * 10, (before, memory)
            assert server.log_text().count("dropped") == 200 * storms, server.log_text()[-2000:]
            wait_for("the last of them aborted", lambda: server.metric(
                "vllm:request_success_total", finished_reason="abort") == 200 * storms)
            wait_for("their blocks", lambda: server.metric("vllm:kv_cache_usage_perc") == 0)

    def test_a_byte_now_and_then_does_not_hold_a_connection(self):
        with Server(*RANKS, "--request-timeout", "0.5") as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.sendall(b"GET /health HTTP/1.1\r\n")
                answer = b""
                started = time.monotonic()
                while b"408" not in answer and time.monotonic() - started < 5:
                    client.sendall(b"a")
                    client.settimeout(0.1)
                    try:
                        answer += client.recv(4096)
                    except TimeoutError:
                        pass
                assert b"408" in answer, answer


class Ends(unittest.TestCase):
    def test_sigterm_finishes_what_runs_and_exits_0(self):
        with Server(*RANKS) as server:
            answers = []
            ask = threading.Thread(target=lambda: answers.append(
                server.complete(max_tokens=2000, ignore_eos=True)))
            ask.start()
            wait_for("a running request", lambda: server.num_running() == 1)
            server.process.send_signal(signal.SIGTERM)

            def is_shut():
                try:
                    socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
                except (ConnectionRefusedError, ConnectionResetError):  # or it shut as we came
                    return True

            wait_for("no new connections", is_shut)
            ask.join(60)
            assert answers and answers[0]["usage"]["completion_tokens"] == 2000, answers
            assert server.process.wait(tandem.within(10)) == 0, server.log_text()

    def test_a_drain_has_an_end_and_tells_those_it_cuts_off(self):
        with Server(*RANKS, "--drain-timeout", "0.3") as server:
            with server.open_stream() as client:
                wait_for("a running request", lambda: server.num_running() == 1)
                server.process.send_signal(signal.SIGTERM)
                text = b""
                while piece := client.recv(1 << 20):
                    text += piece
            assert b"shutting down" in text and b"data: [DONE]" in text, text[-300:]
            assert server.process.wait(tandem.within(10)) == 124, server.log_text()

    def test_whoever_started_it_hears_of_its_life(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(tandem.path("notices"))
            notices.settimeout(10)
            with Server(*RANKS, env={"NOTIFY_SOCKET": tandem.path("notices"),
                                     "WATCHDOG_USEC": "400000"}) as server:
                heard = []

                def hear_until(word):
                    while not any(word in line for line in heard):
                        heard.extend(notices.recv(4096).decode().split("\n"))

                hear_until("WATCHDOG=1")
                assert heard.index("READY=1") < heard.index("WATCHDOG=1"), heard
                hear_until("the engine is ready")
                heard.clear()
                hear_until("WATCHDOG=1")
                assert server.complete()["usage"]
                server.process.send_signal(signal.SIGTERM)
                hear_until("STOPPING=1")
                assert server.process.wait(tandem.within(10)) == 0, server.log_text()

    def test_a_closed_stderr_is_no_client_s_socket(self):
        with Server(*RANKS, launcher=("sh", "-c", 'exec "$@" 2>&-', "sh")) as server:
            assert server.complete()["usage"]
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(tandem.within(10)) == 0

    def test_health_goes_on_while_ranks_are_replaced(self):
        with Server(*RANKS) as server:
            workers = children_of(server.process.pid)
            os.kill(workers[0], signal.SIGSTOP)  # a hang takes seconds to be found
            with server.open_stream(max_tokens=500) as client:
                wait_for("it to be found", lambda: "has been silent" in server.log_text())
                assert server.ask("GET", "/health")[0] == 200
                wait_for("its end", lambda: b"[DONE]" in client.recv(1 << 20))
            wait_for("readiness", lambda: server.ask("GET", "/ready")[0] == 200)
            assert server.metric("tandem:recoveries_total") == 1
            assert server.metric("tandem:worker_restarts_total", rank="0") + server.metric(
                "tandem:worker_restarts_total", rank="1") == 1
            assert server.metric("tandem:recovery_seconds_sum") > 0

    def test_a_machine_that_stands_still_loses_no_rank(self):
        """As one that is paused: heartbeats are late for all alike."""
        with Server(*RANKS) as server:
            for order in (1, -1):
                stand_still([server.process.pid, *children_of(server.process.pid)][::order], 2.6)
                assert server.complete()["usage"]
            assert server.metric("tandem:recoveries_total") == 0, server.log_text()

    def test_a_second_signal_ends_at_once(self):
        with Server(*RANKS) as server:
            with server.open_stream():
                wait_for("a running request", lambda: server.num_running() == 1)
                server.process.send_signal(signal.SIGINT)
                time.sleep(0.2)
                assert server.process.poll() is None
                server.process.send_signal(signal.SIGINT)
                assert server.process.wait(tandem.within(5)) == 1, server.log_text()

    def test_a_killed_worker_that_may_not_be_replaced_is_told_to_everyone_who_waits(self):
        with Server(*RANKS, "--max-restarts", "0") as server:
            workers = children_of(server.process.pid)
            assert len(workers) == 2, workers
            with server.open_stream() as stream, server.open_stream(stream=False) as whole:
                wait_for("two running requests", lambda: server.num_running() == 2)
                os.kill(workers[1], signal.SIGKILL)
                texts = []
                for client in stream, whole:
                    text = b""
                    while piece := client.recv(1 << 20):
                        text += piece
                    texts.append(text)
            assert b'"error"' in texts[0][-1000:], texts[0][-1000:]
            assert b"HTTP/1.1 50" in texts[1] and b'"error"' in texts[1], texts[1]
            assert server.process.wait(tandem.within(10)) != 0, server.log_text()
            wait_for("no orphans", lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 3)


class Numbers(unittest.TestCase):
    def test_metrics_are_what_prometheus_reads(self):
        try:
            from prometheus_client import parser
        except ImportError:
            self.skipTest("no prometheus_client (tests/system/requirements.txt)")
        shared().complete(max_tokens=8)
        _, headers, text = shared().ask("GET", "/metrics")
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers
        families = {family.name: family for family in parser.text_string_to_metric_families(text)}
        for name in ("num_requests_running", "kv_cache_usage_perc", "generation_tokens",
                     "request_success", "time_to_first_token_seconds", "e2e_request_latency_seconds"):
            assert f"vllm:{name}" in families, (name, list(families))
        for family in families.values():
            for sample in family.samples:
                assert sample.labels["model_name"] == "tiny", sample

    def test_a_prompt_is_counted_once_however_often_it_is_answered(self):
        names = [f"vllm:request_{of}_{part}" for of in ("params_n", "max_num_generation_tokens")
                 for part in ("count", "sum")]
        before = [shared().metric(name) for name in names]
        shared().complete(["a", "b"], n=3, temperature=1, max_tokens=5, ignore_eos=True)
        grown = [shared().metric(name) - was for name, was in zip(names, before)]
        self.assertEqual(grown, [2, 2 * 3, 2, 2 * 5])

    def test_memory_is_told_for_every_rank(self):
        for rank in ("0", "1"):
            of = {name: shared().metric("tandem:worker_memory_bytes", rank=rank, of=name)
                  for name in ("weights", "kv_cache", "workspace")}
            self.assertGreater(min(of.values()), 0, of)
            size, free = (shared().metric(f"tandem:device_memory_{name}_bytes", rank=rank)
                          for name in ("size", "free"))
            self.assertTrue(sum(of.values()) < size and 0 < free < size, (of, free, size))

    def test_an_idle_server_does_next_to_nothing(self):
        def cpu_seconds():
            with open(f"/proc/{shared().process.pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        wait_for("nothing running", lambda: shared().num_running() == 0)
        before = cpu_seconds()
        time.sleep(3)
        assert cpu_seconds() - before <= 0.03, cpu_seconds() - before


if __name__ == "__main__":
    unittest.main()
