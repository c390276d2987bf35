/*
 * config: the settings of an engine and its workers.
 *
 * Filled once at the start and then constant. Workers get the engine's settings
 * with WELCOME, as the JSON that config_to_json writes.
 *
 * Thread: any, once it is filled.
 */
#ifndef PROTO_CONFIG_CONFIG_H
#define PROTO_CONFIG_CONFIG_H

#include "proto/config/option.h"
#include "proto/model/kv_type.h"
#include "proto/model/model_file.h"

enum { KV_BLOCK_SIZE = 16, MAX_RANKS = 256 }; /* tokens in a KV block */

/* What --isa takes, for a row of options: names of kernels (kernels/kernels.h). */
#define ISA_WORDS "ref sse2 avx2 avxvnni avx512 avx512bf16 amx"

struct config {
    /* model */
    char *model;             /* a file or a folder; dummy: a config.json or its folder */
    char *load_format;       /* "auto"; "safetensors": a folder; "dummy": weights are random */
    char *dummy_type;        /* of those; see dummy.h */
    int64_t dummy_seed;
    char *sim;               /* a file: a device that only takes time, with a model; NULL: a real one */
    char *served_model_name; /* NULL: the file's name */
    char *generation_config; /* "auto", "vllm" */
    char *chat_template;     /* a file; NULL: the model's own */
    int32_t max_model_len;   /* 0: what the model was made for */
    int64_t seed;            /* of requests without one; -1: random */
    int32_t max_logprobs;    /* that a request may ask for; -1: no limit */

    /* ranks */
    int32_t tp; /* 0 only between config_init and config_parse */
    char *executor;  /* NULL: uniproc for one rank, else multiproc */
    char *listen;       /* distributed: where ranks join; NULL: a port of 127.0.0.1 */
    char *token;        /* a file with the keys of engine and ranks; NULL: one in the run directory */
    char *address_file; /* where the address to join is written to; NULL: nowhere */
    double join_timeout; /* seconds, for ranks that others start */
    char *comm;          /* how ranks exchange: "auto", "shm", "net", "mpi" */
    int32_t threads; /* of a rank; 0: cores / ranks */
    bool enforce_eager; /* no passes are recorded */
    bool exact_sums; /* row-parallel sums do not depend on the number of ranks */
    char *cpu_bind;  /* "auto": threads have cores, or nodes, of their own where that helps; "none" */
    char *isa;       /* NULL: the best of this machine */
    char *device;
    char *cuda_module; /* NULL: beside the program */
    char *device_comm; /* how their sums go: "auto", "ipc", "nccl", "host" */
    char *nccl_library; /* NULL: as the system finds it */
    char *batch_invariant;  /* "auto", "on": a row's bits do not depend on its batch; "off": on GPUs they may */
    char *cublaslt_library; /* NULL: as the system finds it */

    /* scheduling */
    int32_t max_num_seqs;
    int32_t max_num_active_seqs; /* 0: max_num_seqs */
    int32_t max_num_batched_tokens;
    int32_t max_num_queued_reqs;   /* 0: no limit */
    int32_t max_num_queued_tokens; /* 0: no limit */
    bool enable_chunked_prefill;
    bool enable_prefix_caching;
    bool async_scheduling; /* a step is prepared while the one before runs */
    int32_t long_prefill_token_threshold; /* 0: off */
    bool long_prefill_token_threshold_adaptive;
    double decode_slowdown; /* of a step, by prompts beside requests that decode; 0: no limit */
    double watermark; /* share of the KV blocks */
    char *scheduling_policy;

    /* KV cache */
    int32_t block_size;
    char *kv_cache_dtype;             /* one of KV_TYPE_WORDS */
    int64_t kv_cache_memory;          /* bytes of all ranks together; 0: measured */
    int32_t num_gpu_blocks_override;  /* 0: as many as fit */

    /* structured outputs */
    char *grammar_backend;  /* "auto": the best for each kind of grammar */
    char *grammar_folder;   /* of the libraries; NULL: `grammar` beside the program */
    int64_t grammar_memory; /* bytes that the process of one grammar may take */
    int64_t grammar_cache;  /* bytes of grammars that no request uses */
    double grammar_compile_timeout, grammar_mask_timeout; /* seconds */

    /* server */
    char *host;
    int32_t port;

    /* watching */
    char *log_level;
    char *trace;   /* a file; NULL: off */
    char *run_dir; /* a directory to make ours in; NULL: $XDG_RUNTIME_DIR or /tmp */

    /* failures */
    int32_t max_restarts;  /* of ranks, within */
    double restart_window; /* seconds; more, and the engine fails */
    char *dump_dir; /* where a step that failed is written to; NULL: $TMPDIR or /tmp; "": nowhere */
    int64_t flight_recorder_bytes;  /* messages that are dumped with it; 0: none */
    double flight_recorder_seconds;
    char *inject_fault; /* see injected_fault.h; NULL: none */
};

/* The rows, bound to this struct: for options_parse, options_help and so on. */
struct option_set config_options(struct config *config);

void config_init(struct config *config); /* the defaults */
void config_close(struct config *config);

/*
 * Environment and command line for the engine's settings and the program's own (`more`, which may
 * be empty). Both structs are inited here. ERR_INVALID as options_parse, and where settings do not
 * go together.
 */
MUST_USE enum status config_parse(struct config *config, const struct option_set *more, int argc,
                                  char *const *argv);
/* The file of what runs: the model's, or the simulated device's; NULL: none was given. */
const char *config_model_path(const struct config *config);
/* Opens it. Of a simulated device's shape and a model the words are the model's. ERR_INVALID: that model
 * has too many; or the model is a description of a device. Else as model_file_open. */
MUST_USE enum status config_open_model(const struct config *config, enum model_parts parts,
                                       struct model_file **out);
enum kv_type config_kv_type(const struct config *config);
/* Do the settings go together? */
MUST_USE enum status config_check(const struct config *config);

/* The counterpart of config_from_json; the caller frees the text. */
char *config_to_json(const struct config *config);
MUST_USE enum status config_from_json(const char *text, struct config *config);

/* What --help prints for both; `more` may be NULL. */
void config_help(const struct option_set *more, struct bytes *out);

#endif
