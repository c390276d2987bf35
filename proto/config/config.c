#include "proto/config/config.h"

#include "proto/base/log.h"
#include "proto/config/injected_fault.h"
#include "proto/model/dummy.h"
#include "proto/model/hf_folder.h"
#include "proto/model/sim.h"
#include "proto/wire/channel.h"

#include <string.h>

#define ROW(member, ...) OPTION(struct config, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(model, OPTION_TEXT, NULL,
        "the model to run: a .gguf file, or a folder of Hugging Face's: config.json, *.safetensors, tokenizer.json",
        .value = "FILE", .group = "Model"),
    ROW(load_format, OPTION_WORD, "auto",
        "auto: what --model is; safetensors: a folder of them; dummy: the weights are random, and --model is a "
        "config.json or its folder", .words = "auto safetensors dummy"),
    ROW(dummy_type, OPTION_WORD, "bf16", "of such weights; with f8_e4m3 embeddings and logits have bf16",
        .words = "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k f8_e4m3"),
    ROW(dummy_seed, OPTION_I64, "0", "of such weights: the same one makes the same"),
    ROW(sim, OPTION_TEXT, NULL,
        "a device that only takes time, and a model's shape; of --model there are only the words",
        .value = "FILE"),
    ROW(served_model_name, OPTION_TEXT, NULL, "its name for clients"),
    ROW(chat_template, OPTION_TEXT, NULL, "a chat template in place of the model's own",
        .value = "FILE"),
    ROW(generation_config, OPTION_WORD, "auto",
        "how requests are sampled that do not say otherwise; auto: as the generation_config.json of a folder says, "
        "vllm: as if there were none", .words = "auto vllm"),
    ROW(max_model_len, OPTION_I32, "0", "longest prompt and answer together; 0: the model's",
        .most = 1 << 24),
    ROW(seed, OPTION_I64, "-1", "of requests that bring none; -1: random"),
    ROW(max_logprobs, OPTION_I32, "20",
        "likeliest tokens that a request may want told at each place; -1: no limit", .least = -1,
        .most = 1 << 24),

    ROW(tp, OPTION_I32, "0", "ranks that share the model; 0: one, or what --sim says",
        .most = MAX_RANKS,
        .alias = "tensor-parallel-size", .group = "Ranks"),
    ROW(executor, OPTION_WORD, NULL, "where ranks run; uniproc for one",
        .words = "uniproc multiproc distributed"),
    ROW(listen, OPTION_TEXT, NULL, "where ranks join that others start, tcp://HOST:PORT; a port of 127.0.0.1",
        .value = "ADDRESS"),
    ROW(token, OPTION_TEXT, NULL, "keys that engine and ranks share; made where there is none",
        .value = "FILE"),
    ROW(address_file, OPTION_TEXT, NULL, "write the address where ranks join to it", .value = "FILE"),
    ROW(join_timeout, OPTION_F64, "300", "seconds that such ranks have to join, or to come again",
        .least = 1, .most = 1e6),
    ROW(comm, OPTION_WORD, "auto", "how ranks exchange: those of one host by memory, hosts by tcp with keys; all by memory; all by tcp; all by Open MPI, where mpirun starts them",
        .words = "auto shm net mpi"),
    ROW(threads, OPTION_I32, "0",
        "threads of a rank; 0: the cores that we may use, mask and quota kept, divided by the ranks",
        .most = 1024),
    ROW(cpu_bind, OPTION_WORD, "auto",
        "auto: threads that fill all cores have one each, ranks on several NUMA nodes a node each",
        .words = "auto none"),
    ROW(device, OPTION_WORD, "cpu", "what ranks compute on; cuda: GPUs, dealt out in order; auto: GPUs if there are any; "
        "the tokens are the same", .words = "cpu cuda auto"),
    ROW(cuda_module, OPTION_TEXT, NULL, "the part that drives them; tandem_cuda.so beside the program",
        .value = "FILE"),
    ROW(device_comm, OPTION_WORD, "auto",
        "how ranks' GPUs add up: in each other's memory, on one host; by NCCL; through the hosts; auto: the first of these "
        "that all can, between hosts not by NCCL, which does not encrypt",
        .words = "auto ipc nccl host"),
    ROW(nccl_library, OPTION_TEXT, NULL, "NCCL; libnccl.so.2 as the system finds it", .value = "FILE"),
    ROW(batch_invariant, OPTION_WORD, "auto",
        "on, which auto is: an answer has the same bits whatever runs beside it (vLLM: VLLM_BATCH_INVARIANT=1); "
        "off: GPUs multiply 16-bit weights, and FP8 ones as they are, by cuBLASLt, which is meant to be faster for "
        "long prompts, on Hopper by wgmma, and a row's bits, so tokens, may vary with its batch",
        .words = "auto on off"),
    ROW(cublaslt_library, OPTION_TEXT, NULL, "cuBLASLt; libcublasLt.so of the module's CUDA as the system finds it",
        .value = "FILE"),
    ROW(enforce_eager, OPTION_BOOL, "false",
        "GPUs launch each kernel by itself; else steps that only decode are replayed as CUDA graphs, captured at "
        "the start"),
    ROW(isa, OPTION_WORD, NULL, "instruction set; the best there is",
        .words = ISA_WORDS),
    ROW(exact_sums, OPTION_BOOL, "true",
        "the same bits as with any other --tp; one rank may do without, which is a little faster"),

    ROW(max_num_seqs, OPTION_I32, "256", "requests in one step at most", .least = 1, .most = 65536,
        .group = "Scheduling"),
    ROW(max_num_active_seqs, OPTION_I32, "0", "requests that run at most; 0: --max-num-seqs",
        .most = 65536, .is_live = true),
    ROW(max_num_batched_tokens, OPTION_I32, "2048", "tokens in one step at most", .least = 1,
        .most = 1 << 20),
    ROW(max_num_queued_reqs, OPTION_I32, "0",
        "unfinished requests at which new ones get a 503; 0: no limit", .most = 1 << 30,
        .is_live = true),
    ROW(max_num_queued_tokens, OPTION_I32, "0",
        "tokens of prompts without an answer yet at which new ones get a 503; 0: no limit",
        .most = 1 << 30, .is_live = true),
    ROW(enable_chunked_prefill, OPTION_BOOL, "true", "a long prompt may take several steps"),
    ROW(enable_prefix_caching, OPTION_BOOL, "true", "reuse the KV of prefixes computed before"),
    ROW(async_scheduling, OPTION_BOOL, "true", "prepare a step while the one before runs"),
    ROW(long_prefill_token_threshold, OPTION_I32, "0",
        "tokens of one prompt in a step at most; 0: --max-num-batched-tokens", .most = 1 << 20,
        .is_live = true),
    ROW(long_prefill_token_threshold_adaptive, OPTION_BOOL, "false",
        "that threshold is no less than --max-num-batched-tokens divided by the requests",
        .is_live = true),
    ROW(decode_slowdown, OPTION_F64, "2",
        "steps take at most X times as long for prompts that come while others decode; 0: no limit",
        .most = 1000, .is_live = true),
    ROW(watermark, OPTION_F64, "0",
        "share of the KV blocks that a new request leaves free while others run", .most = 0.99,
        .is_live = true),
    ROW(scheduling_policy, OPTION_WORD, "fcfs", "who is served first", .words = "fcfs priority"),

    ROW(block_size, OPTION_I32, "16", "tokens in a KV block; kernels know 16", .least = KV_BLOCK_SIZE,
        .most = KV_BLOCK_SIZE, .group = "KV cache"),
    ROW(kv_cache_dtype, OPTION_WORD, "auto",
        "what keys and values are kept as: bfloat16, which auto is; float16; fp8 or int8, half as many bytes",
        .words = KV_TYPE_WORDS),
    ROW(kv_cache_memory, OPTION_BYTES, "0", "for all ranks together; 0: measured"),
    ROW(num_gpu_blocks_override, OPTION_I32, "0", "KV blocks; 0: as many as fit",
        .most = 1 << 30),

    ROW(grammar_backend, OPTION_WORD, "auto", "library for structured outputs; auto: the best for each",
        .words = "auto llguidance xgrammar", .group = "Structured outputs"),
    ROW(grammar_folder, OPTION_TEXT, NULL, "where those libraries are; `grammar` beside the program",
        .value = "FOLDER"),
    ROW(grammar_memory, OPTION_BYTES, "512MiB", "that the process of one grammar may take",
        .least = 1 << 20, .most = (int64_t)1 << 40),
    ROW(grammar_cache, OPTION_BYTES, "256MiB", "of grammars that no request uses",
        .most = (int64_t)1 << 40),
    ROW(grammar_compile_timeout, OPTION_F64, "1.5", "seconds that a grammar may take to compile",
        .least = 0.01, .most = 3600),
    ROW(grammar_mask_timeout, OPTION_F64, "0.5",
        "seconds that it may take for one bitmask, which is microseconds but where nothing gets a core",
        .least = 0.01, .most = 3600),

    ROW(host, OPTION_TEXT, "127.0.0.1", "address to listen on", .group = "Server"),
    ROW(port, OPTION_I32, "8000", "0 picks a free one and prints it", .most = 65535),

    ROW(log_level, OPTION_WORD, "info", "what is logged", .words = "error warn info debug",
        .group = "Watching", .is_live = true),
    ROW(trace, OPTION_TEXT, NULL, "write what every thread did, for ui.perfetto.dev",
        .value = "FILE"),
    ROW(run_dir, OPTION_TEXT, NULL, "where to make the directory of sockets", .value = "FOLDER"),

    ROW(max_restarts, OPTION_I32, "3",
        "how often ranks that died or hang are replaced within --restart-window; then the engine fails",
        .most = 1 << 20, .group = "Failures"),
    ROW(restart_window, OPTION_F64, "60", "seconds that --max-restarts counts", .most = 1e6),
    ROW(dump_dir, OPTION_TEXT, NULL, "where a failed step is written to, whole; $TMPDIR or /tmp",
        .value = "FOLDER"),
    ROW(flight_recorder_bytes, OPTION_BYTES, "4MiB", "of messages to dump with it; 0: none",
        .most = (int64_t)1 << 32),
    ROW(flight_recorder_seconds, OPTION_F64, "10", "that they go back", .most = 86400),
    ROW(inject_fault, OPTION_TEXT, NULL, "a drill: step=N,rank=N,verb=NAME,kind=error|exit|hang",
        .value = "FAULT"),
};
#undef ROW

