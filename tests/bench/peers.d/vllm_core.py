"""Measures the parts of vLLM's engine that core-loop compares with ours, without a model.

A line on stdin names what is wanted ("step 256 async"); a line of JSON on stdout gives its figures,
by the names that `tandem bench` gives its own, or {"error": SENTENCE}. The first line tells vLLM's
version. The requests are those of `tandem bench`: prompts of some 512 tokens, staggered so that in
each step one of 16 opens a KV block; prefix caching is on.
"""
import asyncio
import base64
import copyreg
import gc
import io
import json
import multiprocessing
import os
import pickle
import statistics
import sys
import tempfile
import time

os.environ.update(VLLM_TARGET_DEVICE="cpu", VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1",
                  HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import mistral_common
import numpy
import torch
import vllm
import xgrammar
from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, _reduce_tensor
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from vllm_null_executor import NullExecutor

BLOCK_SIZE = 16
VOCAB_SIZE = 131072  # of the vocabulary that mistral_common brings along
EOS = 2
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 16, "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": EOS, "torch_dtype": "float16",
}
model_folder = tempfile.TemporaryDirectory(prefix="vllm-core-")


# For what takes vLLM milliseconds in one thread: on a busy machine the time of day would count the
# others' turns in it too, and not in what takes us microseconds.
cpu_clock = time.thread_time


def median_us(seconds):
    return statistics.median(seconds) * 1e6


def timed(call, times):
    """The seconds of each of so many calls; the first one more, to warm up, is not among them."""
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


# ---- requests that decode ------------------------------------------------------------------------

def make_scheduler(num_running, async_scheduling, max_len=2048):
    """As vLLM's own tests make one: (scheduler, config)."""
    config = VllmConfig(
        model_config=ModelConfig(model=model_folder.name, dtype="float16",
                                 skip_tokenizer_init=True, max_model_len=32768),
        scheduler_config=SchedulerConfig(
            max_num_seqs=num_running, max_num_batched_tokens=8192, max_model_len=32768,
            enable_chunked_prefill=True, is_encoder_decoder=False, watermark=0.0,
            async_scheduling=async_scheduling),
        cache_config=CacheConfig(block_size=BLOCK_SIZE, enable_prefix_caching=True),
        parallel_config=ParallelConfig())
    spec = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1,
                             dtype=torch.float32)
    num_blocks = num_running * (max_len // BLOCK_SIZE + 1)
    config.cache_config.num_gpu_blocks = num_blocks
    register_all_kvcache_specs(config)
    scheduler = (AsyncScheduler if async_scheduling else Scheduler)(
        vllm_config=config, block_size=BLOCK_SIZE, log_stats=True,
        kv_cache_config=KVCacheConfig(num_blocks=num_blocks, kv_cache_tensors=[],
                                      kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config))
    scheduler.use_v2_model_runner = True
    return scheduler, config


def sampling_params(max_tokens=1 << 14, **more):
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **more)
    params.update_from_generation_config({}, EOS)
    return params


def make_request(number, num_prompt, **params):
    return Request(request_id=f"cmpl-{number:032x}-0", pooling_params=None,
                   prompt_token_ids=[3 + (number + 31 * i) % 32000 for i in range(num_prompt)],
                   sampling_params=sampling_params(**params), block_hasher=block_hasher)


def answer_to(plan, tokens):
    names = list(plan.num_scheduled_tokens)
    return ModelRunnerOutput(req_ids=names, sampled_token_ids=tokens,
                             req_id_to_index={name: i for i, name in enumerate(names)})


def made_up_answer(scheduler, plan):
    return answer_to(plan, [[] if scheduler.requests[name].is_prefill_chunk else [7]
                            for name in plan.num_scheduled_tokens])


def decoding(num_running, async_scheduling=False):
    """A scheduler whose requests have all computed their prompts."""
    scheduler, _ = make_scheduler(num_running, async_scheduling)
    for number in range(num_running):
        scheduler.add_request(make_request(number, 512 + number % BLOCK_SIZE))
    while any(request.num_output_tokens == 0 for request in scheduler.requests.values()):
        plan = scheduler.schedule()
        scheduler.update_from_output(plan, made_up_answer(scheduler, plan))
    return scheduler


# ---- what is measured ----------------------------------------------------------------------------

def measure_step(num_running, mode):
    """In the order of EngineCore.step and step_with_batch_queue."""
    scheduler, last = decoding(num_running, mode == "async"), None
    schedule, update, clock = [], [], cpu_clock
    gc.collect()
    gc.freeze()  # as EngineCore does
    for _ in range(320 if num_running < 1024 else 100):
        start = clock()
        plan = scheduler.schedule()
        scheduled = clock() - start
        assert plan.total_num_scheduled_tokens == num_running
        step = plan, made_up_answer(scheduler, plan)
        back, last = (last if mode == "async" else step), step
        if not back:
            continue
        start = clock()
        scheduler.update_from_output(*back)
        update.append(clock() - start)
        schedule.append(scheduled)
    gc.unfreeze()
    return {"schedule_us": median_us(schedule), "update_us": median_us(update),
            "total_us": median_us([sum(both) for both in zip(schedule, update)])}


