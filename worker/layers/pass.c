#include "worker/layers/pass.h"

#include "worker/layers/linear.h"

void pass_add_norm(struct pass *pass, const float *post_norm, const float *norm,
                   const struct linear *reader)
{
    const double *parts[] = {pass->sum};
    struct activations out = norm ? linear_reads(reader, &pass->normed, pass->batch->rows)
                                  : (struct activations){0};
    struct add_norm_args args = {
        .rows = pass->batch->rows,
        .n = pass->config->hidden_size,
        .residual = pass->residual,
        .post_norm = post_norm,
        .norm = norm,
        .eps = pass->config->rms_norm_eps,
        .out = &out,
    };

    if (pass->has_sum && pass_is_alone(pass)) {
        args.sum = pass->sum;
    } else if (pass->has_sum) {
        args.parts = parts;
        args.num_parts = 1;
    }
    pass->has_sum = false;
    pass->kernels->add_norm(pass->dev, &args);
}

void pass_observe(struct pass *pass, int32_t layer)
{
    if (pass->observer)
        pass->observer(pass->observer_user, layer, pass->residual);
}
