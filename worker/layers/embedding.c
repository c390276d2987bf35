#include "worker/layers/embedding.h"

enum status embedding_look_up(struct pass *pass, float scale)
{
    int32_t rows = pass->batch->rows;
    const struct matrix *table = &pass->weights->embedding.matrices[0];

    pass->kernels->embedding(pass->dev, pass->residual, pass->ids, rows, table,
                             pass->shard->first_token, scale);
    /* A token is one rank's and zeros elsewhere, so the sum is exact. */
    return comm_all_reduce_f32_disjoint(pass->comm, pass->residual, (int64_t)rows * table->k);
}

void embedding_logits(struct pass *pass)
{
    int32_t rows = pass->num_logit_rows, n = pass->config->hidden_size;
    const struct weights *weights = pass->weights;
    const struct linear *output =
        weights->output.num_matrices ? &weights->output : &weights->embedding;

    if (rows == 0)
        return; /* for every rank alike: no chunk of this step is the last of its prompt */
    pass->kernels->gather_rows(pass->dev, pass->last, pass->residual, pass->logit_rows, rows, n);
    pass->kernels->rms_norm(pass->dev, pass->last, n, pass->last, n, weights->output_norm, rows, n,
                            pass->config->rms_norm_eps);
    linear_forward(pass, output, pass->last, rows, pass->logits_out, output->n);
}
