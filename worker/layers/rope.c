#include "worker/layers/rope.h"

#include "proto/base/memory.h"

#include <math.h>

/* Positions between two that are computed by sin and cos themselves: a table of 32k positions
 * would otherwise take longer than all the rest of loading. */
enum { STRIDE = 256 };

struct turn {
    double cos, sin;
};

static double frequency(const struct rope_frequencies *frequencies, int32_t pair)
{
    double f = pow(frequencies->base, -2.0 * pair / frequencies->dim) / frequencies->factor;

    return frequencies->factors ? f / frequencies->factors[pair] : f;
}

/* turns: [num_pairs], of one position. */
static void turn_pairs(struct turn *turns, int32_t position, const double *f, int32_t num_pairs)
{
    for (int32_t i = 0; i < num_pairs; i++)
        turns[i] = (struct turn){cos(position * f[i]), sin(position * f[i])};
}

/* In double, so that the sum of two angles costs nothing a float could see. */
void rope_fill(float *cos_sin, int32_t max_position, const struct rope_frequencies *frequencies)
{
    int32_t num_pairs = frequencies->dim / 2;
    AUTO_MEM double *f = mem_new_array(double, num_pairs);
    AUTO_MEM struct turn *small = mem_new_array(struct turn, STRIDE * num_pairs);
    AUTO_MEM struct turn *large = mem_new_array(struct turn, num_pairs);

    for (int32_t i = 0; i < num_pairs; i++)
        f[i] = frequency(frequencies, i);
    for (int32_t i = 0; i < STRIDE; i++)
        turn_pairs(small + i * num_pairs, i, f, num_pairs);
    for (int32_t position = 0; position < max_position; position++) {
        const struct turn *a = large, *b = small + position % STRIDE * num_pairs;

        if (position % STRIDE == 0)
            turn_pairs(large, position, f, num_pairs);
        for (int32_t i = 0; i < num_pairs; i++) {
            *cos_sin++ = (float)(a[i].cos * b[i].cos - a[i].sin * b[i].sin);
            *cos_sin++ = (float)(a[i].sin * b[i].cos + a[i].cos * b[i].sin);
        }
    }
}
