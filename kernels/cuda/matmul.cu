/* Which kernel a matmul goes to. */
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/half_layout.h"
#include "kernels/cuda/matmul.h"

enum {
    FEW_ROWS = 32,  /* go to matmul_few however many columns there are: the time is that of reading the weights */
    MANY_ROWS = 64, /* of a warp of matmul_many */
    SCHEDULERS = 4, /* of a multiprocessor; each wants a warp */
};

static bool is_many(const struct cuda_state *state, const struct matmul_task *task)
{
    int64_t warps = (int64_t)num_panels(task) * divide_up(task->a.rows, MANY_ROWS);

    return task->a.rows > FEW_ROWS && warps >= SCHEDULERS * (int64_t)state->num_processors;
}

/* Of quantised types: whether activations lie as kernels read them, and groups are whole ones of theirs. */
static bool has_codes(const struct matmul_task *task)
{
    const struct activations *a = &task->a;

    return (uintptr_t)a->q % 16 == 0 && has_whole_groups(a) && task->group * QUANT_BLOCK % a->group == 0;
}

static void run(struct device *dev, const struct matrix *w, struct matmul_task task)
{
    struct cuda_state *state = state_of(dev);
    bool is_float = quant_form(w->type).scales == SCALE_NONE;
    bool is_half = half_has_layout(w->type) || w->type == TYPE_F8_E4M3; /* or stands for halves */

    if (task.a.rows == 0 || w->n == 0)
        return;
    if (task.a.k != w->k || (!is_float && !has_codes(&task))) {
        note_error(state, cudaErrorInvalidValue);
        return;
    }
    task.weights = (const uint8_t *)w->data;
    task.n = w->n;
    task.num_records = packed_num_records(w->type, w->k);
    task.scale_group = task.a.group / QUANT_BLOCK;
    task.first_block = w->first_block;
    task.panel_bytes = packed_panel_bytes(w->type, w->k);
    task.supers_bytes = packed_supers_bytes(w->type, w->k);
    if (is_half && cublaslt_matmul(state, w, &task))
        return;
    if (is_half)
        matmul_half(state, w, &task);
    else if (is_float)
        matmul_float(state, &task);
    else if (is_many(state, &task))
        matmul_many(state, w->type, &task);
    else
        matmul_few(state, w->type, &task);
}

extern "C" void matmul_cuda(struct device *dev, float *out, int64_t out_stride, const struct activations *a,
                            const struct matrix *w)
{
    struct matmul_task task = {};

    task.a = *a;
    task.out = out;
    task.out_stride = out_stride;
    run(dev, w, task);
}

extern "C" void matmul_groups_cuda(struct device *dev, double *sums, const struct activations *a,
                                   const struct matrix *w, int32_t group_k)
{
    struct matmul_task task = {};

    task.a = *a;
    task.sums = sums;
    task.group = packed_num_records(w->type, group_k);
    run(dev, w, task);
}

extern "C" void matmul_groups_float_cuda(struct device *dev, float *out, const struct activations *a,
                                         const struct matrix *w, int32_t group_k)
{
    struct matmul_task task = {};

    task.a = *a;
    task.out = out;
    task.out_stride = w->n;
    task.group = packed_num_records(w->type, group_k);
    run(dev, w, task);
}
