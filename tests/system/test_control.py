"""tandem ctl beside a server at work: each command, who may give it, and what ctl exits with."""
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

import folders
import tandem
from server import Server, model as server_model, wait_for

OK, FAILED, USAGE, GONE, DENIED, TIMED_OUT = 0, 1, 2, 69, 77, 124


class Controlled(Server):
    """A server, and the address of its control socket, which it prints behind where it serves."""

    def __init__(self, *options, **more):
        super().__init__(*options, **more)
        line = self.process.stdout.readline().decode()
        match = re.fullmatch(r"tandem: control on (\S+)(?: with key (\S+))?\n", line)
        assert match, line
        self.control, self.key = match.groups()

    def ctl(self, *words, **more):
        return tandem.run("ctl", "--socket", self.control, *words, **more)

    def tell(self, *words, **more):
        """What a command answers, as JSON; it must go well."""
        code, out, err = self.ctl("--json", *words, **more)
        assert code == OK, (words, code, out, err)
        return json.loads(out)

    def refused(self, *words):
        """(exit status, sentence) of a command that must not go well."""
        code, out, err = self.ctl(*words)
        assert code != OK and out == "", (words, code, out, err)
        return code, err


class Look(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Controlled("--tp", "2", "--api-key", "hush")
        cls.addClassCleanup(cls.server.stop)

    def test_status_has_what_a_watcher_asks(self):
        status = self.server.tell("status")
        self.assertEqual(status["phase"], "ready")
        self.assertEqual(status["model"], "tiny")
        self.assertEqual(status["pid"], self.server.process.pid)
        for name in ["version", "build", "uptime_s", "requests_running", "requests_waiting", "kv_blocks",
                     "kv_blocks_used", "kv_cache_dtype", "kv_token_bytes", "recoveries", "steps", "progress_ms"]:
            self.assertIn(name, status)

    def test_every_rank_is_told_with_its_process(self):
        workers = self.server.tell("workers")
        self.assertEqual([worker["rank"] for worker in workers], [0, 1])
        for worker in workers:
            with open(f"/proc/{worker['pid']}/cmdline", "rb") as file:
                self.assertIn(b"worker", file.read())
            self.assertEqual(worker["host"], socket.gethostname())
            self.assertEqual((worker["state"], worker["restarts"]), ("ready", 0))
            self.assertGreaterEqual(worker["epoch"], 1)

    def test_people_get_tables(self):
        _, out, _ = self.server.ctl("workers")
        self.assertRegex(out.splitlines()[0], r"^rank +pid  host +state")
        self.assertEqual(len({len(line) for line in out.splitlines()}), 1)
        _, out, _ = self.server.ctl("status")
        self.assertRegex(out, r"(?m)^phase +ready$")
        self.assertEqual(self.server.ctl("requests")[1], "none\n")

    def test_metrics_and_stacks_are_text(self):
        self.assertIn("vllm:num_requests_running", self.server.ctl("metrics")[1])
        self.assertRegex(self.server.ctl("stacks")[1], r"(?s)== engine, .*== rank 0, .*== rank 1, ")
        self.assertEqual(self.server.ctl("health")[0], OK)

    def test_settings_are_told_and_secrets_are_not(self):
        self.assertEqual(self.server.tell("config", "get", "tp"), 2)
        settings = self.server.tell("config", "get")
        self.assertEqual(settings["served_model_name"], "tiny")
        self.assertEqual(settings["api_key"], "(secret)")
        self.assertEqual(self.server.refused("config", "get", "nope")[0], USAGE)

    def test_a_wrong_word_is_named_with_the_nearest(self):
        code, err = self.server.refused("statsu")
        self.assertEqual(code, USAGE)
        self.assertIn("'statsu' is no command; did you mean 'status'?", err)
        code, err = self.server.refused("config", "gte")
        self.assertEqual((code, "did you mean 'config get'?" in err), (USAGE, True))
        code, err = self.server.refused("pause", "soon")
        self.assertEqual((code, "usage: pause [abort|wait|keep]" in err), (USAGE, True))
        code, err = self.server.refused("drain", "--wait", "ever")
        self.assertEqual((code, "wait must be a number" in err), (USAGE, True))
        code, _, err = tandem.run("ctl", "--sokcet", "x", "status")
        self.assertEqual((code, "did you mean --socket?" in err), (USAGE, True))
        self.assertEqual(tandem.run("ctl")[0], USAGE)

    def test_nobody_there_is_told_apart(self):
        place = tandem.path("nobody")
        os.mkdir(place, 0o700)
        self.assertEqual(tandem.run("ctl", "--run-dir", place, "status")[0], GONE)
        self.assertEqual(tandem.run("ctl", "--socket", f"ipc://{place}/x", "status")[0], GONE)
        self.assertEqual(tandem.run("ctl", "--socket", "http://x", "status")[0], USAGE)

    def test_what_is_no_request_is_refused_and_harms_nobody(self):
        for data in [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 9 + b"\x7f" + b"\0" * 64,
                     struct.pack("<Q", 1 << 62) * 1000]:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(self.server.control[len("ipc://"):])
                peer.sendall(data)
        self.assertEqual(self.server.tell("status")["phase"], "ready")


class Act(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Controlled()
        cls.addClassCleanup(cls.server.stop)

    def test_a_request_is_listed_and_ended_by_any_of_its_names(self):
        for name in ["id", "name", "client_id"]:
            body = {"prompt": "Once", "max_tokens": 30000, "ignore_eos": True}
            answers = []
            client = threading.Thread(target=lambda: answers.append(self.server.ask(
                "POST", "/v1/completions", body, {"X-Request-Id": "mine"})))
            client.start()
            request, = wait_for("the request", lambda: [
                r for r in self.server.tell("requests") if r["state"] == "output"])
            self.assertEqual(request["client_id"], "mine")
            self.assertEqual(self.server.tell("abort", str(request[name])), {"aborted": 1})
            client.join(20)
            status, _, answer = answers[0]
            self.assertEqual((status, answer["choices"][0]["finish_reason"]), (200, "abort"))
            self.assertEqual(answer["id"], request["name"])
        self.assertEqual(self.server.refused("abort", "mine")[0], FAILED)

    def test_pause_and_resume(self):
        self.server.tell("pause", "keep")
        self.assertTrue(self.server.tell("status")["paused"])
        self.server.tell("resume")
        self.assertFalse(self.server.tell("status")["paused"])
        self.server.tell("reset-prefix-cache")
        self.server.complete()

    def test_live_settings_take_effect(self):
        self.server.tell("config", "set", "max_num_queued_reqs", "1")
        self.assertEqual(self.server.tell("config", "get", "max-num-queued-reqs"), 1)
        with self.server.open_stream():
            wait_for("the stream", lambda: self.server.tell("status")["requests_running"])
            self.assertEqual(self.server.post("/v1/completions", {"prompt": "x"})[0], 503)
        self.server.tell("config", "set", "max_num_queued_reqs", "0")
        self.server.tell("config", "set", "decode_slowdown", "0")
        wait_for("nothing runs", lambda: not self.server.tell("requests"))
        self.server.complete()
        code, err = self.server.refused("config", "set", "max_num_seqs", "7")
        self.assertEqual((code, "max_num_seqs is read at the start only" in err), (USAGE, True))
        code, err = self.server.refused("config", "set", "watermark", "7")
        self.assertEqual((code, "watermark must be 0 to 0.99, not 7" in err), (USAGE, True))
        self.assertEqual(self.server.tell("config", "get", "watermark"), 0)

    def test_the_log_level_changes_and_the_log_says_who_did_it(self):
        self.server.tell("log-level", "error")
        self.assertEqual(self.server.tell("log-level"), "error")
        self.server.tell("log-level", "info")
        self.assertRegex(self.server.log_text(), r"control: uid %d, pid \d+: log-level "
                         r'{"level":"error"}: done' % os.geteuid())

    def test_a_profile_is_told(self):
        self.server.tell("profile", "start")
        self.assertEqual(self.server.refused("profile", "start")[0], USAGE)
        self.server.complete(max_tokens=20)
        path = tandem.path("trace.json")
        self.assertEqual(self.server.tell("trace", "dump", path), path)
        report = self.server.tell("profile", "stop")
        self.assertRegex(report, r"engine +core +schedule")
        with open(path) as file:
            names = {event["name"] for event in json.load(file)["traceEvents"]}
        self.assertIn("execute_model", names)
        self.assertEqual(self.server.tell("trace", "dump", "here.json", cwd=tandem.path("")), tandem.path("here.json"))
        self.assertTrue(os.path.exists(tandem.path("here.json")))
        self.assertEqual(self.server.refused("profile", "stop")[0], USAGE)

    def test_what_can_not_be_done_is_said(self):
        code, err = self.server.refused("restart-worker", "0")
        self.assertEqual((code, "can't replace its ranks" in err), (FAILED, True))
        self.assertEqual(self.server.refused("restart-worker", "999")[0], USAGE)

    def test_a_client_that_does_not_wait(self):
        with self.server.open_stream():
            wait_for("the stream", lambda: self.server.tell("status")["requests_running"])
            code, _, err = self.server.ctl("--timeout", "0.1", "pause", "wait")
            self.assertEqual((code, "has not answered 'pause' in time" in err), (TIMED_OUT, True))
            self.server.tell("resume")
        self.server.complete()


class Ranks(unittest.TestCase):
    def test_an_engine_sleeps_and_wakes(self):
        with Controlled("--tp", "2") as server:
            before = server.complete()
            held = [server.metric("tandem:worker_memory_bytes", rank="1", of=of) for of in ("weights", "kv_cache")]
            self.assertEqual(len(server.tell("sleep")), 2)
            self.assertTrue(server.tell("status")["asleep"])
            self.assertEqual([server.metric("tandem:worker_memory_bytes", rank="1", of=of)
                              for of in ("weights", "kv_cache")], [held[0], 0])
            self.assertEqual([worker["kv_cache_mib"] for worker in server.tell("workers")], [0, 0])
            server.tell("wake")
            self.assertFalse(server.tell("status")["asleep"])
            self.assertEqual(server.metric("tandem:worker_memory_bytes", rank="1", of="kv_cache"), held[1])
            self.assertEqual(server.complete()["choices"], before["choices"])

    def test_ranks_that_sleep_without_weights_are_all_replaced_at_once(self):
        with Controlled("--tp", "3", "--max-restarts", "1", model_file=tandem.make_tiny_model(
                "six.gguf", max_position=4096, num_heads=6, num_kv_heads=3)) as server:
            before = server.complete()
            server.tell("sleep", "2")
            os.kill(server.tell("workers")[1]["pid"], signal.SIGKILL)
            wait_for("recovery", lambda: server.tell("status")["recoveries"] == 1, 20)
            self.assertFalse(server.tell("status")["asleep"])
            self.assertEqual(server.complete()["choices"], before["choices"])

    def test_weights_are_reloaded_and_rolled_back(self):
        with Controlled("--tp", "2") as server:
            told = server.tell("weights", "reload", server_model())
            self.assertEqual(told["version"], 1)
            self.assertEqual(server.tell("status")["weights_version"], 1)
            server.tell("weights", "rollback")
            server.tell("weights", "reload", os.path.basename(server_model()), cwd=tandem.path(""))
            code, err = server.refused("weights", "reload", "/no/such/file")
            self.assertIn("/no/such/file", err)
            server.complete()

    def test_a_rank_is_replaced_while_a_stream_goes_on(self):
        with Controlled("--tp", "2") as server, server.open_stream():
            wait_for("tokens", lambda: server.tell("status")["steps"] > 3)
            before = server.tell("workers")
            server.tell("restart-worker", "1")
            after = wait_for("the new rank", lambda: [
                workers for workers in [server.tell("workers")]
                if workers[1]["pid"] != before[1]["pid"] and workers[1]["state"] == "ready"], 20)[0]
            self.assertEqual(after[1]["restarts"], 1)
            self.assertEqual(server.tell("status")["recoveries"], 1)
            self.assertEqual(server.tell("requests")[0]["state"], "output")
            code, err = server.refused("restart-worker", "9")
            self.assertEqual((code, "there is no rank 9" in err), (FAILED, True))

    def test_weights_are_exchanged_for_all_ranks_or_for_none(self):
        other = tandem.make_tiny_model("other.gguf", max_position=32768, seed=7)
        with open(other, "rb") as file:
            whole = file.read()
        cut = tandem.write("cut.gguf", whole[:len(whole) // 2])
        narrow = tandem.make_tiny_model("narrow.gguf", max_position=32768, num_heads=2, num_kv_heads=1)
        with Controlled("--tp", "2") as server:
            def text():
                return server.complete(max_tokens=20, temperature=0)["choices"][0]["text"]

            old = text()
            self.assertEqual(server.tell("weights", "reload", other)["version"], 1)
            new = text()
            self.assertNotEqual(old, new)
            for path, why in (cut, "cut.gguf"), (narrow, "heads"), ("/nowhere", "/nowhere"):
                _, err = server.refused("weights", "reload", path)
                self.assertIn(why, err)
                self.assertEqual(text(), new)
            os.kill(server.tell("workers")[1]["pid"], signal.SIGKILL)  # whoever comes has the new ones
            wait_for("recovery", lambda: server.tell("status")["recoveries"] == 1, 20)
            self.assertEqual(text(), new)
            server.tell("weights", "reload", other)
            server.tell("weights", "rollback")
            self.assertEqual(text(), new)  # the same file twice
            server.tell("weights", "drop")
            server.refused("weights", "rollback")

    def test_weights_of_a_folder_are_exchanged_and_its_words_compared(self):
        folder, _ = folders.make("running", "llama", "BF16", 2)
        other, _ = folders.make("other", "llama", "F32", seed=7)
        with Controlled("--tp", "2", model_file=folder) as server:
            def text():
                return server.complete(max_tokens=20)["choices"][0]["text"]

            old = text()
            self.assertEqual(server.tell("weights", "reload", other)["version"], 1)
            new = text()
            self.assertNotEqual(old, new)
            os.kill(server.tell("workers")[1]["pid"], signal.SIGKILL)
            wait_for("recovery", lambda: server.tell("status")["recoveries"] == 1, 20)
            self.assertEqual(text(), new)
            words = [("tokenizer.json", lambda t: t.update(normalizer={"type": "NFC"}),
                      "is_nfc is false here, true there"),
                     ("generation_config.json", lambda g: g.update(eos_token_id=[2, 0]),
                      "num_more_eos_ids is 0 here, 1 there"),
                     ("tokenizer.json", lambda t: t["model"]["merges"].reverse(), "merge 0 is '\u0120 t' here")]
            for i, (file, change, why) in enumerate(words):
                changed, _ = folders.make(f"changed-{i}", "llama", "F32", seed=8)
                folders.edit(changed, file, change)
                _, err = server.refused("weights", "reload", changed)
                self.assertIn(f"{changed}: {why}", err)
                self.assertEqual(text(), new)

    def test_a_profile_has_every_rank(self):
        with Controlled("--tp", "2") as server:
            server.tell("trace", "start")
            server.complete(max_tokens=20)
            path = tandem.path("ranks.json")
            server.tell("trace", "dump", path)
            server.tell("trace", "stop")
            with open(path) as file:
                names = {event["args"]["name"] for event in json.load(file)["traceEvents"]
                         if event["name"] == "process_name"}
            self.assertEqual(names, {"engine", "worker.0", "worker.1"})
            self.assertFalse(os.path.exists(path + ".worker.0"))


class Hang(unittest.TestCase):
    def test_who_looks_is_answered_while_a_step_hangs(self):
        with Controlled("--tp", "2") as server, server.open_stream():
            wait_for("tokens", lambda: server.tell("status")["steps"] > 3)
            rank = server.tell("workers")[1]["pid"]
            os.kill(rank, signal.SIGSTOP)
            try:
                wait_for("no progress", lambda: server.tell("status")["progress_ms"] > 300)
                slowest = 0
                for words in [["status"], ["health"], ["workers"], ["requests"], ["metrics"],
                              ["config", "get"]]:
                    began = time.monotonic()
                    server.tell(*words)
                    slowest = max(slowest, time.monotonic() - began)
                print(f"# slowest of six: {slowest * 1000:.0f} ms, ctl's own start included")
                self.assertLess(slowest, 2)
                self.assertIn("rank 1", server.ctl("stacks")[1])
                code, _, _ = server.ctl("--timeout", "0.2", "reset-prefix-cache")
                self.assertEqual(code, TIMED_OUT)
            finally:
                os.kill(rank, signal.SIGCONT)
            before = server.tell("status")["steps"]
            wait_for("the next step", lambda: server.tell("status")["steps"] > before)


class Ends(unittest.TestCase):
    def test_drain_waits_and_shutdown_ends(self):
        with Controlled("--tp", "2") as server:
            stream = server.open_stream()
            wait_for("the stream", lambda: server.tell("status")["requests_running"])
            code, err = server.refused("drain", "--wait", "0.2")
            self.assertEqual((code, "1 requests are not answered yet" in err), (TIMED_OUT, True))
            self.assertEqual(server.tell("status")["phase"], "draining")
            code, err = server.refused("health")
            self.assertEqual((code, "draining" in err), (FAILED, True))
            self.assertEqual(server.post("/v1/completions", {"prompt": "x"})[0], 503)
            code, err = server.refused("resume")
            self.assertEqual((code, "the engine drains for good" in err), (FAILED, True))
            stream.close()
            server.tell("drain", "--wait", "20")
            server.tell("shutdown")
            self.assertEqual(server.process.wait(tandem.within(20)), 0)
            self.assertEqual(server.ctl("status")[0], GONE)

    def test_what_is_frozen_goes_on_though_it_drains(self):
        with Controlled() as server, server.open_stream(max_tokens=3000):
            wait_for("the stream", lambda: server.tell("status")["requests_running"])
            server.tell("pause", "keep")
            server.tell("drain")
            server.tell("resume")
            server.tell("drain", "--wait", "30")

    def test_shutdown_now_cuts_off(self):
        with Controlled() as server, server.open_stream():
            wait_for("the stream", lambda: server.tell("status")["requests_running"])
            server.tell("shutdown", "now")
            self.assertEqual(server.process.wait(tandem.within(20)), FAILED)

    def test_the_only_engine_of_a_place_is_found(self):
        place = tandem.path("place")
        os.mkdir(place, 0o700)
        find = ["ctl", "--run-dir", place, "--json", "status"]
        with Controlled("--run-dir", place, "--tp", "2"):
            self.assertEqual(tandem.run(*find)[0], OK)
            with Controlled("--run-dir", place):
                code, _, err = tandem.run(*find)
                self.assertEqual((code, err.count("--socket ipc://")), (USAGE, 2))
            self.assertEqual(tandem.run(*find)[0], OK)
        self.assertEqual(tandem.run(*find)[0], GONE)
        self.assertEqual(os.listdir(place), [])

    def test_an_address_is_not_taken_from_another(self):
        address = "ipc://" + tandem.path("mine")
        with Controlled("--control", address) as server:
            code, _, err = tandem.run("serve", "--model", tandem.path("serve.gguf"), "--port", "0",
                                      "--control", address)
            self.assertEqual((code, "another process listens on" in err), (74, True))
            server.tell("status")
        self.assertFalse(os.path.exists(tandem.path("mine")))
        code, _, err = tandem.run("serve", "--model", tandem.path("serve.gguf"), "--port", "0",
                                  "--control", "tcp://127.0.0.1:0")
        self.assertEqual((code, "--control-keys FILE" in err), (USAGE, True))

    def test_none_turns_it_off(self):
        with Server("--control", "none") as server:
            server.complete()
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.stdout.read(), b"")


class Keys(unittest.TestCase):
    @staticmethod
    def make(name):
        path = tandem.path(name)
        code, out, err = tandem.run("ctl", "keygen", path)
        assert code == OK and os.stat(path).st_mode & 0o777 == 0o600, err
        return path, out.strip()

    def test_over_tcp_a_key_decides_who_may_what(self):
        admin, admin_public = self.make("admin.key")
        reader, reader_public = self.make("reader.key")
        stranger, _ = self.make("stranger.key")
        keys = tandem.write("keys", f"# who may\n{admin_public} admin alice\n{reader_public} read\n")

        with Controlled("--control", "tcp://127.0.0.1:0", "--control-keys", keys) as server:
            def ctl(key, *words):
                return server.ctl("--timeout", "10", "--key", key, "--server-key", server.key, *words)

            self.assertEqual(ctl(admin, "pause")[0], OK)
            self.assertEqual(ctl(admin, "resume")[0], OK)
            self.assertEqual(ctl(reader, "status")[0], OK)
            code, _, err = ctl(reader, "pause")
            self.assertEqual((code, "may read only; pause wants operate" in err), (DENIED, True))
            code, _, err = ctl(stranger, "status")
            self.assertEqual((code, "does not know our key" in err), (DENIED, True))
            code, _, _ = server.ctl("--timeout", "10", "--key", admin, "--server-key",
                                    reader_public, "status")
            self.assertEqual(code, DENIED)
            code, _, err = server.ctl("status")
            self.assertEqual((code, "wants a key" in err), (USAGE, True))
            with socket.create_connection(server.control[len("tcp://"):].rsplit(":", 1)) as peer:
                peer.sendall(b"\xff" * 9 + b"\x7f" + b"GET / HTTP/1.1\r\n\r\n" * 1000)
            self.assertEqual(ctl(admin, "status")[0], OK)
            self.assertIn("control: alice: pause {}: done", server.log_text())

    def test_a_wrong_line_is_named(self):
        _, public = self.make("line.key")
        keys = tandem.write("wrong", f"{public} admin\n\n{public[:-1]} read\n")
        code, _, err = tandem.run("serve", "--model", tandem.path("serve.gguf"), "--port", "0",
                                  "--control", "tcp://127.0.0.1:0", "--control-keys", keys)
        self.assertEqual((code, "line 3: " in err, "is no key" in err), (USAGE, True, True))


class Stranger(unittest.TestCase):
    @unittest.skipUnless(os.geteuid() == 0, "becoming another user needs root")
    def test_another_user_gets_nothing_even_where_the_files_let_it(self):
        folder = tandem.path("open")
        os.mkdir(folder)
        os.chmod(tandem.path(""), 0o755)
        os.chmod(folder, 0o755)
        with Controlled("--control", f"ipc://{folder}/socket") as server:
            self.assertEqual(os.stat(folder + "/socket").st_mode & 0o777, 0o600)
            os.chmod(folder + "/socket", 0o666)
            done = subprocess.run([tandem.PROGRAM, "ctl", "--timeout", "5", "--socket",
                                   server.control, "pause"], capture_output=True, user=65534,
                                  group=65534, extra_groups=[])
            self.assertIn(done.returncode, [GONE, DENIED], done)
            self.assertFalse(server.tell("status")["paused"])


class Completion(unittest.TestCase):
    def test_the_script_of_the_repository_is_what_the_program_makes(self):
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        with open(os.path.join(root, "deploy", "completions", "tandem.bash")) as file:
            self.assertEqual(tandem.run("ctl", "completion", "bash")[1], file.read())

    def test_it_completes(self):
        script = tandem.write("completion", tandem.run("ctl", "completion", "bash")[1])

        def complete(*words):
            line = " ".join(f"'{word}'" for word in words)
            done = subprocess.run(
                ["bash", "-c", f". {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
                 "_tandem; echo ${COMPREPLY[*]}"], capture_output=True, check=True)
            self.assertEqual(done.stderr, b"")
            return done.stdout.decode().split()

        self.assertEqual(complete("tandem", "ctl", "dra"), ["drain"])
        self.assertEqual(complete("tandem", "ctl", "--socket", "x", "config", ""), ["get", "set"] + [
            "--socket", "--key", "--server-key", "--json", "--timeout", "--run-dir"])
        self.assertEqual(complete("tandem", "ctl", "pause", "k"), ["keep"])
        self.assertEqual(complete("tandem", "ctl", "drain", "--w"), ["--wait"])


if __name__ == "__main__":
    unittest.main()
