#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "worker/philox.h"
#include "worker/slice.h"

#include <math.h>

static uint64_t random_state = 1;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

/* ---- weights -------------------------------------------------------------------------------- */

static void a_weight_is_the_exponential_on_the_grid(void **state)
{
    static const int32_t vocab_sizes[] = {2, 1000, 49152, 262144, 1 << 24};

    (void)state;
    for (size_t v = 0; v < COUNT_OF(vocab_sizes); v++) {
        int32_t bits = grid_bits_for(vocab_sizes[v]);

        assert_in_range(bits, 38, 51);
        assert_true((double)vocab_sizes[v] * ldexp(1, bits) <= ldexp(1, 62)); /* the sum fits */
        assert_true(weight_of(3, 3, bits) == (uint64_t)1 << bits);
        assert_true(weight_of(-INFINITY, 3, bits) == 0);
        for (int i = 0; i < 50000; i++) {
            float max = (float)(next_random() % 1000) / 7 - 60;
            float logit = max - (float)next_random() * 0x1p-32f * 45;
            double exact = ldexp(exp((double)logit - max), bits);

            /* rounded, and 1e-14 of it for the series */
            assert_true(fabs((double)weight_of(logit, max, bits) - exact) <= 0.5 + exact * 1e-14);
        }
    }
}

static void keys_are_in_the_order_of_floats(void **state)
{
    static const float ascending[] = {-INFINITY, -3e38f, -1, -1e-45f, 0, 1e-45f, 0.5f, 1, 3e38f};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(ascending); i++) {
        assert_true(logit_of_key(key_of_logit(ascending[i])) == ascending[i]);
        assert_true(i == 0 || key_of_logit(ascending[i - 1]) < key_of_logit(ascending[i]));
    }
    assert_int_equal(key_of_logit(-0.0f), key_of_logit(0));
}

/* ---- the first in order -----------------------------------------------------------------------
 */

static int compare(const void *a, const void *b)
{
    return candidate_comes_before(*(const struct candidate *)a, *(const struct candidate *)b) ? -1
                                                                                              : 1;
}

/* Orders that are hard to split well: sorted both ways, equal, a saw, halves that interleave. */
static float hard_logit(int kind, int32_t i, int32_t n)
{
    switch (kind) {
    case 0:
        return (float)i;
    case 1:
        return (float)-i;
    case 2:
        return 5;
    case 3:
        return (float)(i % 7);
    case 4:
        return (float)(i % 2 ? i : n - i);
    default:
        return (float)(next_random() % 1000);
    }
}

static void the_first_k_are_found_in_any_order(void **state)
{
    enum { MAX = 3000 };
    AUTO_MEM struct candidate *given = mem_new_array(struct candidate, MAX);
    AUTO_MEM struct candidate *sorted = mem_new_array(struct candidate, MAX);

    (void)state;
    for (int kind = 0; kind < 6; kind++)
        for (int round = 0; round < 60; round++) {
            int32_t n = 1 + (int32_t)(next_random() % MAX), k = (int32_t)(next_random() % (n + 1));

            for (int32_t i = 0; i < n; i++)
                given[i] = sorted[i] = (struct candidate){hard_logit(kind, i, n), i};
            qsort(sorted, (size_t)n, sizeof *sorted, compare);
            candidates_select(given, n, k);
            qsort(given, (size_t)k, sizeof *given, compare);
            for (int32_t i = 0; i < k; i++)
                assert_int_equal(given[i].token, sorted[i].token);
        }
}

static void a_slices_first_are_those_of_its_tokens(void **state)
{
    enum { MAX = 9000 };
    AUTO_MEM float *logits = mem_new_array(float, MAX);
    AUTO_MEM struct candidate *top = mem_new_array(struct candidate, MAX);
    AUTO_MEM struct candidate *sorted = mem_new_array(struct candidate, MAX);
    struct candidate blocks[MAX / 64 + 2];

    (void)state;
    for (int round = 0; round < 300; round++) {
        struct slice slice = {logits, (int32_t)(next_random() % 100),
                              1 + (int32_t)(next_random() % (MAX - 1)), round % 2 ? 1 : 0.7f};
        int32_t k = 1 + (int32_t)(next_random() % 200), n = 0;
        float least = round % 3 ? -INFINITY : 300;

        for (int32_t i = 0; i < slice.num_tokens; i++) {
            logits[i] = hard_logit(round % 6, i, slice.num_tokens);
            logits[i] = next_random() % 50 == 0 ? NAN : logits[i];
            if (logits[i] / slice.temperature >= least && logits[i] > -INFINITY)
                sorted[n++] =
                    (struct candidate){logits[i] / slice.temperature, slice.first_token + i};
        }
        qsort(sorted, (size_t)n, sizeof *sorted, compare);
        assert_in_range(slice_num_blocks(slice.first_token, slice.num_tokens), 1, COUNT_OF(blocks));
        assert_int_equal(slice_top(&slice, keep_from(least), k, top, blocks), MIN(k, n));
        n = MIN(k, n);
        qsort(top, (size_t)n, sizeof *top, compare);
        for (int32_t i = 0; i < n; i++) {
            assert_int_equal(top[i].token, sorted[i].token);
            assert_true(top[i].logit == sorted[i].logit);
        }
        if (least == -INFINITY && n > 0)
            assert_int_equal(slice_best(&slice).token, sorted[0].token);
    }
}

