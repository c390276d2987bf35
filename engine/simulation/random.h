/*
 * random: numbers that a seed decides.
 * Thread: that of the owner.
 */
#ifndef ENGINE_SIMULATION_RANDOM_H
#define ENGINE_SIMULATION_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

struct random {
    uint64_t state;
};

static inline uint64_t random_next(struct random *random)
{
    return mix(random->state += 0x9e3779b97f4a7c15);
}

/* In [least, most]. */
static inline int64_t random_between(struct random *random, int64_t least, int64_t most)
{
    return least + (int64_t)((random_next(random) >> 1) % (uint64_t)(most - least + 1));
}

static inline int32_t random_below(struct random *random, int32_t n)
{
    return (int32_t)random_between(random, 0, n - 1);
}

static inline bool random_chance(struct random *random, int32_t percent)
{
    return random_below(random, 100) < percent;
}

#endif
