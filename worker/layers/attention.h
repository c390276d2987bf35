/*
 * attention: self-attention of this rank's heads, in the order a model calls it.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LAYERS_ATTENTION_H
#define WORKER_LAYERS_ATTENTION_H

#include "worker/layers/pass.h"

/* qkv = q, k and v of normed. */
void attention_project(struct pass *pass, const struct layer *layer);
/* The layer's bias is added, q and k are normed, where it has these, and turned to their positions, in place; k and
 * v go to the KV cache. */
void attention_rotate_and_store(struct pass *pass, const struct layer *layer,
                                const struct rope_table *rope, const struct kv_layer *kv);
/* Behind what is kept of all rows in the last layer the pass is of pass->wanted alone; before that, nothing. false: no row
 * is left. */
bool attention_narrow(struct pass *pass, int32_t layer);
/* attended = softmax(scale q·k) v over the request's KV cache, as the output projection reads it; in the device's order
 * where all weights of the layer are of 16 bits, as its matmuls are then anyway.
 * window: 0 sees every earlier position, else the last `window`, its own included. */
void attention_attend(struct pass *pass, const struct layer *layer, const struct kv_layer *kv, float scale,
                      int32_t window);
/* residual += the output projection of attended, over all ranks' heads, and what follows. */
MUST_USE enum status attention_output(struct pass *pass, const struct layer *layer,
                                      const struct norm_step *next);

#endif
