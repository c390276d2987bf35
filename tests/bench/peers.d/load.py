"""A light client of OpenAI's completions: many streams, and when each of their tokens came."""
import asyncio
import json
import random
import time
from typing import NamedTuple

from contestants import Failed


class Request(NamedTuple):
    prompt: list  # token ids
    max_tokens: int
    at: float = 0  # seconds after the start


class Stream:
    """What came of a request: the seconds, after the start, of its asking and of each event."""

    def __init__(self, request):
        self.request, self.asked, self.events, self.problem = request, None, [], None
        self.is_over = asyncio.Event()

    def first_token_s(self):
        return self.events[0] - self.asked

    def gaps(self):
        """(begin, end) of the waits between events."""
        return list(zip(self.events, self.events[1:]))


def random_prompt(length, *seed):
    # Ids past those of control tokens, within the vocabularies of all models here. No two prompts
    # begin alike, so no server can reuse what it has computed.
    generator = random.Random(repr(seed))
    return [generator.randrange(1000, 40000) for _ in range(length)]


async def read_stream(server, stream, start):
    body = json.dumps({"model": server.model, "prompt": stream.request.prompt, "temperature": 0,
                       "max_tokens": stream.request.max_tokens, "ignore_eos": True, "stream": True})
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n")
    stream.asked = time.perf_counter() - start
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write((head + body).encode())
        last = b""
        while True:
            piece = await reader.read(65536)
            now = time.perf_counter() - start
            # An event begins a line, and text in JSON has no bare newline.
            seen = last[-8:] + piece
            stream.events += [now] * seen.count(b"\ndata: {")
            last = (last + piece)[-2000:]
            if not piece or b"\ndata: [DONE]" in seen:
                break
        if b"length" not in last:
            stream.problem = f"a stream ended with {last[-200:]!r}"
        # The words that close a stream may come as an event of their own.
        del stream.events[stream.request.max_tokens:]
    finally:
        writer.close()


async def follow(server, request, start):
    stream = Stream(request)
    await asyncio.sleep(max(0, request.at - (time.perf_counter() - start)))
    try:
        await read_stream(server, stream, start)
    except OSError as error:
        stream.problem = str(error)
    return stream


async def all_streams(server, requests):
    start = time.perf_counter()
    streams = await asyncio.gather(*(follow(server, request, start) for request in requests))
    return streams, time.perf_counter() - start


def run_load(server, requests, timeout=600):
    """The streams of all requests, and the seconds that they took."""
    try:
        streams, seconds = asyncio.run(asyncio.wait_for(all_streams(server, requests), timeout))
    except asyncio.TimeoutError:
        raise Failed(f"the load was not answered within {timeout} s") from None
    bad = [stream.problem or "a stream had no event" for stream in streams
           if stream.problem or not stream.events]
    if bad:
        raise Failed(f"{len(bad)} of {len(streams)} requests failed: {bad[0]}")
    return streams, seconds


async def disturbed(server, streams, disturber, quiet_s):
    start = time.perf_counter()
    tasks, watched = [], [Stream(request) for request in streams]
    for stream in watched:
        tasks.append(asyncio.create_task(read_stream(server, stream, start)))
    while not all(stream.events for stream in watched):
        await asyncio.sleep(0.02)
        for task in tasks:
            if task.done():
                task.result()
                raise Failed("a stream ended before the others had begun")
    quiet_from = time.perf_counter() - start
    await asyncio.sleep(quiet_s)
    late = Stream(disturber)
    await read_stream(server, late, start)
    await asyncio.sleep(0.2)
    ended = sum(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if ended or not late.events:
        raise Failed(f"{ended} streams ended before the long prompt had its token" if ended
                     else late.problem or "the long prompt had no answer")
    return watched, late, quiet_from


def run_disturbed(server, streams, disturber, quiet_s=4, timeout=300):
    """(waits of the streams while quiet, those until the disturber has its token, its own wait)."""
    try:
        watched, late, quiet_from = asyncio.run(
            asyncio.wait_for(disturbed(server, streams, disturber, quiet_s), timeout))
    except asyncio.TimeoutError:
        raise Failed(f"the long prompt was not answered within {timeout} s") from None
    except OSError as error:
        raise Failed(str(error)) from error
    gaps = [gap for stream in watched for gap in stream.gaps()]
    quiet = [end - begin for begin, end in gaps if begin >= quiet_from and end <= late.asked]
    busy = [end - begin for begin, end in gaps if end > late.asked and begin < late.events[0]]
    return quiet, busy, late.first_token_s()
