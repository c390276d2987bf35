/*
 * pass: one forward pass on one rank: what the layers read, and the workspaces they write.
 *
 * The layers (linear, attention, mlp, embedding) are verbs over a pass; a model's forward is a list
 * of them. Each says which workspace it reads and which it writes.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LAYERS_PASS_H
#define WORKER_LAYERS_PASS_H

#include "worker/layers/rope.h"
#include "worker/layers/rope.h"
#include "worker/weights.h"

struct pass {
    struct device *dev;
    const struct kernels *kernels;
    struct comm *comm; /* NULL when alone */
    const struct model_config *config;
    const struct shard *shard;
    const struct weights *weights;
    const struct kv_layer *kv;     /* [num_layers] */
    const int32_t *kv_head_of;     /* [shard->num_heads] */
    struct rope_table rope;
    struct rope_table rope_local; /* of sliding-window layers; cos_sin NULL: there are none */

    /* This step. */
    const struct batch_view *batch;
    const int32_t *ids;
    const int32_t *logit_rows;
    int32_t num_logit_rows;
    float *logits_out; /* [num_logit_rows, shard->num_tokens] */

    /* Workspaces. Widths are this rank's. */
    float *residual;     /* [rows, hidden]: the stream that every layer adds to */
    float *normed;       /* [rows, hidden] */
    float *qkv;          /* [rows, q + 2 kv] */
    float *attended;     /* [rows, q] */
    float *gate_up;      /* [rows, 2 ffn] */
    float *activated;    /* [rows, ffn] */
    double *sum;         /* [rows, hidden]: of a row-parallel layer, over all ranks */
    float *last;         /* [logit rows, hidden] */
    int8_t *quantised;   /* of a linear layer's input; its q, d, z and sums */
    float *block_scales;
    float *block_biases;
    int16_t *half_sums;

    model_observer *observer; /* may be NULL */
    void *observer_user;
};

/* normed = RMS norm of residual. */
void pass_norm(struct pass *pass, const float *weight);
/* residual += sum. */
void pass_add(struct pass *pass);
/* residual += RMS norm of sum; overwrites normed. */
void pass_add_normed(struct pass *pass, const float *weight);
void pass_observe(struct pass *pass, int32_t layer);

#endif
