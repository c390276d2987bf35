/*
 * weights: one rank's weights of a model, read from its file.
 *
 * A model names its tensors in two tables: which tensor, its shape in terms of the configuration,
 * and where it goes. What a rank takes of a tensor follows from the shape alone: along heads, FFN
 * and vocabulary its shard, along everything else the whole.
 *
 * Every tensor is checked before any is read.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_WEIGHTS_H
#define WORKER_WEIGHTS_H

#include "worker/layers/linear.h"
#include "worker/models/model.h"

/* One decoder layer. What an architecture has not is NULL. */
struct layer {
    const float *attention_norm;      /* [hidden] */
    struct linear qkv;                /* q, k, v side by side */
    const float *qkv_bias;            /* [qkv.n] */
    const float *q_norm, *k_norm;     /* [head_dim] */
    struct linear attention_output;   /* row-parallel, a group is a head */
    const float *post_attention_norm; /* [hidden] */
    const float *ffn_norm;            /* [hidden] */
    struct linear gate_up;            /* gate, up side by side */
    struct linear down;               /* row-parallel, in FFN groups */
    const float *post_ffn_norm;       /* [hidden] */
};

struct weights {
    struct layer *layers;
    struct linear embedding;  /* this rank's tokens; the output projection too when that is empty */
    struct linear output;     /* this rank's tokens; num_matrices 0: tied to the embedding */
    const float *output_norm; /* [hidden] */
    const float *rope_factors; /* [rope_dim / 2], divisors of the frequencies, or NULL */
    struct slab slab;
};

/* A dimension of a tensor. */
enum dim {
    DIM_ONE,
    DIM_HIDDEN,
    DIM_HEAD,
    DIM_HEADS,
    DIM_KV_HEADS,
    DIM_FFN,
    DIM_VOCABULARY,
    DIM_ROPE_PAIRS
};

/* DIM_ONE rows is part of a vector of floats (const float *), anything else part of a struct linear:
 * rows with the same place lie side by side, in order. */
struct tensor_row {
    const char *name; /* of a layer's tensor: what follows "blk.N."; NULL ends the table */
    enum dim rows, columns;
    size_t place; /* offset in struct layer or struct weights */
    bool optional;
};

struct tensor_tables {
    const struct tensor_row *of_model; /* places in struct weights */
    const struct tensor_row *of_layer; /* places in struct layer */
};

/* Refusals as model_load (models/model.h). */
MUST_USE enum status weights_load(struct weights *weights, struct device *dev,
                                  const struct model_file *file, const struct shard *shard,
                                  const struct tensor_tables *tables,
                                  const struct model_options *options);
void weights_close(struct weights *weights); /* zeroed weights are fine */

#endif
