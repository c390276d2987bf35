/* Small traces written by hand, and the numbers that a person gets from them with a pencil. */
#include "tests/support/expect.h"

#include "engine/trace/report.h"
#include "engine/trace/svg.h"

#include <unistd.h>

static char path[64];

static void write_file(const char *text)
{
    FILE *f;

    snprintf(path, sizeof path, "/tmp/tandem-test-trace-%d.json", (int)getpid());
    f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
    assert_int_equal(fclose(f), 0);
}

static int remove_file(void **state)
{
    (void)state;
    return path[0] ? unlink(path) : 0;
}

#define PROCESS(pid, name)                                                                         \
    "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":" #pid ",\"args\":{\"name\":\"" name "\"}},"
#define THREAD(pid, tid, name)                                                                     \
    "{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":" #pid ",\"tid\":" #tid                        \
    ",\"args\":{\"name\":\"" name "\"}},"
#define SPAN(pid, tid, name, ts, dur, step)                                                        \
    "{\"ph\":\"X\",\"name\":\"" name "\",\"pid\":" #pid ",\"tid\":" #tid ",\"ts\":" #ts            \
    ",\"dur\":" #dur ",\"args\":{\"step\":" #step "}},"
#define TRACE(events) "{\"traceEvents\":[" events "{\"ph\":\"M\",\"name\":\"end\"}]}"

/*
 * us        0        100  110      200  230      330
 * device    exec 0    sample 0     exec 1  ...
 */
static const char TWO_PROCESSES[] =
    TRACE(PROCESS(1, "engine") PROCESS(2, "worker.0") PROCESS(3, "worker.1") THREAD(1, 11, "core")
              THREAD(2, 21, "device") THREAD(2, 22, "wire") THREAD(3, 31, "device")
          /* the first device: 100 + 10, then idle 90, then 100 + gap of 20 before sampling + 10 */
          SPAN(2, 21, "execute_model", 0, 100, 0) SPAN(2, 21, "sample", 100, 10, 0)
              SPAN(2, 21, "execute_model", 200, 100, 1) SPAN(2, 21, "sample", 320, 10, 1)
          /* the second begins each step 5 later, and is never idle but for 85 */
          SPAN(3, 31, "execute_model", 5, 110, 0) SPAN(3, 31, "sample", 115, 5, 0)
              SPAN(3, 31, "execute_model", 205, 100, 1) SPAN(3, 31, "sample", 305, 5, 1)
          /* half of it while the first device was busy */
          SPAN(1, 11, "schedule", 90, 40, 1)
          /* all of it */
          SPAN(2, 22, "prepare_inputs", 20, 30, 1)
          /* none of it; the last to end before the device goes on at 200 */
          SPAN(1, 11, "prepare_inputs", 150, 45, 1));

static void a_report_has_the_numbers_of_a_pencil(void **state)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};
    AUTO_CLOSE(report) struct report report = {0};

    (void)state;
    write_file(TWO_PROCESSES);
    expect_ok(timeline_read(path, &timeline));
    report_make(&timeline, &report);
    assert_int_equal(report.num_devices, 2);

    const struct report_device *first = &report.devices[0], *second = &report.devices[1];

    assert_string_equal(first->process, "worker.0");
    assert_int_equal(first->num_steps, 2);
    assert_true(first->length_ms == 0.33);
    assert_float_equal(first->busy_pct, 100 * 220.0 / 330, 1e-9);
    assert_true(first->idle_us_max == 110); /* 90 between the steps, 20 within the second */
    assert_true(first->late_us_p50 == 0);
    assert_true(second->late_us_p50 == 5);
    assert_float_equal(second->busy_pct, 100 * 220.0 / 305, 1e-9);

    assert_int_equal(report.num_verbs, 3);
    for (size_t i = 0; i < report.num_verbs; i++) {
        const struct report_verb *verb = &report.verbs[i];
        double wanted = strcmp(verb->name, "schedule") == 0 ? 50
                        : strcmp(verb->thread, "wire") == 0 ? 100
                                                            : 0;

        assert_int_equal(verb->count, 1);
        assert_true(verb->hidden_pct == wanted);
    }
    assert_int_equal(report.gap.step, 1);
    assert_true(report.gap.us == 110);
    assert_string_equal(report.gap.name, "prepare_inputs");
    assert_string_equal(report.gap.process, "engine");
    assert_true(report.gap.before_us == 5);
}

static void threads_stand_in_order_and_have_names(void **state)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};

    (void)state;
    write_file("[" PROCESS(1, "worker.10") PROCESS(2, "worker.9") PROCESS(3, "engine")
                   SPAN(1, 1, "a", 1, 1, 0) SPAN(2, 2, "a", 1, 1, 0) SPAN(3, 3, "a", 5, 1, 0)
                       SPAN(3, 3, "a", 2, 1, 0) SPAN(4, 4, "b", 1, 1, 0) "{}]");
    expect_ok(timeline_read(path, &timeline));
    assert_int_equal(timeline.num_threads, 4);
    assert_string_equal(timeline.threads[0].process, "engine");
    assert_string_equal(timeline.threads[0].name, "thread 3");
    assert_int_equal(timeline.threads[0].spans[0].begin_ns, 2000);
    assert_string_equal(timeline.threads[1].process, "process 4");
    assert_string_equal(timeline.threads[2].process, "worker.9");
    assert_string_equal(timeline.threads[3].process, "worker.10");
}

