/*
 * mlp: the gated feed-forward layer of this rank's FFN groups.
 *
 * Thread: the device thread.
 */
#ifndef WORKER_LAYERS_MLP_H
#define WORKER_LAYERS_MLP_H

#include "worker/layers/pass.h"

/* activated = silu(gate) * up, or gelu(gate) * up in the tanh form, of both projections of normed. */
void mlp_silu(struct pass *pass, const struct layer *layer);
void mlp_gelu(struct pass *pass, const struct layer *layer);
/* residual += the down projection of activated, over all ranks' groups, and what follows. */
MUST_USE enum status mlp_down(struct pass *pass, const struct layer *layer,
                              const struct norm_step *next);

#endif
