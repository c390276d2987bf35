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
    float *residual;              /* [rows, hidden]: the stream that every layer adds to */
    struct activations normed;    /* [rows, hidden]: its norm */
    float *qkv;                   /* [rows, q + 2 kv] */
    struct activations attended;  /* [rows, q] */
    float *gate_up;               /* [rows, 2 ffn] */
    struct activations activated; /* [rows, ffn] */
    void *sum;                    /* [rows, hidden]: of a row-parallel layer; double among ranks, else float */
    bool has_sum;                 /* it is still to be added to the residual */

    model_observer *observer; /* may be NULL */
    void *observer_user;
};

static inline bool pass_is_alone(const struct pass *pass)
{
    return pass->shard->world == 1;
}

/*
 * residual += sum, where there is one; then normed = RMS norm of residual by `norm`, in the forms that
 * `reader` reads (NULL: no more than the addition). post_norm: what is added is its RMS norm by these
 * weights; NULL: itself.
 */
void pass_add_norm(struct pass *pass, const float *post_norm, const float *norm,
                   const struct linear *reader);
void pass_observe(struct pass *pass, int32_t layer);

#endif
