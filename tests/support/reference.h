/*
 * reference: what an independent float32 implementation computed for a model:
 * tests/data/model/README.md.
 */
#ifndef TESTS_SUPPORT_REFERENCE_H
#define TESTS_SUPPORT_REFERENCE_H

#include "proto/base/memory.h"

#include <jansson.h>

struct reference_ids {
    int32_t *ids;
    int32_t num_ids;
};

/* A greedy generation: ids[prompt_size ...] were chosen, by margins[i] over the next best logit. */
struct reference_run {
    struct reference_ids all;
    int32_t prompt_size;
    double *margins; /* [all.num_ids - prompt_size] */
};

struct reference {
    struct reference_run *runs;
    int32_t num_runs;
    struct reference_ids text;
    double *text_logprobs; /* [text.num_ids - 1]: of token i + 1 */
    double text_perplexity;
    struct reference_ids prompt; /* whose activations are known */
    const json_t *stages;        /* embedding, layers, final norm: {"l2": [], "first": [[4]]} */
    const json_t *logits_top20;  /* [[id, logit]] of the prompt's last row */
    json_t *root;
};

/* tests/data/model/NAME_reference.json; aborts when it isn't there. */
struct reference *reference_new(const char *name);
void reference_free(struct reference *reference);
DEFINE_AUTO_FREE(reference)

#endif
