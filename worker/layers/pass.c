#include "worker/layers/pass.h"

#include "proto/base/memory.h"
#include "proto/base/rounding.h"
#include "worker/layers/linear.h"

#include <string.h>

/* From this many rows on, what adding and norming them on every rank costs is more than one more wait for
 * the other ranks. */
enum { SHARED_ROWS = 8 };

struct range {
    int32_t first, end;
};

/* Of the rows of `all`, those that this rank adds up and norms. */
static struct range own_rows(const struct pass *pass, struct range all)
{
    int64_t count = all.end - all.first, rank = pass->shard->rank, world = pass->shard->world;

    if (!pass->shares_rows)
        return all;
    return (struct range){all.first + (int32_t)(count * rank / world),
                          all.first + (int32_t)(count * (rank + 1) / world)};
}

static struct activations rows_of(const struct activations *a, struct range rows)
{
    return activations_rows(a, rows.first, rows.end - rows.first);
}

/* Rows [own.first, own.end); args says what is added to these. */
static void add_norm(struct pass *pass, struct range own, struct add_norm_args args,
                     const struct norm_step *next)
{
    struct activations out = {0};

    if (next->weight) {
        struct activations all = linear_reads(next->reader, &pass->normed, pass->batch->rows);

        out = rows_of(&all, own);
    }
    args.rows = own.end - own.first;
    args.n = pass->config->hidden_size;
    args.residual = pass->residual + (int64_t)own.first * args.n;
    args.post_norm = next->post;
    args.norm = next->weight;
    args.eps = pass->config->rms_norm_eps;
    args.out = &out;
    pass->kernels->add_norm(pass->dev, &args);
    work_count_add(pass->work);
}

/* The rows of the residual that other ranks have added to. */
static enum status gather_residual(struct pass *pass, struct range rows)
{
    int64_t hidden = pass->config->hidden_size, world = pass->shard->world;
    int64_t count = rows.end - rows.first, stride = divide_up_64(count, world) * hidden;
    struct range own = own_rows(pass, rows);
    float *residual = pass->residual + rows.first * hidden;

    TRY(comm_all_gather(pass->comm, pass->residual + own.first * hidden,
                        (own.end - own.first) * hidden * (int64_t)sizeof(float),
                        stride * (int64_t)sizeof(float), pass->gathered, pass->gathered_bytes));
    for (int64_t rank = 0; rank < world; rank++)
        memcpy(residual + count * rank / world * hidden, pass->gathered + rank * stride,
               (size_t)pass->gathered_bytes[rank]);
    return OK;
}

/* When it returns, every rank's rows of normed are there. */
static enum status meet(struct pass *pass)
{
    return pass->shares_rows ? comm_barrier(pass->comm) : OK;
}

void pass_begin(struct pass *pass, const struct batch_view *batch, const struct streams *streams)
{
    pass->batch = batch;
    pass->residual = streams->residual;
    pass->qkv = streams->qkv;
    /* An observer wants all rows of the residual on every rank. */
    pass->shares_rows = pass->common.q && batch->rows >= SHARED_ROWS && !pass->observer;
    pass->normed = pass->shares_rows ? pass->common : pass->own;
}

struct norm_step pass_step_to(const struct pass *pass, int32_t layer, const float *post)
{
    const struct layer *to = &pass->weights->layers[layer];

    if (layer == pass->config->num_layers)
        return (struct norm_step){.post = post};
    return (struct norm_step){
        .post = post,
        .weight = to->attention_norm,
        .reader = &to->qkv,
        /* the last layer's rows are dealt out among the ranks anew */
        .gathers = layer == pass->config->num_layers - 1 && pass->wanted && pass->wanted->rows > 0,
    };
}

enum status pass_norm(struct pass *pass, const struct norm_step *next)
{
    struct range own = own_rows(pass, (struct range){0, pass->batch->rows});

    add_norm(pass, own, (struct add_norm_args){0}, next);
    return meet(pass);
}

static enum status add_linear_of_rows(struct pass *pass, const struct linear *linear, int32_t group,
                                      const struct activations *x, struct range rows,
                                      const struct norm_step *next)
{
    struct activations some = rows_of(x, rows);
    struct range own = own_rows(pass, rows);
    int64_t hidden = linear->n, own_start = (int64_t)(own.first - rows.first) * hidden;
    struct comm_parts parts;

    pass->kernels->matmul_groups(pass->dev, comm_sum_buffer(pass->comm), &some,
                                 &linear->matrices[0], group);
    TRY(comm_sum(pass->comm, some.rows * hidden, &parts));
    for (int32_t i = 0; i < parts.num_parts; i++)
        pass->parts[i] = parts.parts[i] + own_start;
    add_norm(pass, own,
             (struct add_norm_args){.parts = pass->parts, .num_parts = parts.num_parts}, next);
    return pass->shares_rows && (next->gathers || !next->weight) ? gather_residual(pass, rows) : OK;
}

enum status pass_add_linear(struct pass *pass, const struct linear *linear, int32_t group,
                            const struct activations *x, const struct norm_step *next)
{
    struct range all = {0, x->rows};
    int32_t most;

    ASSERT(linear->num_matrices == 1);
    if (pass->shard->world == 1) {
        if (pass->inexact_sums)
            pass->kernels->matmul(pass->dev, pass->sum, linear->n, x, &linear->matrices[0]);
        else
            pass->kernels->matmul_groups_float(pass->dev, pass->sum, x, &linear->matrices[0], group);
        add_norm(pass, all, (struct add_norm_args){.sum = pass->sum}, next);
        return OK;
    }
    most = (int32_t)MIN(comm_sum_max(pass->comm) / linear->n, (int64_t)SUM_ROWS);
    for (int32_t first = 0; first < x->rows; first += most)
        TRY(add_linear_of_rows(pass, linear, group, x,
                               (struct range){first, MIN(first + most, x->rows)}, next));
    return next->weight ? meet(pass) : OK;
}

void pass_observe(struct pass *pass, int32_t layer)
{
    int64_t count = (int64_t)pass->batch->rows * pass->config->hidden_size;

    if (!pass->observer)
        return;

    AUTO_MEM float *residual = mem_new_array(float, count);
    enum status status = device_read(pass->dev, residual, pass->residual, count * (int64_t)sizeof *residual);

    ASSERT(status == OK, "%s", fail_text());
    pass->observer(pass->observer_user, layer, residual);
}