def message_pickle(message):
    """The bytes that MessageQueue.enqueue makes, as it makes them."""
    with io.BytesIO() as out:
        pickler = pickle.Pickler(out, protocol=pickle.HIGHEST_PROTOCOL,
                                 buffer_callback=lambda buffer: True)
        pickler.dispatch_table = {**copyreg.dispatch_table, torch.Tensor: _reduce_tensor}
        pickler.dump(message)
        return out.getvalue()


def measure_wire(num_running):
    message = "execute_model", (decoding(num_running).schedule(),), {}, 0
    data = message_pickle(message)
    encode = median_us(timed(lambda: message_pickle(message), 2000))
    decode = median_us(timed(lambda: pickle.loads(data), 2000))
    return {"bytes": len(data), "encode_us": encode, "decode_us": decode,
            "both_us": encode + decode}


def measure_admit(num_prompt):
    scheduler, _ = make_scheduler(1, True, max_len=4 * num_prompt)
    frames = [bytes(frame) for frame in MsgpackEncoder().encode(EngineCoreRequest(
        request_id=f"cmpl-{0:032x}-0", sampling_params=sampling_params(256), pooling_params=None,
        prompt_token_ids=[3 + 31 * i % 32000 for i in range(num_prompt)], mm_features=None,
        arrival_time=time.time(), lora_request=None, cache_salt=None, data_parallel_rank=None))]
    decoder, seconds = MsgpackDecoder(EngineCoreRequest), []
    for _ in range(300):
        start = cpu_clock()
        request = Request.from_engine_core_request(decoder.decode(frames), block_hasher)
        scheduler.add_request(request)
        seconds.append(cpu_clock() - start)
        scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
    return {"us": median_us(seconds)}


def null_worker(rank, handle, pipe, answer):
    """As WorkerProc.worker_busy_loop; only rank 0 is asked to answer, once for each call."""
    calls, answers = MessageQueue.create_from_handle(handle, rank), MessageQueue(1, 1)
    pipe.send(answers.export_handle())
    calls.wait_until_ready()
    answers.wait_until_ready()
    while True:
        method, _, _, output_rank = calls.dequeue(indefinite=True)
        if method == "stop":
            return
        if output_rank == rank:
            answers.enqueue(("SUCCESS", answer if method == "sample_tokens" else None))


