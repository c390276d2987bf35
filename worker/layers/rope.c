#include "worker/layers/rope.h"

#include <math.h>

/* Positions between two that are computed by sin and cos themselves: a table of 32k positions
 * would otherwise take longer than all the rest of loading. */
enum { STRIDE = 256 };

struct turn {
    double cos, sin;
};

static struct turn turn_by(double angle)
{
    return (struct turn){cos(angle), sin(angle)};
}

static struct turn turn_both(struct turn a, struct turn b)
{
    return (struct turn){a.cos * b.cos - a.sin * b.sin, a.sin * b.cos + a.cos * b.sin};
}

static double frequency(const struct rope_frequencies *frequencies, int32_t pair)
{
    double f = pow(frequencies->base, -2.0 * pair / frequencies->dim) / frequencies->factor;

    return frequencies->factors ? f / frequencies->factors[pair] : f;
}

/* In double, so that the sum of two angles costs nothing a float could see. */
void rope_fill(float *cos_sin, int32_t max_position, const struct rope_frequencies *frequencies)
{
    int32_t num_pairs = frequencies->dim / 2;

    for (int32_t pair = 0; pair < num_pairs; pair++) {
        double f = frequency(frequencies, pair);
        struct turn small[STRIDE], large = {0};

        for (int32_t i = 0; i < STRIDE; i++)
            small[i] = turn_by(i * f);
        for (int32_t position = 0; position < max_position; position++) {
            if (position % STRIDE == 0)
                large = turn_by(position * f);

            struct turn turn = turn_both(large, small[position % STRIDE]);
            float *out = cos_sin + ((int64_t)position * num_pairs + pair) * 2;

            out[0] = (float)turn.cos;
            out[1] = (float)turn.sin;
        }
    }
}
