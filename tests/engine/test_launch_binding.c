#include "tests/support/expect.h"

#include "engine/launch/binding.h"
#include "proto/base/memory.h"

static const char machine[] = "pack:2 numa:1 core:4 pu:2"; /* 8 cores, 2 threads each */

struct row {
    struct binding binding;
    int32_t rank, world;
    const char *text;
    int num_cpus;
};

static void ranks_get_cores_sockets_or_nodes(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {{BIND_CORE, MAP_SLOT, 1}, 0, 8, "core 0 (cpus 0-1)", 2},
        {{BIND_CORE, MAP_SLOT, 1}, 5, 8, "core 5 (cpus 10-11)", 2},
        {{BIND_CORE, MAP_SLOT, 2}, 1, 4, "core 2,3 (cpus 4-7)", 4},
        {{BIND_CORE, MAP_SOCKET, 1}, 1, 2, "core 4 (cpus 8-9)", 2},
        {{BIND_CORE, MAP_SOCKET, 1}, 2, 4, "core 1 (cpus 2-3)", 2},
        {{BIND_CORE, MAP_NUMA, 1}, 3, 4, "core 5 (cpus 10-11)", 2},
        {{BIND_SOCKET, MAP_SLOT, 1}, 1, 4, "socket 1 (cpus 8-15)", 8},
        {{BIND_SOCKET, MAP_SLOT, 1}, 2, 4, "socket 0 (cpus 0-7)", 8},
        {{BIND_NUMA, MAP_SLOT, 1}, 3, 4, "NUMA node 1 (cpus 8-15)", 8},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char text[BINDING_MAX_TEXT];
        cpu_set_t cpus;

        expect_ok(
            binding_place(&rows[i].binding, machine, rows[i].rank, rows[i].world, &cpus, text));
        assert_string_equal(text, rows[i].text);
        assert_int_equal(CPU_COUNT(&cpus), rows[i].num_cpus);
    }
}

static void cores_are_not_shared(void **state)
{
    (void)state;
    char text[BINDING_MAX_TEXT];
    cpu_set_t cpus;

    expect_fails(
        binding_place(&(struct binding){BIND_CORE, MAP_SLOT, 3}, machine, 0, 3, &cpus, text),
        ERR_INVALID, "3 ranks with 3 cores each want 9 cores, 8 are here");
}

static void this_machine_can_be_asked(void **state)
{
    (void)state;
    char text[BINDING_MAX_TEXT];
    cpu_set_t cpus, ours;

    assert_int_equal(sched_getaffinity(0, sizeof ours, &ours), 0);
    expect_ok(binding_place(&(struct binding){BIND_NUMA, MAP_SLOT, 1}, NULL, 0, 1, &cpus, text));
    assert_true(CPU_COUNT(&cpus) > 0);
    CPU_AND(&ours, &ours, &cpus);
    assert_true(CPU_EQUAL(&ours, &cpus)); /* none that is not ours */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ranks_get_cores_sockets_or_nodes),
    cmocka_unit_test(cores_are_not_shared),
    cmocka_unit_test(this_machine_can_be_asked),
};
TEST_MAIN(tests)
