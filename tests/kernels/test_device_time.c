/*
 * The time at which a device was at its marks, by the host's clock. A device with a clock of its own is emulated,
 * or the one that TANDEM_TEST_CUDA_MODULE drives.
 */
#include "tests/support/expect.h"

#include "kernels/kernels.h"

#include "proto/base/clock.h"

#include <stdlib.h>
#include <unistd.h>

enum { DOUBT_NS = 50 * 1000 * 1000 }; /* of what one clock says of the other, where threads wait for a core */

static struct device *open_cuda(void)
{
    struct device *dev;

    expect_ok(device_open(&(struct device_options){.name = "cuda",
                                                   .num_threads = 1,
                                                   .num_users = 1,
                                                   .module = getenv("TANDEM_TEST_CUDA_MODULE")},
                          &dev));
    return dev;
}

/* When it got to the mark, by then. */
static int64_t wait_for(struct device *dev, const struct device_mark *mark)
{
    int64_t ns, deadline_ns = clock_deadline_ns(30000);

    while (!device_has_passed(dev, mark, &ns)) {
        assert_true(clock_now_ns() < deadline_ns);
        usleep(100);
    }
    return ns;
}

/* A mark that was made and passed just now: is its time, as it is told, between the two? */
static bool is_told_right(struct device *dev)
{
    int64_t before_ns = clock_now_ns(), ns;
    struct device_mark mark;

    device_mark(dev, &mark);
    ns = wait_for(dev, &mark);
    return ns > before_ns - DOUBT_NS && ns < clock_now_ns() + DOUBT_NS;
}

static void marks_are_passed_in_order_and_in_time(void **state)
{
    struct device *dev = open_cuda();
    struct device_mark marks[8];
    int64_t before_ns = clock_now_ns(), last_ns = 0;

    (void)state;
    for (int i = 0; i < 8; i++)
        device_mark(dev, &marks[i]);
    wait_for(dev, &marks[7]);
    for (int i = 0; i < 8; i++) {
        int64_t ns = wait_for(dev, &marks[i]);

        assert_true(ns >= last_ns && ns > before_ns - DOUBT_NS && ns < clock_now_ns() + DOUBT_NS);
        last_ns = ns;
    }
    device_close(dev);
}

/* Nothing is read meanwhile: steps whose tokens are drawn on the device read nothing. */
static void a_clock_that_drifts_is_followed(void **state)
{
    int64_t deadline_ns = clock_deadline_ns(30000);
    struct device *dev;

    (void)state;
    setenv("EMULATED_CUDA_CLOCK_PPM", "100000", 1); /* 100 ms in a second: this much in no machine */
    dev = open_cuda();
    usleep(300000);
    while (!is_told_right(dev))
        assert_true(clock_now_ns() < deadline_ns);
    usleep(300000);
    while (!is_told_right(dev))
        assert_true(clock_now_ns() < deadline_ns);
    device_close(dev);
}

int main(void)
{
    /* Marks first: the clock's settings are read once. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_clock_that_drifts_is_followed),
        cmocka_unit_test(marks_are_passed_in_order_and_in_time),
    };

    if (!has_gpus())
        return 0;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
