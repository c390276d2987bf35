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
    bool inexact_sums; /* when alone: see model_options */
    const struct model_config *config;
    const struct shard *shard;
    const struct weights *weights;
    const struct kv_layer *kv;     /* [num_layers] */
    const int32_t *kv_head_of;     /* [shard->num_heads] */
    struct rope_table rope;
    struct rope_table rope_local; /* of sliding-window layers; cos_sin NULL: there are none */

    /* This step. */
    const struct batch_view *batch;
    const struct batch_view *wanted; /* wanted_rows.h: what is left of it behind attention_narrow; NULL: all */
    const int32_t *ids;
    const int32_t *logit_rows; /* NULL: row i is i */
    int32_t num_logit_rows;
    float *logits_out; /* [num_logit_rows, shard->num_tokens] */
    bool shares_rows;  /* each rank adds up and norms its share of the rows, for all: `normed` is common, and
                        * the residual's other rows are not kept up until the last layer's end */

    /* Workspaces. Widths are this rank's. */
    float *residual;              /* [rows, hidden]: the stream that every layer adds to */
    struct streams {
        float *residual, *qkv;
    } all, few;                   /* of all rows, and of those that are wanted: [logit rows, ..] */
    struct activations normed;    /* [rows, hidden]: its norm; of `own` or, where rows are shared out, `common` */
    struct activations own, common; /* this rank's, and memory that all ranks see */
    float *qkv;                   /* [rows, q + 2 kv] */
    struct activations attended;  /* [rows, q] */
    float *gate_up;               /* [rows, 2 ffn] */
    struct activations activated; /* [rows, ffn] */
    float *sum;                   /* [rows, hidden]: of a row-parallel layer, when alone */
    float *gathered;              /* [SUM_ROWS + world, hidden]: rows of the residual, from all ranks */
    int64_t *gathered_bytes;      /* [world] */
    const double **parts;         /* [world]: of a sum among ranks, its rows that are added up here */

    struct work_count *work;  /* may be NULL */
    model_observer *observer; /* may be NULL */
    void *observer_user;
};

/* Rows whose sum over the ranks is exchanged at once. */
enum { SUM_ROWS = 512 };

/* What follows a sum that is added to the residual. */
struct norm_step {
    const float *post;           /* weights of the RMS norm that is added in the sum's place; NULL: the sum is */
    const float *weight;         /* normed = RMS norm of the residual by these; NULL: it was the last sum */
    const struct linear *reader; /* of normed, in the forms that it reads */
    bool gathers;                /* every rank gets all rows of the residual, as it does where there is no norm */
};

/* The rows of a batch come next, from the embedding or out of those before. */
void pass_begin(struct pass *pass, const struct batch_view *batch, const struct streams *streams);

/* What leads to a layer: the norm that its attention reads. Behind the last one there is none. */
struct norm_step pass_step_to(const struct pass *pass, int32_t layer, const float *post);

/* normed = RMS norm of the residual, as it comes from the embedding; nothing is added. */
MUST_USE enum status pass_norm(struct pass *pass, const struct norm_step *next);
/*
 * residual += the row-parallel product of x over all ranks' columns, of which each `group` are rounded to
 * the grid; and what follows. x: as linear_reads says. ERR_ABORTED when a peer is gone.
 */
MUST_USE enum status pass_add_linear(struct pass *pass, const struct linear *linear, int32_t group,
                                     const struct activations *x, const struct norm_step *next);
void pass_observe(struct pass *pass, int32_t layer);

#endif
