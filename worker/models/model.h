/*
 * model: one rank's part of a model: weights, KV cache, forward pass.
 *
 * The door between the worker and the models. A model is a row of registry.c: an architecture's
 * name, its tensor table and its forward pass, written over worker/layers and struct kernels.
 *
 * Tensor parallelism: attention heads, FFN groups and the vocabulary are dealt out in whole
 * units (proto/model/shard.h), even or not; KV heads are replicated where a rank's heads reach into them.
 * Column-parallel layers are exact by nature, row-parallel sums are exact on a grid (kernels.h),
 * so the logits have the same bits for every world size.
 *
 * Nothing is allocated after model_load and model_alloc_kv.
 *
 * Thread: the device thread; model_load may run on it before READY.
 */
#ifndef WORKER_MODELS_MODEL_H
#define WORKER_MODELS_MODEL_H

#include "kernels/kernels.h"
#include "proto/base/memory.h"
#include "proto/model/model_file.h"
#include "proto/model/shard.h"
#include "worker/work_count.h"

struct model_options {
    int32_t rank, world;
    int32_t max_batched_tokens; /* rows of a step at most: sizes the workspaces */
    int32_t max_logit_rows;     /* rows whose logits are wanted in one step at most */
    int32_t max_position;       /* positions below this; sizes the RoPE tables */
    enum kv_type kv_type;       /* of the KV cache */
    bool inexact_sums;          /* world 1: row-parallel layers are plain matmuls, with bits of their own */
    bool records_nothing;       /* all is launched kernel by kernel, on devices too that can do otherwise */
    struct work_count *work; /* borrowed; adds for each part of a layer, loaded or run; may be NULL */
    const _Atomic bool *is_given_up; /* looked at before each layer is loaded: ERR_ABORTED; may be NULL */
    /* Called now and then while loading, with a fraction 0..1; may be NULL. */
    void (*progress)(void *user, double fraction);
    void *user;
};

struct model;

/* What the ranks of a model exchange at once and share: the sizes that comm_create wants. */
struct model_comm_bytes {
    int64_t buffer, shared;
};
struct model_comm_bytes model_comm_bytes(const struct model_config *config, int32_t max_rows);

/* ERR_UNSUPPORTED: architecture or tensor type named; ERR_CORRUPT: a tensor missing or of the wrong
 * shape, by name with both shapes; ERR_NO_MEMORY. Reads only its shard of `file`, which may be
 * freed afterwards. */
MUST_USE enum status model_load(struct device *dev, const struct model_file *file,
                                const struct model_options *options, struct model **out);
void model_free(struct model *model); /* NULL is fine */

/* How its ranks meet, before the first step and whenever they meet anew: borrowed; comm_shared, if any, is of
 * model_comm_bytes. NULL when alone, or until then. */
void model_connect(struct model *model, struct comm *comm);
DEFINE_AUTO_FREE(model)

const struct shard *model_shard(const struct model *model);
int64_t model_weight_bytes(const struct model *model);
/* Of which every step reads all: an embedding table that is not the output matrix too is read by rows. */
int64_t model_step_weight_bytes(const struct model *model);
int64_t model_workspace_bytes(const struct model *model);

/* Bytes of one KV block over all layers of this rank. */
int64_t model_kv_block_bytes(const struct model *model);
/* Allocates the paged KV cache, of which there is none; ERR_NO_MEMORY. */
MUST_USE enum status model_alloc_kv(struct model *model, int32_t num_blocks);
/* Gives its memory back; none is fine. Then no step can run until there is one again. */
void model_free_kv(struct model *model);
int64_t model_kv_bytes(const struct model *model); /* 0: there is none */

/* Once loaded by one device, to be run by another: of the same kind, which can free what the first allocated. */
void model_adopt(struct model *model, struct device *dev, struct work_count *work);
/* Gets the KV cache of `from`, a model of the same shape, which has none then. */
void model_take_kv(struct model *model, struct model *from);

/* Before the first step, when it is connected and has a KV cache: records passes of the usual sizes (recordings.h),
 * as many as a bounded time allows every rank. logits_out: that of these steps. Where none can be recorded there is
 * nothing to do. Failures of the device and, as all ranks record the same, of meeting them. */
MUST_USE enum status model_record(struct model *model, float *logits_out);

/* Ids of a step that are negative are last_tokens[-1 - id] from now on, memory of a device of its own; NULL: there are
 * none. */
void model_read_last_tokens(struct model *model, const int32_t *last_tokens);

/* What model_forward reads is the host's; it writes to the device's memory. */
struct model_step {
    struct batch_view batch;
    const int32_t *ids;        /* [batch.rows]: tokens */
    const int32_t *logit_rows; /* [num_logit_rows]: ascending rows of the batch whose logits are wanted */
    int32_t num_logit_rows;
    bool keeps_rows;           /* model_logits is called for others; else the last layer leaves them out */
    float *logits_out;         /* [num_logit_rows, shard->num_tokens]: of this rank's slice of the vocabulary */
};
/* Every rank of the group calls this with the same batch. ERR_ABORTED when a peer is gone; failures of the device. */
MUST_USE enum status model_forward(struct model *model, const struct model_step *step);

/* The logits of other rows of the last step, or of the same once more, where it has kept them: as for model_forward, but
 * that no other rank need do the same. */
MUST_USE enum status model_logits(struct model *model, const int32_t *logit_rows, int32_t num_logit_rows,
                                  float *logits_out);

/* Lets tests see the residual stream, [rows, hidden], after the embedding (layer -1) and after each
 * layer. NULL: no more. */
typedef void model_observer(void *user, int32_t layer, const float *residual);
void model_observe(struct model *model, model_observer *observer, void *user);

#endif
