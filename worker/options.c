#include "worker/worker.h"

#include "proto/config/config.h"

#include <string.h>

enum status worker_options_read(const struct config *config, struct sim_device *sim,
                                struct worker_options *out)
{
    struct worker_options options = {
        .binds_threads = strcmp(config->cpu_bind, "none") != 0,
        .inexact_sums = !config->exact_sums,
        .records_nothing = config->enforce_eager,
        .isa = config->isa,
        .device = config->device,
        .cuda_module = config->cuda_module,
        .device_comm = config->device_comm,
        .nccl = config->nccl_library,
        .batch_varies = strcmp(config->batch_invariant, "off") == 0,
        .cublaslt = config->cublaslt_library,
        .sim = config->sim ? sim : NULL,
        .kv_type = config_kv_type(config),
        .max_num_seqs = config->max_num_seqs,
        .max_batched_tokens = config->max_num_batched_tokens,
        .max_model_len = config->max_model_len,
    };
    int32_t tp;

    TRY(injected_fault_parse(config->inject_fault, &options.fault));
    if (config->sim)
        TRY(sim_file_read(config->sim, sim, &tp));
    *out = options;
    return OK;
}