struct option_set config_options(struct config *config)
{
    return (struct option_set){options, COUNT_OF(options), config};
}

void config_init(struct config *config)
{
    struct option_set set = config_options(config);

    *config = (struct config){0};
    options_init(&set);
}

void config_close(struct config *config)
{
    struct option_set set = config_options(config);

    options_close(&set);
}

const char *config_model_path(const struct config *config)
{
    return config->sim ? config->sim : config->model;
}

enum kv_type config_kv_type(const struct config *config)
{
    enum kv_type type;

    ASSERT(kv_type_find(config->kv_cache_dtype, &type), "%s", config->kv_cache_dtype);
    return type;
}

static bool has_load_format(const struct config *config, const char *name)
{
    return config->load_format && strcmp(config->load_format, name) == 0;
}

static bool is_dummy(const struct config *config)
{
    return has_load_format(config, "dummy");
}

static enum status open_dummy(const struct config *config, enum model_parts parts, struct model_file **out)
{
    struct dummy_options dummy = {.seed = (uint64_t)config->dummy_seed};

    if (!config->dummy_type || !tensor_type_find(config->dummy_type, &dummy.type))
        return fail(ERR_INVALID, "--load-format dummy needs a --dummy-type");
    return dummy_open(config->model, &dummy, parts, out);
}

