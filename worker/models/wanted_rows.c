#include "worker/models/wanted_rows.h"

#include "proto/base/memory.h"

#include <string.h>

static int32_t num_blocks(int32_t positions)
{
    return divide_up(positions, KV_BLOCK_TOKENS);
}

void wanted_rows_open(struct wanted_rows *wanted, int32_t max_rows, int32_t max_position)
{
    wanted->max_position = max_position;
    wanted->positions = mem_new_array(int32_t, max_rows);
    wanted->row_start = mem_new_array(int32_t, (int64_t)max_rows + 1);
    wanted->block_tables = mem_new_array(int32_t, (int64_t)max_rows * num_blocks(max_position));
}

void wanted_rows_close(struct wanted_rows *wanted)
{
    mem_free(wanted->positions);
    mem_free(wanted->row_start);
    mem_free(wanted->block_tables);
    *wanted = (struct wanted_rows){0};
}

/* Request `to` is some of request `from` of the batch. */
static void begin_request(struct wanted_rows *wanted, const struct batch_view *batch, int32_t from, int32_t to)
{
    int32_t last = batch->positions[batch->row_start[from + 1] - 1];

    memcpy(wanted->block_tables + (int64_t)to * num_blocks(wanted->max_position),
           batch->block_tables + (int64_t)from * batch->block_table_stride,
           (size_t)num_blocks(last + 1) * sizeof(int32_t));
}

void wanted_rows_find(struct wanted_rows *wanted, const struct batch_view *batch, const int32_t *rows,
                      int32_t num_rows, struct batch_view *out)
{
    int32_t request = 0, count = 0;

    for (int32_t i = 0; i < num_rows; i++) {
        bool begins = i == 0 || rows[i] != rows[i - 1] + 1;

        while (batch->row_start[request + 1] <= rows[i]) {
            request++;
            begins = true;
        }
        if (begins) {
            wanted->row_start[count] = i;
            begin_request(wanted, batch, request, count++);
        }
        wanted->positions[i] = batch->positions[rows[i]];
    }
    wanted->row_start[count] = num_rows;
    *out = (struct batch_view){
        .rows = num_rows,
        .num_requests = count,
        .row_start = wanted->row_start,
        .positions = wanted->positions,
        .block_tables = wanted->block_tables,
        .block_table_stride = num_blocks(wanted->max_position),
        .max_position = batch->max_position,
    };
}
