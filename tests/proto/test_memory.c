#include "tests/support/expect.h"

#include "proto/base/memory.h"

#include <string.h>

static void arena_hands_out_aligned_memory_and_keeps_its_largest_chunk(void **state)
{
    (void)state;
    struct arena arena = {0};

    for (int i = 0; i < 1000; i++) {
        char *p = arena_alloc(&arena, (size_t)i);

        assert_int_equal((uintptr_t)p % 16, 0);
        memset(p, i, (size_t)i);
    }
    arena_reset(&arena);
    void *first = arena_alloc(&arena, 100000);
    arena_reset(&arena);
    assert_ptr_equal(arena_alloc(&arena, 100000), first);
    arena_close(&arena);
}

static void an_array_of_an_arena_is_zeroed(void **state)
{
    (void)state;
    AUTO_CLOSE(arena) struct arena arena = {0};

    memset(arena_alloc(&arena, 1000), 0xff, 1000);
    arena_reset(&arena);
    int32_t *numbers = arena_new_array(&arena, int32_t, 250);
    for (int i = 0; i < 250; i++)
        assert_int_equal(numbers[i], 0);
    assert_non_null(arena_new_array(&arena, int32_t, 0));
}

static void bytes_grow_and_end_with_nul(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes out = {0};

    for (int i = 0; i < 100; i++)
        bytes_printf(&out, "%d,", i);
    assert_int_equal(strlen(bytes_text(&out)), out.size);
    assert_int_equal(out.size, 290);
    for (int width = 1; width < 300; width++) { /* around every room that is left */
        out.size = 0;
        bytes_printf(&out, "%*s", width, "x");
        assert_int_equal(out.size, width);
        assert_int_equal(bytes_text(&out)[width - 1], 'x');
    }
}

static void mapped_memory_is_zero_and_a_size_no_machine_has_is_refused(void **state)
{
    (void)state;
    void *p;

    expect_ok(mem_map(5 << 20, "a pool", &p));
    assert_int_equal((uintptr_t)p % (2 << 20), 0);
    assert_int_equal(((char *)p)[(5 << 20) - 1], 0);
    mem_unmap(p, 5 << 20);
    expect_fails(mem_map((size_t)1 << 60, "a pool", &p), ERR_NO_MEMORY, " MiB for a pool: ");
}

static void a_failure_can_quote_the_one_before(void **state)
{
    (void)state;
    assert_int_equal(fail(ERR_IO, "disk on fire"), ERR_IO);
    assert_int_equal(fail(ERR_CORRUPT, "model.gguf: %s", fail_text()), ERR_CORRUPT);
    assert_string_equal(fail_text(), "model.gguf: disk on fire");
    assert_int_equal(fail_in("folder", ERR_CORRUPT), ERR_CORRUPT);
    assert_string_equal(fail_text(), "folder: model.gguf: disk on fire");
    assert_int_equal(fail_in("elsewhere", OK), OK);
    assert_string_equal(fail_text(), "folder: model.gguf: disk on fire");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(arena_hands_out_aligned_memory_and_keeps_its_largest_chunk),
    cmocka_unit_test(an_array_of_an_arena_is_zeroed),
    cmocka_unit_test(bytes_grow_and_end_with_nul),
    cmocka_unit_test(mapped_memory_is_zero_and_a_size_no_machine_has_is_refused),
    cmocka_unit_test(a_failure_can_quote_the_one_before),
};
TEST_MAIN(tests)