enum status config_open_model(const struct config *config, enum model_parts parts, struct model_file **out)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;

    if (is_dummy(config))
        TRY(open_dummy(config, parts, &file));
    else if (has_load_format(config, "safetensors"))
        TRY(hf_folder_open(config->model, parts, &file));
    else
        TRY(model_file_open_parts(config_model_path(config), parts, &file));
    if (model_file_is_simulated(file) && !config->sim)
        return fail(ERR_INVALID, "%s describes a simulated device: give it to --sim", config->model);
    if (config->sim && config->model)
        TRY(model_file_take_vocabulary(file, config->model));
    *out = give(file);
    return OK;
}

/* What depends on a file that was named. */
static enum status settle(struct config *config)
{
    struct sim_device device;
    int32_t tp = 1;

    if (config->sim)
        TRY(sim_file_read(config->sim, &device, &tp));
    if (config->tp == 0)
        config->tp = tp;
    return OK;
}

/* Over tcp an answer has a limit, which is low since strangers can make the engine hold as much. */
static enum status check_answer_size(const struct config *config)
{
    enum { ROW_BYTES = 24, ENTRY_BYTES = 8 }; /* a token with its id and rank; one of the likeliest */
    int64_t num_rows = (int64_t)config->max_num_seqs + config->max_num_batched_tokens;
    int64_t bytes = num_rows * (ROW_BYTES + ENTRY_BYTES * ((int64_t)config->max_logprobs + 1));

