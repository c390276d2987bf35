#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "worker/layers/rope.h"

#include <math.h>

enum { MAX_POSITION = 5000 };

static float *table_of(const struct rope_frequencies *frequencies)
{
    float *table = mem_new_array(float, (size_t)MAX_POSITION * frequencies->dim);

    rope_fill(table, MAX_POSITION, frequencies);
    return table;
}

/* Against sin and cos of the angle itself, at every position. */
static void expect_angles(const struct rope_frequencies *frequencies)
{
    AUTO_MEM float *table = table_of(frequencies);
    const float *at = table;

    for (int32_t position = 0; position < MAX_POSITION; position++)
        for (int32_t i = 0; i < frequencies->dim / 2; i++, at += 2) {
            double f = pow(frequencies->base, -2.0 * i / frequencies->dim) / frequencies->factor;

            f /= frequencies->factors ? frequencies->factors[i] : 1;
            assert_true(fabs(at[0] - cos(position * f)) < 1e-7);
            assert_true(fabs(at[1] - sin(position * f)) < 1e-7);
        }
}

static void every_position_has_its_angle(void **state)
{
    (void)state;
    expect_angles(&(struct rope_frequencies){.dim = 64, .base = 100000, .factor = 1});
}

static void linear_scaling_divides_the_angle(void **state)
{
    (void)state;
    expect_angles(&(struct rope_frequencies){.dim = 32, .base = 1e6, .factor = 8});
}

static void each_pair_is_divided_by_its_factor(void **state)
{
    static const float factors[] = {1, 1.5f, 4, 32};

    (void)state;
    expect_angles(
        &(struct rope_frequencies){.dim = 8, .base = 500000, .factor = 1, .factors = factors});
}

/* A longer table begins with the shorter one: --max-model-len changes no answer. */
static void an_angle_does_not_depend_on_the_length(void **state)
{
    struct rope_frequencies frequencies = {.dim = 64, .base = 10000, .factor = 1};
    AUTO_MEM float *whole = table_of(&frequencies);
    float part[300 * 64];

    (void)state;
    rope_fill(part, 300, &frequencies);
    assert_memory_equal(part, whole, sizeof(part));
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_position_has_its_angle),
    cmocka_unit_test(linear_scaling_divides_the_angle),
    cmocka_unit_test(each_pair_is_divided_by_its_factor),
    cmocka_unit_test(an_angle_does_not_depend_on_the_length),
};

TEST_MAIN(tests)
