#include "worker/layers/pass.h"

void pass_norm(struct pass *pass, const float *weight)
{
    int32_t n = pass->config->hidden_size;

    pass->kernels->rms_norm(pass->dev, pass->normed, n, pass->residual, n, weight,
                            pass->batch->rows, n, pass->config->rms_norm_eps);
}

void pass_add(struct pass *pass)
{
    pass->kernels->add_exact(pass->dev, pass->residual, pass->sum, pass->batch->rows,
                             pass->config->hidden_size);
}

void pass_add_normed(struct pass *pass, const float *weight)
{
    int32_t rows = pass->batch->rows, n = pass->config->hidden_size;

    pass->kernels->round_exact(pass->dev, pass->normed, pass->sum, (int64_t)rows * n);
    pass->kernels->rms_norm(pass->dev, pass->normed, n, pass->normed, n, weight, rows, n,
                            pass->config->rms_norm_eps);
    pass->kernels->add(pass->dev, pass->residual, pass->normed, rows, n);
}

void pass_observe(struct pass *pass, int32_t layer)
{
    if (pass->observer)
        pass->observer(pass->observer_user, layer, pass->residual);
}
