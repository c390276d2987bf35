#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "proto/model/quant.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static uint32_t float_bits(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return bits;
}

/* ---- halves ---------------------------------------------------------------------------------- */

static void every_half_has_the_value_of_its_sign_exponent_and_fraction(void **state)
{
    (void)state;
    for (int h = 0; h < 0x10000; h++) {
        int exponent = h >> 10 & 0x1f, fraction = h & 0x3ff;
        float f = half_to_float((uint16_t)h);

        if (exponent == 31 && fraction) {
            assert_true(isnan(f));
        } else {
            double value = exponent == 31  ? INFINITY
                           : exponent == 0 ? ldexp(fraction, -24)
                                           : ldexp(1024 + fraction, exponent - 25);

            assert_int_equal(float_bits(f), float_bits((float)(h & 0x8000 ? -value : value)));
        }
    }
}

static void every_half_survives_the_way_to_float_and_back(void **state)
{
    (void)state;
    for (int h = 0; h < 0x10000; h++)
        assert_int_equal(float_to_half(half_to_float((uint16_t)h)), h);
}

static void a_float_becomes_the_nearest_half_and_a_tie_the_even_one(void **state)
{
    (void)state;
    for (int h = 0; h < 0x7c00; h++) { /* neighbours h and h + 1; 65536 stands for infinity */
        float low = half_to_float((uint16_t)h);
        float high = h + 1 == 0x7c00 ? 65536.0f : half_to_float((uint16_t)(h + 1));
        float middle = (low + high) / 2; /* exact: a half has 13 bits to spare in a float */

        assert_int_equal(float_to_half(nextafterf(middle, 0)), h);
        assert_int_equal(float_to_half(nextafterf(middle, INFINITY)), h + 1);
        assert_int_equal(float_to_half(middle), h % 2 ? h + 1 : h);
        assert_int_equal(float_to_half(-middle), (h % 2 ? h + 1 : h) | 0x8000);
    }
}

