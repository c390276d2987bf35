#include "tests/support/expect.h"

#include "proto/base/map.h"

static void what_is_put_is_found_until_it_is_removed(void **state)
{
    (void)state;
    AUTO_CLOSE(map) struct map map = {0};
    static char values[1000];
    size_t count = 0;

    assert_null(map_get(&map, 7));
    assert_null(map_remove(&map, 7));
    for (uint64_t i = 0; i < 1000; i++)
        assert_null(map_put(&map, i << 40, &values[i]));
    assert_ptr_equal(map_put(&map, 0, &values[5]), &values[0]);
    for (uint64_t i = 0; i < 1000; i += 2)
        assert_non_null(map_remove(&map, i << 40));
    for (uint64_t i = 0; i < 1000; i++)
        assert_ptr_equal(map_get(&map, i << 40), i % 2 ? &values[i] : NULL);
    MAP_FOR_EACH(&map, entry)
        count++;
    assert_int_equal(count, 500);
    assert_int_equal(map.num_entries, 500);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(what_is_put_is_found_until_it_is_removed),
};
TEST_MAIN(tests)