static void a_trace_without_a_device_is_said_to_be_one(void **state)
{
    static const char *const texts[] = {
        "[]",
        "{\"traceEvents\":[]}",
        TRACE(PROCESS(1, "engine") THREAD(1, 1, "core") SPAN(1, 1, "schedule", 1, 1, 0)),
        TRACE(THREAD(1, 1, "device") SPAN(1, 1, "load", 1, 1, -1)),
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        AUTO_CLOSE(timeline) struct timeline timeline = {0};
        AUTO_CLOSE(report) struct report report = {0};
        AUTO_CLOSE(bytes) struct bytes text = {0}, picture = {0};

        write_file(texts[i]);
        expect_ok(timeline_read(path, &timeline));
        report_make(&timeline, &report);
        report_print(&report, &text);
        assert_non_null(strstr(bytes_text(&text), "no device has worked in this trace"));
        expect_fails(
            svg_draw(&timeline,
                     &(struct svg_options){.from_step = -1, .num_steps = 3, .num_ranks = 1},
                     &picture),
            ERR_INVALID, "no device of this trace has worked");
        json_decref(report_to_json(&report));
    }
}

static void what_is_no_trace_is_refused(void **state)
{
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"", "line 1, column 0"},
        {"{\"traceEvents\":", "line 1, column"},
        {"{}", "there is no list \"traceEvents\""},
        {"[5]", "event 0: is no object"},
        {"[{\"ph\":\"X\",\"pid\":1,\"tid\":1}]", "event 0: \"ts\" is missing"},
        {"[{},{\"ph\":\"X\",\"pid\":1,\"tid\":1,\"ts\":-1,\"dur\":1}]",
         "event 1: \"ts\" is missing"},
        {"[{\"ph\":\"X\",\"pid\":1,\"tid\":1,\"ts\":1,\"dur\":1e300}]", "event 0: \"dur\""},
        {"[{\"ph\":\"X\",\"pid\":\"one\",\"tid\":1,\"ts\":1,\"dur\":1}]", "\"pid\" is no integer"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct timeline timeline;

        write_file(rows[i].text);
        expect_fails(timeline_read(path, &timeline), ERR_CORRUPT, rows[i].sentence);
        assert_non_null(strstr(fail_text(), path));
    }
    expect_fails(timeline_read("/nonexistent.json", &(struct timeline){0}), ERR_NOT_FOUND,
                 "/nonexistent.json");
}

static size_t count(const char *text, const char *word)
{
    size_t n = 0;

    while ((text = strstr(text, word))) {
        n++;
        text++;
    }
    return n;
}

static void a_picture_has_a_lane_a_thread_and_the_steps_by_number(void **state)
{
    AUTO_CLOSE(timeline) struct timeline timeline = {0};
    AUTO_CLOSE(bytes) struct bytes both = {0}, one = {0};

    (void)state;
    write_file(TWO_PROCESSES);
    expect_ok(timeline_read(path, &timeline));
    expect_ok(svg_draw(
        &timeline, &(struct svg_options){.from_step = -1, .num_steps = 2, .num_ranks = 2}, &both));
    assert_int_equal(count(bytes_text(&both), "#f8fafc"), 2 * 4); /* two panels of four lanes */
    assert_non_null(strstr(bytes_text(&both), "Steps 0 to 1 of 0 to 1"));
    assert_int_equal(count(bytes_text(&both), "<svg"), 1);
    assert_non_null(strstr(bytes_text(&both), "</svg>"));
    expect_ok(svg_draw(
        &timeline, &(struct svg_options){.from_step = 1, .num_steps = 1, .num_ranks = 1}, &one));
    assert_int_equal(count(bytes_text(&one), "#f8fafc"), 2 * 3);
    assert_non_null(strstr(bytes_text(&one), "1 more ranks are not drawn"));
    expect_fails(svg_draw(&timeline,
                          &(struct svg_options){.from_step = 7, .num_steps = 1, .num_ranks = 1},
                          &one),
                 ERR_INVALID, "the trace has steps 0 to 1, and no step 7");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_report_has_the_numbers_of_a_pencil),
        cmocka_unit_test(threads_stand_in_order_and_have_names),
        cmocka_unit_test(a_trace_without_a_device_is_said_to_be_one),
        cmocka_unit_test(what_is_no_trace_is_refused),
        cmocka_unit_test(a_picture_has_a_lane_a_thread_and_the_steps_by_number),
    };

    return cmocka_run_group_tests(tests, NULL, remove_file);
}