static void a_nan_stays_a_nan_and_what_is_too_large_becomes_infinity(void **state)
{
    (void)state;
    float quietest;
    uint32_t bits = 0xff800001;

    memcpy(&quietest, &bits, 4);
    assert_int_equal(float_to_half(quietest) & 0x7c00, 0x7c00);
    assert_int_not_equal(float_to_half(quietest) & 0x3ff, 0);
    assert_int_equal(float_to_half(1e30f), 0x7c00);
    assert_int_equal(float_to_half(-INFINITY), 0xfc00);
    assert_int_equal(float_to_half(1e-30f), 0);
    assert_int_equal(float_to_half(-1e-30f), 0x8000);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static void rows_have_the_bytes_of_their_blocks(void **state)
{
    (void)state;
    assert_int_equal(tensor_row_bytes(TYPE_F32, 7), 28);
    assert_int_equal(tensor_row_bytes(TYPE_Q4_1, 576), 18 * 20);
    assert_int_equal(tensor_row_bytes(TYPE_Q6_K, 2048), 8 * 210);
    assert_string_equal(tensor_type_info(TYPE_Q5_K)->name, "Q5_K");
}

struct golden {
    char name[8];
    uint32_t num_bytes, num_elements;
};

static void every_type_dequantises_to_the_bits_of_gguf_py(void **state)
{
    (void)state;
    AUTO_MEM char *path = mem_printf("%s/model/quant_golden.bin", getenv("TANDEM_TEST_DATA"));
    FILE *f = fopen(path, "rb");
    struct golden golden;
    int type;

    assert_non_null(f);
    for (type = 0; fread(&golden, sizeof golden, 1, f) == 1; type++) {
        AUTO_MEM uint8_t *raw = mem_alloc(golden.num_bytes);
        AUTO_MEM float *wanted = mem_new_array(float, golden.num_elements);
        AUTO_MEM float *got = mem_new_array(float, golden.num_elements);
        int64_t n = golden.num_elements;

        assert_int_equal(fread(raw, 1, golden.num_bytes, f), golden.num_bytes);
        assert_int_equal(fread(wanted, 4, golden.num_elements, f), golden.num_elements);
        assert_string_equal(tensor_type_info((enum tensor_type)type)->name, golden.name);
        assert_int_equal(tensor_row_bytes((enum tensor_type)type, n), golden.num_bytes);

        tensor_dequantize((enum tensor_type)type, raw, 0, n, got);
        assert_memory_equal(got, wanted, (size_t)n * 4);
        /* A part that starts and ends inside of blocks. */
        memset(got, 0, (size_t)n * 4);
        tensor_dequantize((enum tensor_type)type, raw, 96, n - 224, got);
        assert_memory_equal(got, wanted + 96, (size_t)(n - 224) * 4);
        assert_int_equal(float_bits(got[n - 224]), 0);
    }
    fclose(f);
    assert_int_equal(type, NUM_TENSOR_TYPES);
}

static void a_type_is_found_by_its_name(void **state)
{
    enum tensor_type type;

    (void)state;
    for (int i = 0; i < NUM_TENSOR_TYPES; i++) {
        assert_true(tensor_type_find(tensor_type_info((enum tensor_type)i)->name, &type));
        assert_int_equal(type, i);
    }
    assert_true(tensor_type_find("q4_k", &type));
    assert_int_equal(type, TYPE_Q4_K);
    assert_false(tensor_type_find("q4", &type) || tensor_type_find("", &type));
}

/* ---- fp8 ------------------------------------------------------------------------------------- */

static void every_fp8_code_has_the_value_of_its_sign_exponent_and_fraction(void **state)
{
    (void)state;
    for (int code = 0; code < 0x100; code++) {
        int exponent = code >> 3 & 15, fraction = code & 7;
        double value = exponent ? ldexp(8 + fraction, exponent - 10) : ldexp(fraction, -9);
        float f = fp8_to_float((uint8_t)code);

        if (exponent == 15 && fraction == 7)
            assert_true(isnan(f));
        else
            assert_true((double)f == (code & 0x80 ? -value : value) && !signbit(f) == !(code & 0x80));
        assert_int_equal(float_to_fp8(f), code);
    }
}

/* Of the neighbours of every two codes and of their middle. */
static void a_float_becomes_the_nearest_fp8_code_and_a_tie_the_even_one(void **state)
{
    (void)state;
    for (int code = 0; code < 0x7e; code++) {
        float low = fp8_to_float((uint8_t)code), high = fp8_to_float((uint8_t)(code + 1));
        float middle = (low + high) / 2;

        assert_int_equal(float_to_fp8(middle), code + code % 2);
        assert_int_equal(float_to_fp8(nextafterf(middle, 0)), code);
        assert_int_equal(float_to_fp8(-nextafterf(middle, 1000)), 0x80 | (code + 1));
    }
    assert_int_equal(float_to_fp8(449), 0x7e);
    assert_int_equal(float_to_fp8(-1e30f), 0xfe);
    assert_int_equal(float_to_fp8(INFINITY), 0x7e);
    assert_int_equal(float_to_fp8(1e-40f), 0);
}

/* Against a product in double, which is exact, rounded to a float and that to bf16 by a search. */
static void scaled_codes_are_rounded_to_bf16(void **state)
{
    static const float scales[] = {1, 0, 0x1p-9f, 0x1.23457p-7f, 0x1.fffffep3f, 3e-38f, 1e-41f, 1e36f, 3.4e38f};

    (void)state;
    for (size_t s = 0; s < COUNT_OF(scales); s++)
        for (int code = 0; code < 0x100; code++) {
            float product = (float)((double)fp8_to_float((uint8_t)code) * (double)scales[s]), low, high;
            uint8_t codes[3] = {0x38, (uint8_t)code, 0x38};
            uint32_t bits = float_bits(product) & 0xffff0000u, next = bits + 0x10000;
            uint16_t got[3];

            fp8_to_bf16(codes, 3, scales[s], got);
            assert_int_equal(got[0], got[2]);
            if (isnan(product)) {
                assert_int_equal(got[1], 0x7fc0);
                continue;
            }
            memcpy(&low, &bits, 4);
            memcpy(&high, &next, 4);
            if (isinf(product) || product == low)
                assert_int_equal(got[1], bits >> 16);
            else if (isinf(high)) /* there is nothing between it and what is too large: half of the last step up */
                assert_int_equal(got[1], (float_bits(product) & 0x8000 ? next : bits) >> 16);
            else if (fabs((double)product - (double)low) == fabs((double)high - (double)product))
                assert_int_equal(got[1], (bits & 0x10000 ? next : bits) >> 16);
            else
                assert_int_equal(got[1], (fabs((double)product - (double)low) < fabs((double)high - (double)product)
                                              ? bits : next) >> 16);
        }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(every_half_has_the_value_of_its_sign_exponent_and_fraction),
    cmocka_unit_test(every_half_survives_the_way_to_float_and_back),
    cmocka_unit_test(a_float_becomes_the_nearest_half_and_a_tie_the_even_one),
    cmocka_unit_test(a_nan_stays_a_nan_and_what_is_too_large_becomes_infinity),
    cmocka_unit_test(every_fp8_code_has_the_value_of_its_sign_exponent_and_fraction),
    cmocka_unit_test(a_float_becomes_the_nearest_fp8_code_and_a_tie_the_even_one),
    cmocka_unit_test(scaled_codes_are_rounded_to_bf16),
    cmocka_unit_test(rows_have_the_bytes_of_their_blocks),
    cmocka_unit_test(every_type_dequantises_to_the_bits_of_gguf_py),
    cmocka_unit_test(a_type_is_found_by_its_name),
};
TEST_MAIN(tests)
