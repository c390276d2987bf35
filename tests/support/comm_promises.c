#include "tests/support/comm_promises.h"

#include "proto/base/memory.h"

#include <string.h>
#include <unistd.h>

enum { COUNT = 700 /* more than one buffer */, STRIDE = 10000 };

/* A value on the exact grid that rank, round and place decide. */
static double value(int32_t rank, int round, int i)
{
    return (double)((rank + 1) * 7919 + round * 31 - i * 3) * EXACT_GRID;
}

/* Of what one rank has alone. Some that a sum with +0 would change: -0, and a NaN that signals. */
static uint32_t word(int round, int i)
{
    static const uint32_t special[] = {0x80000000, 0x7f812345, 0x00000001};

    return i % 5 < 3 ? special[i % 5] : (uint32_t)(i + round) * 2654435761u;
}

/* What a rank tells the others in a round: nothing, a little, or more than a buffer holds. */
static int64_t bytes_of(int32_t rank, int round)
{
    return (rank + round) % 3 == 2 ? STRIDE - rank : (rank + round) % 3 * (100 + round);
}

static char byte_of(int32_t rank, int round, int64_t i)
{
    return (char)(rank * 31 + round + i * 7);
}

/* The parts that are told, every rank's or of some together. */
static bool sums_in_place_are_right(struct comm *comm, int32_t rank, int round, int32_t world)
{
    int64_t count = comm_sum_max(comm);
    struct comm_parts sum;
    bool good = count == PROMISE_BUFFER_BYTES / sizeof(double);

    for (int64_t i = 0; i < count; i++)
        comm_sum_buffer(comm)[i] = value(rank, round, (int)i);
    if (comm_sum(comm, count, &sum) != OK)
        return false;
    for (int64_t i = 0; i < count; i++) {
        double all = 0, told = 0;

        for (int32_t r = 0; r < world; r++)
            all += value(r, round, (int)i);
        for (int32_t p = 0; p < sum.num_parts; p++)
            told += sum.parts[p][i];
        good &= told == all;
        for (int32_t r = 0; r < world && sum.num_parts == world; r++)
            good &= sum.parts[r][i] == value(r, round, (int)i);
    }
    return good;
}

/* Ranks write each its own place between two barriers, and read all after the second. */
static bool ranks_see_shared_memory(struct comm *comm, int32_t rank, int round, int32_t world)
{
    int32_t *shared = comm_shared(comm);
    bool good = true;

    if (comm_barrier(comm) != OK)
        return false;
    if (!shared)
        return true;
    shared[PROMISE_SHARED_BYTES / 4 - 1 - rank] = rank + round;
    if (comm_barrier(comm) != OK)
        return false;
    for (int32_t r = 0; r < world; r++)
        good &= shared[PROMISE_SHARED_BYTES / 4 - 1 - r] == r + round;
    return good;
}

bool comm_keeps_its_promises(struct comm *comm, int32_t rank, int32_t world, int rounds)
{
    AUTO_MEM double *sums = mem_new_array(double, COUNT);
    AUTO_MEM float *disjoint = mem_new_array(float, COUNT);
    AUTO_MEM uint32_t *words = mem_new_array(uint32_t, COUNT);
    AUTO_MEM char *told = mem_new_array(char, STRIDE);
    AUTO_MEM char *gathered = mem_new_array(char, STRIDE * 16);
    int64_t told_bytes[16];
    bool good = true;

    for (int round = 0; round < rounds && good; round++) {
        for (int i = 0; i < COUNT; i++) {
            sums[i] = value(rank, round, i);
            words[i] = i % world == rank ? word(round, i) : 0;
        }
        memcpy(disjoint, words, COUNT * sizeof *words);
        for (int64_t i = 0; i < bytes_of(rank, round); i++)
            told[i] = byte_of(rank, round, i);
        if (comm_all_reduce_f64(comm, sums, COUNT) != OK ||
            comm_all_reduce_f32_disjoint(comm, disjoint, COUNT) != OK ||
            comm_all_gather(comm, told, bytes_of(rank, round), STRIDE, gathered, told_bytes) != OK)
            return false;
        memcpy(words, disjoint, COUNT * sizeof *words);
        for (int i = 0; i < COUNT; i++) {
            double sum = 0;

            for (int32_t r = world; r-- > 0;)
                sum += value(r, round, i);
            good &= sums[i] == sum && words[i] == word(round, i);
        }
        good &= sums_in_place_are_right(comm, rank, round, world) &&
                ranks_see_shared_memory(comm, rank, round, world);
        for (int32_t r = 0; r < world; r++) {
            good &= told_bytes[r] == bytes_of(r, round);
            for (int64_t i = 0; i < told_bytes[r]; i++)
                good &= gathered[r * STRIDE + i] == byte_of(r, round, i);
        }
        if (round % 7 == rank)
            usleep(100);
    }
    return good;
}
