#include "kernels/numerics.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <string.h>

float exp_ref(float x)
{
    if (x < EXP_LOWEST)
        return 0;
    if (x > EXP_HIGHEST)
        x = EXP_HIGHEST;

    float shifted = fmaf(x, EXP_LOG2_E, EXP_ROUND), n = shifted - EXP_ROUND;
    float r = fmaf(n, -EXP_LN2_LOW, fmaf(n, -EXP_LN2_HIGH, x));
    float p = EXP_P0;

    p = fmaf(p, r, EXP_P1);
    p = fmaf(p, r, EXP_P2);
    p = fmaf(p, r, EXP_P3);
    p = fmaf(p, r, EXP_P4);
    p = fmaf(p, r, EXP_P5);
    p = fmaf(p, r * r, r) + 1.0f;

    uint32_t bits;
    float power; /* 2^n: the low bits of `shifted` are n */

    memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;
    memcpy(&power, &bits, 4);
    return p * power;
}
