#include "worker/models/step_inputs.h"

#include "proto/base/memory.h"

#include <string.h>

/* Of a batch, as put_batch puts it. */
static int64_t batch_count(int64_t rows, int64_t requests, int64_t blocks)
{
    return rows + requests + 1 + requests * blocks;
}

enum status step_inputs_open(struct step_inputs *inputs, struct device *dev, const struct step_inputs_limits *limits)
{
    int64_t blocks = limits->position / KV_BLOCK_TOKENS + 1;
    /* Ids, the batch, and that of rows that sample. Logits are wanted of each row but once, and of these once more. */
    int64_t count = limits->rows + batch_count(limits->rows, limits->requests, blocks) +
                    batch_count(limits->requests, limits->requests, blocks) + limits->rows + limits->logit_rows;

    *inputs = (struct step_inputs){.dev = dev};
    if (!device_has_own_memory(dev))
        return OK;
    for (size_t i = 0; i < COUNT_OF(inputs->mirrors); i++)
        TRY(device_mirror_open(dev, count * (int64_t)sizeof(int32_t), "the inputs of a step", &inputs->mirrors[i]));
    return OK;
}

void step_inputs_close(struct step_inputs *inputs)
{
    for (size_t i = 0; i < COUNT_OF(inputs->mirrors); i++)
        if (inputs->dev)
            device_mirror_close(inputs->dev, &inputs->mirrors[i]);
    *inputs = (struct step_inputs){0};
}

/* Behind what is there; *array becomes the device's. */
static int32_t *take(struct step_inputs *inputs, const int32_t **array, int64_t n)
{
    const struct device_mirror *mirror = &inputs->mirrors[inputs->which];
    int32_t *to = inputs->end;
    int64_t at = (char *)to - mirror->host;

    inputs->end += n;
    ASSERT((char *)inputs->end <= mirror->host + mirror->bytes, "%lld more", (long long)n);
    *array = (const int32_t *)(inputs->mirrors[0].device + at);
    return to;
}

static void put(int32_t *to, const int32_t *from, int64_t n)
{
    if (n > 0)
        memcpy(to, from, (size_t)n * sizeof *to);
}

/* n numbers of *array, and zeros up to `all`. */
static void put_padded(struct step_inputs *inputs, const int32_t **array, int32_t n, int32_t all)
{
    const int32_t *from = *array;
    int32_t *to = take(inputs, array, all);

    put(to, from, n);
    memset(to + n, 0, (size_t)(all - n) * sizeof *to);
}

static void put_row_start(struct step_inputs *inputs, struct batch_view *batch, int32_t added)
{
    const int32_t *from = batch->row_start;
    int32_t *to = take(inputs, &batch->row_start, batch->num_requests + added + 1);

    put(to, from, batch->num_requests + 1);
    for (int32_t i = 1; i <= added; i++)
        to[batch->num_requests + i] = batch->rows + i;
}

/* Of each table what is used of any. */
static void put_block_tables(struct step_inputs *inputs, struct batch_view *batch, int32_t num_requests)
{
    const int32_t *from = batch->block_tables;
    int32_t stride = batch->max_position / KV_BLOCK_TOKENS + 1, given = MIN(stride, batch->block_table_stride);
    int32_t *to = take(inputs, &batch->block_tables, (int64_t)num_requests * stride);

    for (int32_t i = 0; i < batch->num_requests; i++)
        put(to + (int64_t)i * stride, from + (int64_t)i * batch->block_table_stride, given);
    for (int32_t i = batch->num_requests; i < num_requests; i++)
        to[(int64_t)i * stride] = inputs->spare_block;
    batch->block_table_stride = stride;
}

/* Rows that are added, up to so many, are requests of their own, of one token at position 0. */
static void put_batch(struct step_inputs *inputs, struct batch_view *batch, int32_t rows)
{
    int32_t added = rows - batch->rows;

    put_padded(inputs, &batch->positions, batch->rows, rows);
    put_row_start(inputs, batch, added);
    put_block_tables(inputs, batch, batch->num_requests + added);
    batch->rows = rows;
    batch->num_requests += added;
}

/* What was written behind `from`. */
static enum status push(struct step_inputs *inputs, const int32_t *from)
{
    const struct device_mirror *mirror = &inputs->mirrors[inputs->which];
    int64_t at = (char *)from - mirror->host;
    struct device_mirror part = {.host = mirror->host + at, .device = inputs->mirrors[0].device + at};

    return device_mirror_push(inputs->dev, &part, (char *)inputs->end - (char *)from);
}

enum status step_inputs_put(struct step_inputs *inputs, struct batch_view *batch, const int32_t **ids,
                            const int32_t *last_tokens, const struct recording_sizes *sizes)
{
    int32_t rows = sizes ? sizes->rows : batch->rows, *first;

    if (!device_has_own_memory(inputs->dev))
        return OK;
    inputs->which ^= 1;
    inputs->end = first = (int32_t *)inputs->mirrors[inputs->which].host;
    if (sizes)
        batch->max_position = sizes->position;
    put_padded(inputs, ids, batch->rows, rows);
    put_batch(inputs, batch, rows);
    TRY(push(inputs, first));
    if (last_tokens)
        device_kernels(inputs->dev)->take_last_tokens(inputs->dev, (int32_t *)*ids, batch->rows, last_tokens);
    return OK;
}

enum status step_inputs_put_batch(struct step_inputs *inputs, struct batch_view *batch)
{
    int32_t *first = inputs->end;

    if (!device_has_own_memory(inputs->dev))
        return OK;
    put_batch(inputs, batch, batch->rows);
    return push(inputs, first);
}

enum status step_inputs_put_rows(struct step_inputs *inputs, const int32_t **rows, int32_t num_rows, int32_t all)
{
    const int32_t *from = *rows;
    int32_t *to;

    if (!device_has_own_memory(inputs->dev) || num_rows == 0)
        return OK;
    to = take(inputs, rows, all);
    put(to, from, num_rows);
    for (int32_t i = num_rows; i < all; i++)
        to[i] = i;
    return push(inputs, to);
}
