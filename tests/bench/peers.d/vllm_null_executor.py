"""A vLLM executor without a model: every request whose prompt is computed gets a token at once.

It is a module of its own because vLLM's engine process imports it by its name.
"""
from concurrent.futures import Future

import torch
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput

ANSWERS = {
    "get_kv_cache_spec": [{"layer.0": FullAttentionSpec(
        block_size=16, num_kv_heads=1, head_size=16, dtype=torch.float16)}],
    "get_supported_kv_cache_layouts": [["LBNHC"]],
    "determine_available_memory": [1 << 30],
    "get_supported_tasks": [("generate",)],
    "supports_draft_weight_updates": [False],
}


class NullExecutor(Executor):
    supports_pp = False

    def _init_executor(self):
        self.unsampled = []  # answers to the steps that sample_tokens has yet to end
        self.tokens_left = {}  # by request, to compute before it samples
        # vLLM turns async scheduling off for CPUs; how steps are scheduled is not their concern.
        self.vllm_config.scheduler_config.async_scheduling = True

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None, non_block=False):
        return ANSWERS.get(method, [None])

    def execute_model(self, plan, non_block=False):
        for request in plan.scheduled_new_reqs:
            prompt = request.prefill_token_ids or request.prompt_token_ids
            self.tokens_left[request.req_id] = len(prompt) - request.num_computed_tokens
        for name in plan.finished_req_ids:
            self.tokens_left.pop(name, None)
        names, tokens = list(plan.num_scheduled_tokens), []
        for name in names:
            left = self.tokens_left[name] - plan.num_scheduled_tokens[name]
            tokens.append([7] if left <= 0 else [])
            self.tokens_left[name] = max(left, 1)
        answer = ModelRunnerOutput(req_ids=names, sampled_token_ids=tokens,
                                   req_id_to_index={name: i for i, name in enumerate(names)})
        if not names:
            return done(answer, non_block)
        self.unsampled.append(answer)
        return done(None, non_block)

    def sample_tokens(self, grammar_output, non_block=False):
        return done(self.unsampled.pop(0), non_block)

    def compile_or_warm_up_model(self):
        pass

    def check_health(self):
        pass

    def shutdown(self):
        pass

    @classmethod
    def supports_async_scheduling(cls):
        return True


def done(value, non_block):
    if not non_block:
        return value
    future = Future()
    future.set_result(value)
    return future
