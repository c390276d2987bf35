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
    int32_t rows = pass->num_logit_rows;
    const struct weights *weights = pass->weights;
    const struct linear *output =
        weights->output.num_matrices ? &weights->output : &weights->embedding;

    if (rows == 0)
        return; /* for every rank alike: no chunk of this step is the last of its prompt */
    struct activations x = linear_reads(output, &pass->own, rows);

    pass->kernels->add_norm(pass->dev, &(struct add_norm_args){
                                           .rows = rows,
                                           .n = pass->config->hidden_size,
                                           .residual = pass->residual,
                                           .norm = weights->output_norm,
                                           .eps = pass->config->rms_norm_eps,
                                           .out = &x,
                                           .row_ids = pass->logit_rows,
                                       });
    linear_forward(pass, output, &x, pass->logits_out, output->n);
    work_count_add(pass->work);
}