/* ---- the draw ------------------------------------------------------------------------------- */

/* Who knows a lift as a float alone leaves out nothing that would have won. */
static void bits_that_are_left_out_fall_short_of_the_lift(void **state)
{
    (void)state;
    assert_true(gumbel(UINT32_MAX) < MAX_GUMBEL && gumbel(0) > MIN_GUMBEL);
    assert_int_equal(least_bits(0), 0);
    assert_int_equal(least_bits(NAN), 0);
    for (int lift = 1; lift < 30; lift++) {
        assert_true(gumbel(least_bits(lift) - 1) < fmin(lift, 22) - 3e-5);
        assert_int_equal(least_bits(lift + 0.999), least_bits(lift));
    }
    assert_int_equal(least_bits(INFINITY), least_bits(22));
}

static struct drawn draw_plainly(const struct slice *slice, struct candidate cut, uint64_t seed,
                                 int64_t position)
{
    struct drawn best = {-INFINITY, -1};

    for (int32_t i = 0; i < slice->num_tokens; i++) {
        struct candidate c = {slice->logits[i] / slice->temperature, slice->first_token + i};
        uint32_t words[4];

        if (!(c.logit > -INFINITY) || !is_kept(c, cut))
            continue;
        philox4x32(seed, (uint64_t)position, (uint64_t)c.token / 4, words);

        double u = ((double)words[c.token % 4] + 0.5) * 0x1p-32;
        struct drawn drawn = {c.logit - log(-log(u)), c.token};

        if (drawn_is_better(drawn, best))
            best = drawn;
    }
    return best;
}

/* No noise is left out that would have won. */
static void a_draw_is_the_arg_max_of_logits_and_noise(void **state)
{
    enum { MAX = 5000 };
    AUTO_MEM float *logits = mem_new_array(float, MAX);
    AUTO_MEM struct candidate *kept = mem_new_array(struct candidate, MAX);

    (void)state;
    for (int round = 0; round < 2000; round++) {
        struct slice slice = {logits, (int32_t)(next_random() % 500),
                              1 + (int32_t)(next_random() % (MAX - 1)), round % 3 ? 1 : 1.3f};
        float spread = (float)(round % 23);
        uint64_t seed = next_random();
        struct candidate cut = KEEP_ALL;
        int32_t n = 0;

        for (int32_t i = 0; i < slice.num_tokens; i++)
            logits[i] = ((float)next_random() * 0x1p-32f - 0.5f) * spread;
        if (round % 5 == 0)
            cut = (struct candidate){logits[0] / slice.temperature, slice.first_token};

        struct drawn plainly = draw_plainly(&slice, cut, seed, round);
        struct drawn drawn = slice_draw(&slice, cut, seed, round);

        assert_int_equal(drawn.token, plainly.token);
        assert_true(drawn.value == plainly.value);
        for (int32_t i = 0; i < slice.num_tokens; i++) {
            struct candidate c = {logits[i] / slice.temperature, slice.first_token + i};

            if (is_kept(c, cut))
                kept[n++] = c;
        }
        assert_int_equal(candidates_draw(kept, n, seed, round).token, plainly.token);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_weight_is_the_exponential_on_the_grid),
    cmocka_unit_test(keys_are_in_the_order_of_floats),
    cmocka_unit_test(the_first_k_are_found_in_any_order),
    cmocka_unit_test(a_slices_first_are_those_of_its_tokens),
    cmocka_unit_test(bits_that_are_left_out_fall_short_of_the_lift),
    cmocka_unit_test(a_draw_is_the_arg_max_of_logits_and_noise),
};
TEST_MAIN(tests)