def measure_rpc(num_running, num_ranks):
    """A step of MultiprocExecutor: two calls to all ranks through shared memory, two answers."""
    scheduler = decoding(num_running)
    plan = scheduler.schedule()
    context = multiprocessing.get_context("fork")
    calls = MessageQueue(num_ranks, num_ranks, max_chunk_bytes=24 << 20)
    pipes, workers = [], []
    for rank in range(num_ranks):
        ours, theirs = context.Pipe()
        workers.append(context.Process(
            target=null_worker, daemon=True,
            args=(rank, calls.export_handle(), theirs, made_up_answer(scheduler, plan))))
        workers[-1].start()
        pipes.append(ours)
    answers = [MessageQueue.create_from_handle(pipe.recv(), 0) for pipe in pipes]
    for queue in [calls, *answers]:
        queue.wait_until_ready()

    def step():
        calls.enqueue(("execute_model", (plan,), {}, 0))
        calls.enqueue(("sample_tokens", (None,), {}, 0))
        answers[0].dequeue(timeout=60)
        answers[0].dequeue(timeout=60)

    timed(step, 100)
    seconds = sorted(timed(step, 2000))
    calls.enqueue(("stop", (), {}, None))
    for worker in workers:
        worker.join()
    return {"p50_us": median_us(seconds), "p99_us": seconds[len(seconds) * 99 // 100] * 1e6}


SCHEMA = json.dumps({"type": "array", "items": {
    "type": "object", "required": ["name", "age", "kind"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"},
                   "kind": {"enum": ["a", "bb", "ccc"]},
                   "tags": {"type": "array", "items": {"type": "string"}}}}})


def xgrammar_backend(config):
    """vLLM's, on a vocabulary of real words: its constructor would want a tokenizer's folder."""
    path = os.path.join(os.path.dirname(mistral_common.__file__), "data", "tekken_240911.json")
    with open(path, encoding="utf-8") as file:
        words = json.load(file)["vocab"]
    vocab = [b"<SPECIAL_%d>" % i for i in range(1000)]
    vocab += [base64.b64decode(word["token_bytes"]) for word in words[:VOCAB_SIZE - len(vocab)]]
    backend = XgrammarBackend.__new__(XgrammarBackend)
    backend.vllm_config, backend.tokenizer, backend.vocab_size = config, None, VOCAB_SIZE
    backend.disable_any_whitespace, backend.num_speculative_tokens = True, 0
    backend.compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo(vocab, xgrammar.VocabType.RAW, vocab_size=VOCAB_SIZE,
                               stop_token_ids=[EOS]), max_threads=8, cache_enabled=True)
    return backend


def measure_mask(num_running):
    """Each request writes JSON to a schema: whichever of the allowed tokens chance has it be."""
    scheduler, config = make_scheduler(num_running, False)
    backend = scheduler.structured_output_manager.backend = xgrammar_backend(config)
    for number in range(num_running):
        request = make_request(number, 64,
                               structured_outputs=StructuredOutputsParams(json=SCHEMA))
        request.structured_output_request.grammar = backend.compile_grammar(
            StructuredOutputOptions.JSON, SCHEMA, {EOS})
        scheduler.add_request(request)
    chance, fill, encode, num_bytes = numpy.random.default_rng(0), [], [], 0
    while len(fill) < 60:
        plan = scheduler.schedule()
        start = time.perf_counter()
        masks = scheduler.get_grammar_bitmask(plan)
        filled = time.perf_counter()
        tokens = {}
        if masks is not None:
            num_bytes = len(message_pickle(("sample_tokens", (masks,), {}, 0)))
            if len(masks.structured_output_request_ids) == num_running:
                encode.append(time.perf_counter() - filled)
                fill.append(filled - start)
            bits = numpy.unpackbits(masks.grammar_bitmask.view(numpy.uint8), axis=1,
                                    bitorder="little")
            bits[:, EOS] = 0
            for name, row in zip(masks.structured_output_request_ids, bits):
                allowed = numpy.flatnonzero(row)
                tokens[name] = [int(chance.choice(allowed)) if len(allowed) else EOS]
        scheduler.update_from_output(plan, answer_to(
            plan, [tokens.get(name, []) for name in plan.num_scheduled_tokens]))
    return {"fill_us": median_us(fill), "encode_us": median_us(encode), "bytes": num_bytes,
            "both_us": median_us([sum(both) for both in zip(fill, encode)])}


# ---- the whole stack: AsyncLLM, ZeroMQ, an EngineCoreProc, and no model --------------------------

class Stack:
    """Clients that come again and again, as those of `tandem bench load`."""

    def __init__(self, num_clients):
        self.num_clients, self.num_requests = num_clients, 0
        self.loop = asyncio.new_event_loop()
        self.engine = self.loop.run_until_complete(self.start())

    async def start(self):
        config = EngineArgs(
            model=model_folder.name, skip_tokenizer_init=True, dtype="float16", max_model_len=8192,
            max_num_seqs=self.num_clients, max_num_batched_tokens=8192, block_size=BLOCK_SIZE,
            enable_prefix_caching=True, async_scheduling=True, enforce_eager=True,
            num_gpu_blocks_override=self.num_clients * 80 + 2048,
            distributed_executor_backend=NullExecutor).create_engine_config()
        return AsyncLLM(vllm_config=config, executor_class=NullExecutor, log_stats=True)

    async def client(self, num_prompt, num_tokens, end):
        num_done = 0
        while time.perf_counter() < end:
            number = self.num_requests
            self.num_requests += 1
            prompt = [1 + (number * 31 + i) % 200 for i in range(num_prompt)]
            params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, detokenize=False,
                                    temperature=0, output_kind=RequestOutputKind.DELTA)
            async for output in self.engine.generate({"prompt_token_ids": prompt}, params,
                                                     str(number)):
                num_done += len(output.outputs[0].token_ids)
        return num_done

    async def load(self, num_prompt, num_tokens, seconds):
        start = time.perf_counter()
        num_done = sum(await asyncio.gather(*[
            self.client(num_prompt, num_tokens, start + seconds) for _ in range(self.num_clients)]))
        return {"tokens_per_s": num_done / (time.perf_counter() - start)}


stack = None


def measure_load(num_clients, num_prompt, num_tokens, seconds):
    global stack
    if not stack:
        stack = Stack(num_clients)
        stack.loop.run_until_complete(stack.load(num_prompt, 4, 0.1))  # warms up
    return stack.loop.run_until_complete(stack.load(num_prompt, num_tokens, seconds))


# ---- the dialogue --------------------------------------------------------------------------------

MEASURES = {"step": measure_step, "wire": measure_wire, "admit": measure_admit,
            "rpc": measure_rpc, "mask": measure_mask, "load": measure_load}


def measure(line):
    name, *arguments = line.split()
    try:
        return MEASURES[name](*[int(word) if word.isdigit() else word for word in arguments])
    except Exception as error:  # one part of a vLLM that changed must not cost the others
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


if __name__ == "__main__":
    # vLLM logs to stdout too: what is ours goes to a copy of it, and the rest to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with open(os.path.join(model_folder.name, "config.json"), "w", encoding="utf-8") as file:
        json.dump(MODEL, file)
    hash_function = get_hash_fn_by_name(CacheConfig(block_size=BLOCK_SIZE).prefix_caching_hash_algo)
    init_none_hash(hash_function)
    block_hasher = get_request_block_hasher(BLOCK_SIZE, hash_function)
    print(json.dumps({"version": vllm.__version__}), file=answers)
    for line in sys.stdin:
        print(json.dumps(measure(line)), file=answers)
    if stack:
        stack.engine.shutdown()
        stack = None  # before the modules go that its end needs
