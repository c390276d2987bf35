#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "proto/base/trace.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static char folder[] = "/tmp/tandem-trace-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static int count_spans(const json_t *trace, const char *name, int64_t *last_step_out)
{
    const json_t *events = json_object_get(trace, "traceEvents");
    json_t *event;
    size_t i;
    int count = 0;

    assert_true(json_is_array(events));
    json_array_foreach(events, i, event) {
        if (strcmp(json_string_value(json_object_get(event, "name")), name) != 0)
            continue;
        count++;
        *last_step_out =
            json_integer_value(json_object_get(json_object_get(event, "args"), "step"));
    }
    return count;
}

static void *work(void *argument)
{
    trace_name_thread("device");
    for (int i = 0; i < 1000; i++)
        trace_end("execute_model", trace_begin(), i);
    return argument;
}

static void off_it_keeps_nothing_on_it_keeps_the_last_spans_of_every_thread(void **state)
{
    (void)state;
    AUTO_MEM char *a = mem_printf("%s/a", folder), *b = mem_printf("%s/b", folder),
                  *none = mem_printf("%s/none", folder), *whole = mem_printf("%s/whole", folder);
    const char *parts[] = {a, none, b};
    pthread_t thread;
    int64_t step = -1;

    assert_int_equal(trace_begin(), 0);
    trace_end("too_early", 0, 1);
    expect_ok(trace_start(200)); /* 256 */
    trace_name_thread("wire");
    trace_end("prepare_inputs", trace_begin(), 41);
    assert_int_equal(pthread_create(&thread, NULL, work, NULL), 0);
    expect_ok(trace_write(a, "engine")); /* while the thread goes on */
    pthread_join(thread, NULL);
    expect_ok(trace_write(b, "worker.1"));

    json_t *json = json_load_file(b, 0, NULL);
    assert_non_null(json);
    assert_int_equal(count_spans(json, "too_early", &step), 0);
    assert_int_equal(count_spans(json, "prepare_inputs", &step), 1);
    assert_int_equal(step, 41);
    /* The oldest slot is the one that a running thread would be writing. */
    assert_in_range(count_spans(json, "execute_model", &step), 255, 256);
    assert_int_equal(step, 999);
    assert_int_equal(count_spans(json, "thread_name", &step), 2);
    json_decref(json);

    expect_ok(trace_merge(parts, COUNT_OF(parts), whole));
    json = json_load_file(whole, 0, NULL);
    assert_non_null(json);
    assert_int_equal(count_spans(json, "process_name", &step), 2);
    assert_int_equal(count_spans(json, "prepare_inputs", &step), 2);
    json_decref(json);

    trace_stop();
    assert_int_equal(trace_begin(), 0);
    expect_ok(trace_start(200));
    trace_end("sample", trace_begin(), 7);
    expect_ok(trace_write(b, "worker.1"));
    json = json_load_file(b, 0, NULL);
    assert_non_null(json);
    assert_int_equal(count_spans(json, "prepare_inputs", &step), 0); /* that was before */
    assert_int_equal(count_spans(json, "sample", &step), 1);
    json_decref(json);
    unlink(a);
    unlink(b);
    unlink(whole);
}

static void a_file_that_cannot_be_written_is_named(void **state)
{
    (void)state;
    expect_fails(trace_write("/no/such/folder/x", "engine"), ERR_IO,
                 "trace file /no/such/folder/x cannot be opened: No such file");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(off_it_keeps_nothing_on_it_keeps_the_last_spans_of_every_thread),
    cmocka_unit_test(a_file_that_cannot_be_written_is_named),
};

int main(void)
{
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