    if (!config->executor || strcmp(config->executor, "distributed") != 0)
        return OK;
    if (config->max_logprobs < 0)
        return fail(ERR_INVALID, "--max-logprobs -1 is not for --executor distributed, where an "
                    "answer has a limit of %d bytes", CHANNEL_MAX_TCP_ANSWER);
    if (bytes > CHANNEL_MAX_TCP_ANSWER)
        return fail(ERR_INVALID, "--max-logprobs %d for --max-num-batched-tokens %d and "
                    "--max-num-seqs %d makes answers of %lld bytes; with --executor distributed %d "
                    "is the limit", config->max_logprobs, config->max_num_batched_tokens,
                    config->max_num_seqs, (long long)bytes, CHANNEL_MAX_TCP_ANSWER);
    return OK;
}

enum status config_check(const struct config *config)
{
    TRY(check_answer_size(config));
    if (config->sim && config->load_format && !has_load_format(config, "auto"))
        return fail(ERR_INVALID, "--load-format %s is for --model alone; --sim has no weights",
                    config->load_format);
    if (config->executor && strcmp(config->executor, "uniproc") == 0 && config->tp > 1)
        return fail(ERR_INVALID, "--executor uniproc runs one rank, --tp is %d; use multiproc",
                    config->tp);
    if (config->comm && strcmp(config->comm, "mpi") == 0 &&
        (!config->executor || strcmp(config->executor, "distributed") != 0))
        return fail(ERR_INVALID, "--comm mpi is for --executor distributed, whose ranks Open MPI's mpirun starts");
    if (!config->exact_sums && config->tp > 1)
        return fail(ERR_INVALID, "--no-exact-sums is for one rank, --tp is %d", config->tp);
    struct injected_fault fault;

    TRY(injected_fault_parse(config->inject_fault, &fault));
    /* Without chunks a prompt must fit in one step. */
    if (!config->enable_chunked_prefill && config->max_model_len > config->max_num_batched_tokens)
        return fail(ERR_INVALID, "--max-num-batched-tokens is %d, without chunked prefill it must "
                    "be at least --max-model-len, %d", config->max_num_batched_tokens,
                    config->max_model_len);
    return OK;
}

enum status config_parse(struct config *config, const struct option_set *more, int argc,
                         char *const *argv)
{
    struct option_set sets[2] = {config_options(config)};
    size_t num_sets = 1;

    config_init(config);
    if (more) {
        sets[num_sets++] = *more;
        options_init(more);
    }
    TRY(options_parse(sets, num_sets, argc, argv, NULL, NULL));
    TRY(settle(config));
    return config_check(config);
}

char *config_to_json(const struct config *config)
{
    struct option_set set = config_options((struct config *)config);
    json_t *json = options_to_json(&set);
    char *text = json_dumps(json, JSON_COMPACT);

    json_decref(json);
    return text;
}

enum status config_from_json(const char *text, struct config *config)
{
    struct option_set set = config_options(config);
    json_error_t error;
    json_t *json = json_loads(text, JSON_REJECT_DUPLICATES, &error);

    if (!json)
        return fail(ERR_INVALID, "settings, line %d, column %d: %s", error.line, error.column,
                    error.text);
    enum status status = options_from_json(&set, json);
    json_decref(json);
    TRY(status);
    return config_check(config);
}

void config_help(const struct option_set *more, struct bytes *out)
{
    struct option_set sets[2] = {config_options(NULL)};

    if (more) {
        sets[1] = sets[0];
        sets[0] = *more;
    }
    options_help(sets, more ? 2 : 1, out);
}
