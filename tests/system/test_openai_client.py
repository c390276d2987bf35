"""The openai package, as people use it, against tandem serve."""
import concurrent.futures
import sys
import unittest

try:
    import openai
except ImportError:
    print("skipped: no Python package openai (tests/system/requirements.txt)")
    sys.exit(77)

from server import shared, wait_for


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


class OpenaiClient(unittest.TestCase):
    def test_models_are_listed(self):
        server = shared()
        assert [model.id for model in client_of(server).models.list()] == ["tiny"]

    def test_completions_are_made(self):
        answer = client_of(shared()).completions.create(model="tiny", prompt="Hello", max_tokens=6,
                                                        temperature=0, logprobs=2)
        assert answer.usage.completion_tokens <= 6
        assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens

    def test_chats_are_answered_with_logprobs(self):
        answer = client_of(shared()).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=6, temperature=0,
            logprobs=True, top_logprobs=3)
        assert answer.choices[0].message.role == "assistant"
        content = answer.choices[0].logprobs.content
        assert len(content) == answer.usage.completion_tokens
        assert all(len(token.top_logprobs) == 3 for token in content)

    def test_a_text_is_scored_by_its_echo(self):
        ask = dict(model="tiny", prompt="Hello there", echo=True, logprobs=1, temperature=0)
        alone = client_of(shared()).completions.create(**ask, max_tokens=0)
        assert alone.choices[0].text == "Hello there" and alone.usage.completion_tokens == 0
        scores = alone.choices[0].logprobs
        assert scores.token_logprobs[0] is None and all(x < 0 for x in scores.token_logprobs[1:])
        assert len(scores.tokens) == alone.usage.prompt_tokens
        whole = client_of(shared()).completions.create(**ask, max_tokens=3)
        assert whole.choices[0].logprobs.token_logprobs[:len(scores.tokens)] == scores.token_logprobs
        chunks = list(client_of(shared()).completions.create(**ask, max_tokens=3, stream=True))
        streamed = [x for chunk in chunks if chunk.choices[0].logprobs
                    for x in chunk.choices[0].logprobs.token_logprobs]
        assert streamed == whole.choices[0].logprobs.token_logprobs
        assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text

    def test_vllms_fields_come_by_extra_body(self):
        answer = client_of(shared()).completions.create(
            model="tiny", prompt="Hello there", max_tokens=2, temperature=0,
            extra_body={"prompt_logprobs": 2, "bad_words": ["x"]})
        scores = answer.choices[0].prompt_logprobs
        assert len(scores) == answer.usage.prompt_tokens and scores[0] is None
        assert all(2 <= len(score) <= 3 for score in scores[1:])

    def test_chats_stream_with_usage(self):
        ask = dict(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=20,
                   temperature=0, extra_body={"ignore_eos": True})
        client = client_of(shared())
        whole = client.chat.completions.create(**ask)
        text, usage, reason = "", None, None
        for chunk in client.chat.completions.create(stream=True,
                                                    stream_options={"include_usage": True}, **ask):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
        assert text == whole.choices[0].message.content
        assert usage == whole.usage and reason == "length"

    def test_n_comes_with_its_indices(self):
        answer = client_of(shared()).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], n=3, max_tokens=4)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]

    def test_errors_are_of_their_kind(self):
        client = client_of(shared())
        for kind, ask in ((openai.BadRequestError, {"model": "tiny", "temperature": -1}),
                          (openai.NotFoundError, {"model": "other"})):
            try:
                client.completions.create(prompt="x", **ask)
            except kind as error:
                assert error.body["message"], error
            else:
                raise AssertionError(f"{ask} was answered")

    def test_closing_a_stream_aborts_its_request(self):
        server = shared()
        stream = client_of(server).completions.create(model="tiny", prompt="Once", max_tokens=30000,
                                                      stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        wait_for("a running request", lambda: server.num_running() == 1)
        stream.close()
        wait_for("nothing running", lambda: server.num_running() == 0)

    def test_32_clients_stream_at_once(self):
        server = shared()

        def stream(i):
            chunks = client_of(server).completions.create(
                model="tiny", prompt=f"Prompt {i}", max_tokens=16, stream=True, temperature=0,
                extra_body={"ignore_eos": True})
            return "".join(chunk.choices[0].text for chunk in chunks)

        alone = [stream(i) for i in range(32)]
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            assert list(pool.map(stream, range(32))) == alone


if __name__ == "__main__":
    unittest.main()
