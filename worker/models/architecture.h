/*
 * architecture: what makes one family of models different from another: a row of registry.c.
 *
 * Thread: constant.
 */
#ifndef WORKER_MODELS_ARCHITECTURE_H
#define WORKER_MODELS_ARCHITECTURE_H

#include "worker/layers/pass.h"

struct architecture {
    const char *name; /* as in model_config */
    struct tensor_tables tensors;
    enum status (*forward)(struct pass *pass);
};

/* With norms on heads where layers have them: for whatever else is like it. */
MUST_USE enum status llama_forward(struct pass *pass);

extern const struct architecture llama;
extern const struct architecture qwen2;
extern const struct architecture qwen3;
extern const struct architecture gemma3;

/* ERR_UNSUPPORTED names the architecture and those there are. */
MUST_USE enum status architecture_find(const char *name, const struct architecture **out);

#endif
