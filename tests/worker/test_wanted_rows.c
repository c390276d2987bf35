/* Which batch the rows are that logits are wanted of. */
#include "tests/support/expect.h"

#include "worker/models/wanted_rows.h"

enum { MAX_ROWS = 8, MAX_POSITION = 64, BLOCKS = MAX_POSITION / KV_BLOCK_TOKENS, STRIDE = BLOCKS + 1 };

/* Requests of 1 row at position 40, of 20 from 0 on, of none, and of 3 from 14 on. */
static const int32_t row_start[] = {0, 1, 21, 21, 24};
static const int32_t block_tables[4][STRIDE] = {{1, 2, 3}, {4, 5}, {6}, {7, 8}};

static struct batch_view find(struct wanted_rows *wanted, const int32_t *rows, int32_t n)
{
    int32_t positions[24];
    struct batch_view batch = {.rows = 24, .num_requests = 4, .row_start = row_start, .positions = positions,
                               .block_tables = block_tables[0], .block_table_stride = STRIDE, .max_position = 40},
                      out;

    positions[0] = 40;
    for (int32_t i = 0; i < 20; i++)
        positions[1 + i] = i;
    for (int32_t i = 0; i < 3; i++)
        positions[21 + i] = 14 + i;
    wanted_rows_find(wanted, &batch, rows, n, &out);
    assert_int_equal(out.rows, n);
    assert_int_equal(out.max_position, 40);
    assert_int_equal(out.row_start[0], 0);
    assert_int_equal(out.row_start[out.num_requests], n);
    return out;
}

static void expect_request(const struct batch_view *batch, int32_t request, int32_t first, int32_t rows,
                           int32_t position, const int32_t *blocks, int32_t num_blocks)
{
    assert_int_equal(batch->row_start[request], first);
    assert_int_equal(batch->row_start[request + 1], first + rows);
    for (int32_t i = 0; i < rows; i++)
        assert_int_equal(batch->positions[first + i], position + i);
    assert_memory_equal(batch->block_tables + (int64_t)request * batch->block_table_stride, blocks,
                        (size_t)num_blocks * sizeof *blocks);
}

static void rows_that_follow_one_another_are_a_request(void **state)
{
    struct wanted_rows wanted = {0};
    struct batch_view out;

    (void)state;
    wanted_rows_open(&wanted, MAX_ROWS, MAX_POSITION);
    out = find(&wanted, (const int32_t[]){0, 20, 21, 22, 23}, 5);
    assert_int_equal(out.num_requests, 3);
    expect_request(&out, 0, 0, 1, 40, block_tables[0], 3);
    expect_request(&out, 1, 1, 1, 19, block_tables[1], 2);
    expect_request(&out, 2, 2, 3, 14, block_tables[3], 2);
    wanted_rows_close(&wanted);
}

static void a_gap_makes_two_of_one(void **state)
{
    struct wanted_rows wanted = {0};
    struct batch_view out;

    (void)state;
    wanted_rows_open(&wanted, MAX_ROWS, MAX_POSITION);
    out = find(&wanted, (const int32_t[]){2, 3, 9, 23}, 4);
    assert_int_equal(out.num_requests, 3);
    expect_request(&out, 0, 0, 2, 1, block_tables[1], 1);
    expect_request(&out, 1, 2, 1, 8, block_tables[1], 1);
    expect_request(&out, 2, 3, 1, 16, block_tables[3], 2);
    out = find(&wanted, NULL, 0);
    assert_int_equal(out.num_requests, 0);
    wanted_rows_close(&wanted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_follow_one_another_are_a_request),
        cmocka_unit_test(a_gap_makes_two_of_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
