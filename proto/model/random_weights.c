#include "proto/model/random_weights.h"

#include <string.h>

uint64_t random_weights_bits(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* Exact, so alike on every machine. */
float random_weights_float(uint64_t *state)
{
    return (float)((int32_t)(random_weights_bits(state) >> 40) - (1 << 23)) / (float)(1 << 23);
}

/* Random bits are weights of mean 0 in every quantised type, if the block's minimum is `min_ratio`
 * times its scale. Then d = 1 gives them about the deviation in `deviation`. */
static const struct {
    int d_at, min_at; /* -1: the type has no minimum */
    float min_ratio, deviation;
} block_types[NUM_TENSOR_TYPES] = {
    [TYPE_Q4_0] = {0, -1, 0, 4.6f},        [TYPE_Q4_1] = {0, 2, -7.5f, 4.6f},
    [TYPE_Q5_0] = {0, -1, 0, 9.2f},        [TYPE_Q5_1] = {0, 2, -15.5f, 9.2f},
    [TYPE_Q8_0] = {0, -1, 0, 74},          [TYPE_Q2_K] = {80, 82, 1.5f, 10},
    [TYPE_Q3_K] = {108, -1, 0, 42},        [TYPE_Q4_K] = {0, 2, 7.5f, 168},
    [TYPE_Q5_K] = {0, 2, 15.5f, 337},      [TYPE_Q6_K] = {208, -1, 0, 1370},
};

/* The K types with minimums scale these by group: each with the same number as the scale. */
static void match_minimums_to_scales(enum tensor_type type, uint8_t *block)
{
    if (type == TYPE_Q2_K)
        for (int i = 0; i < 16; i++)
            block[i] = (uint8_t)((block[i] & 0xf) * 0x11);
    if (type != TYPE_Q4_K && type != TYPE_Q5_K)
        return;
    memcpy(block + 8, block + 4, 4);
    for (int i = 12; i < 16; i++)
        block[i] = (uint8_t)((block[i] & 0xf) * 0x11);
}

static void put_half(uint8_t *at, float value)
{
    uint16_t half = float_to_half(value);

    memcpy(at, &half, 2);
}

static void fill_block(uint64_t *state, enum tensor_type type, float deviation, uint8_t *block)
{
    float d = deviation / block_types[type].deviation * (1 + random_weights_float(state) / 2);

    for (int32_t i = 0; i < tensor_type_info(type)->block_bytes; i++)
        block[i] = (uint8_t)(random_weights_bits(state) >> 56);
    match_minimums_to_scales(type, block);
    put_half(block + block_types[type].d_at, d);
    if (block_types[type].min_at >= 0)
        put_half(block + block_types[type].min_at, d * block_types[type].min_ratio);
}

static void fill_number(uint64_t *state, enum tensor_type type, float deviation, uint8_t *out)
{
    float value = random_weights_float(state) * deviation * 1.732f;
    uint16_t high;

    memcpy(&high, (uint8_t *)&value + 2, 2);
    if (type == TYPE_F32)
        memcpy(out, &value, 4);
    else if (type == TYPE_F16)
        put_half(out, value);
    else
        memcpy(out, &high, 2);
}

/* 4 bits of a whole number are all that a code has room for. */
static uint8_t random_code(uint64_t *state)
{
    int32_t value = (int32_t)(random_weights_bits(state) % 31) - 15, size = value < 0 ? -value : value;
    int log = 0;

    while (size >> log > 1)
        log++;
    return (uint8_t)((value < 0) << 7 | (size ? (log + 7) << 3 | (size << (3 - log) & 7) : 0));
}

void random_weights_fill(uint64_t *state, enum tensor_type type, float deviation, void *out, size_t bytes)
{
    const struct tensor_type_info *info = tensor_type_info(type);
    size_t step = (size_t)info->block_bytes;
    uint8_t *data = out;

    ASSERT(bytes % step == 0, "%zu bytes of %s", bytes, info->name);
    for (size_t at = 0; at < bytes; at += step) {
        if (type == TYPE_F8_E4M3)
            data[at] = random_code(state);
        else if (info->block_elements == 1)
            fill_number(state, type, deviation, data + at);
        else
            fill_block(state, type, deviation, data + at);
    }
}
