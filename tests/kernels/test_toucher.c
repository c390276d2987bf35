/* Memory that is touched behind its users' backs. */
#include "tests/support/expect.h"

#include "kernels/cpu/toucher.h"
#include "kernels/kernels.h"
#include "proto/base/clock.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MIB = 1 << 20, BYTES = 7 * MIB + 4096 };

static char *map(void)
{
    void *p;

    expect_ok(mem_map(BYTES, "a test's pages", &p));
    madvise(p, BYTES, MADV_NOHUGEPAGE); /* so that pages are what they are counted by */
    return p;
}

static int64_t num_present(const char *p, int64_t bytes)
{
    static unsigned char pages[BYTES / 4096];
    int64_t n = 0;

    assert_int_equal(mincore((void *)p, (size_t)bytes, pages), 0);
    for (int64_t i = 0; i < bytes / 4096; i++)
        n += pages[i] & 1;
    return n;
}

static void wait_until_touched(struct toucher *toucher)
{
    int64_t end_ns = clock_deadline_ns(60000);

    while (toucher_bytes_left(toucher) > 0) {
        assert_true(clock_now_ns() < end_ns);
        usleep(1000);
    }
}

static void what_is_asked_for_is_there_soon_and_the_rest_is_not(void **state)
{
    AUTO_FREE(toucher) struct toucher *toucher = toucher_new(NULL, 0);
    char *p = map();

    (void)state;
    toucher_ask(toucher, p + 100, 3 * MIB);
    wait_until_touched(toucher);
    assert_int_equal(num_present(p, 3 * MIB + 4096), 3 * MIB / 4096 + 1);
    assert_int_equal(num_present(p, BYTES), 3 * MIB / 4096 + 1);
    for (int i = 0; i < BYTES; i += 4096)
        assert_int_equal(p[i], 0);
    toucher_forget(toucher, p, BYTES);
    mem_unmap(p, BYTES);
}

static void what_is_in_use_stays_as_it_is(void **state)
{
    AUTO_FREE(toucher) struct toucher *toucher = toucher_new(NULL, 0);
    char *p = map();

    (void)state;
    for (int round = 0; round < 20; round++) {
        toucher_ask(toucher, p, BYTES);
        for (int i = 0; i < BYTES; i += 512)
            p[i] = (char)(i / 512 + round);
        for (int i = 0; i < BYTES; i += 512)
            assert_int_equal(p[i], (char)(i / 512 + round));
        wait_until_touched(toucher);
        madvise(p, BYTES, MADV_DONTNEED);
    }
    toucher_forget(toucher, p, BYTES);
    mem_unmap(p, BYTES);
}

/* If it went on, it would find nothing there, and touch nothing any more. */
static void what_is_forgotten_may_be_unmapped_at_once(void **state)
{
    AUTO_FREE(toucher) struct toucher *toucher = toucher_new(NULL, 0);
    char *kept = map();

    (void)state;
    for (int round = 0; round < 50; round++) {
        char *p = map();

        toucher_ask(toucher, p, BYTES);
        if (round % 2)
            usleep((useconds_t)(round * 10));
        toucher_forget(toucher, p, BYTES);
        assert_int_equal(toucher_bytes_left(toucher), 0);
        mem_unmap(p, BYTES);
    }
    toucher_ask(toucher, kept, BYTES);
    toucher_forget(toucher, kept + BYTES, 4096); /* it has none of that */
    wait_until_touched(toucher);
    assert_int_equal(num_present(kept, BYTES), BYTES / 4096);
    toucher_forget(toucher, kept, BYTES);
    mem_unmap(kept, BYTES);
}

static void a_toucher_ends_with_work_left(void **state)
{
    char *p = map();

    (void)state;
    for (int round = 0; round < 20; round++) {
        struct toucher *toucher = toucher_new(NULL, 0);

        toucher_ask(toucher, p, BYTES);
        toucher_free(toucher);
        madvise(p, BYTES, MADV_DONTNEED);
    }
    toucher_free(toucher_new(NULL, 0));
    mem_unmap(p, BYTES);
}

/* MADV_POPULATE_WRITE came with Linux 5.14. */
static bool can_touch_at_once(void)
{
    char *p = map();
    bool can = mem_touch(p, 4096);

    mem_unmap(p, BYTES);
    return can;
}

static void a_cpu_device_has_its_memory_touched(void **state)
{
    bool can_populate = can_touch_at_once();
    struct device *dev;
    cpu_set_t cpus[2];
    void *p;

    (void)state;
    sched_getaffinity(0, sizeof cpus[0], &cpus[0]);
    cpus[1] = cpus[0];
    for (int bound = 0; bound < 2; bound++) {
        int64_t end_ns = clock_deadline_ns(60000);

        expect_ok(device_open(
            &(struct device_options){.name = "cpu", .num_threads = 2, .cpus = bound ? cpus : NULL}, &dev));
        expect_ok(device_alloc(dev, BYTES, "a test's pages", &p));
        device_expect_soon(dev, (char *)p + MIB, 2 * MIB);
        while (num_present((char *)p + MIB, 2 * MIB) < 2 * MIB / 4096) {
            assert_true(clock_now_ns() < end_ns);
            usleep(1000);
        }
        device_touch(dev, p, BYTES - 4096);
        if (can_populate)
            assert_int_equal(num_present(p, BYTES - 4096), BYTES / 4096 - 1);
        device_expect_soon(dev, p, BYTES);
        device_free(dev, p, BYTES);
        device_close(dev);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_asked_for_is_there_soon_and_the_rest_is_not),
        cmocka_unit_test(what_is_in_use_stays_as_it_is),
        cmocka_unit_test(what_is_forgotten_may_be_unmapped_at_once),
        cmocka_unit_test(a_toucher_ends_with_work_left),
        cmocka_unit_test(a_cpu_device_has_its_memory_touched),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
