/* Ranks that are this program again, step by step, without an engine above them. */
#include "tests/support/expect.h"

#include "engine/cmd/cmd.h"
#include "engine/executor/executor.h"
#include "tests/support/plan_sheet.h"
#include "tests/support/tiny_model.h"

#include <sched.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { WORLD = 2, NUM_PROMPT = 3 };

static char model_path[64];

static int make_model(void **state)
{
    (void)state;
    snprintf(model_path, sizeof model_path, "/tmp/tandem-test-executor-%d.gguf", (int)getpid());
    tiny_model_write(model_path, NULL);
    return 0;
}

static int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

/* The prompt of a slot's request, or its token n. */
static void prepare(struct executor *executor, int64_t step, int32_t slot, int32_t n)
{
    static int32_t prompt[NUM_PROMPT] = {5, 6, 7};
    struct plan_sheet sheet;

    plan_sheet_begin(&sheet);
    if (n == 0)
        plan_sheet_new(&sheet,
                       &(struct new_request){.slot = slot,
                                             .id = "r",
                                             .prompt_token_ids = prompt,
                                             .num_prompt_token_ids = NUM_PROMPT,
                                             .block_ids = &slot,
                                             .num_block_ids = 1},
                       NULL, NUM_PROMPT, true);
    else
        plan_sheet_row(&sheet, slot, NUM_PROMPT + n - 1, 1, true, 0, 0);
    expect_ok(executor_prepare_inputs(executor, step, &sheet.plan));
}

static void run(struct executor *executor, int64_t step, int32_t slot, int32_t n)
{
    prepare(executor, step, slot, n);
    expect_ok(executor_execute_model(executor, step));
    expect_ok(executor_sample(executor, step, NULL));
}

static void open_ranks(const char *fault, struct config *config, struct model_file **file, struct executor **out)
{
    const char *argv[] = {"test", "--model", model_path, "--tp", "2", "--threads", "1", "--executor", "multiproc",
                          "--log-level", "error", fault ? "--inject-fault" : NULL, fault};

    expect_ok(config_parse(config, NULL, fault ? COUNT_OF(argv) : COUNT_OF(argv) - 2, (char **)argv));
    expect_ok(model_file_open(model_path, file));
    expect_ok(executor_open(&(struct executor_options){.config = config, .model = *file}, out));
}

static int32_t collect(struct executor *executor, int64_t step)
{
    const struct model_runner_output *output;

    expect_ok(executor_collect(executor, step, &output));
    assert_int_equal(output->num_sampled, 1);
    return output->sampled_token_ids[0];
}

static void steps_may_come_before_those_before_them_are_over(void **state)
{
    enum { NUM_STEPS = 4 };
    struct config config = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct executor *executor;
    int32_t tokens[NUM_STEPS];

    (void)state;
    open_ranks(NULL, &config, &file, &executor);
    for (int32_t step = 0; step < NUM_STEPS; step++) {
        run(executor, step, 0, step);
        tokens[step] = collect(executor, step);
    }
    for (int32_t n = 0; n < NUM_STEPS; n++)
        run(executor, NUM_STEPS + n, 1, n);
    for (int32_t n = 0; n < NUM_STEPS; n++)
        assert_int_equal(collect(executor, NUM_STEPS + n), tokens[n]);
    executor_free(executor);
    config_close(&config);
}

/* On one core the others mostly have some of the step to do when rank 0 has answered. */
static void a_call_waits_for_the_end_of_a_step_on_every_rank(void **state)
{
    struct config config = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;
    AUTO_CLOSE(bytes) struct bytes replies = {0};
    struct executor *executor;
    cpu_set_t before, one;
    bool is_refused;

    (void)state;
    CPU_ZERO(&one);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &before))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    open_ranks(NULL, &config, &file, &executor);
    for (int64_t step = 0; step < 20; step++) {
        run(executor, step, 0, 0); /* whoever sleeps forgets requests */
        collect(executor, step);
        expect_ok(executor->ops->call(executor, "sleep", "{\"level\": 1}", &replies, &is_refused));
        expect_ok(executor->ops->call(executor, "wake_up", "{}", &replies, &is_refused));
    }
    executor_free(executor);
    config_close(&config);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

/* As when it waits in vain for one that was killed: the rank is to be heard, and to hear, all the same. */
static void a_rank_is_heard_while_a_step_waits_for_one_that_does_not_end(void **state)
{
    const struct itimerspec longer_than_silence = {.it_value = {.tv_sec = 5}};
    struct config config = {0};
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct executor *executor;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

    (void)state;
    open_ranks("step=0,rank=1,verb=sample,kind=hang", &config, &file, &executor);
    for (int64_t step = 0; step < 3; step++)
        run(executor, step, 0, (int32_t)step); /* the third waits for the first */
    assert_int_equal(timerfd_settime(timer, 0, &longer_than_silence, NULL), 0);
    expect_ok(executor_wait(executor, timer));
    close(timer);
    executor_free(executor);
    config_close(&config);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "worker") == 0)
        return cmd_worker(argc - 1, argv + 1);

    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_may_come_before_those_before_them_are_over),
        cmocka_unit_test(a_call_waits_for_the_end_of_a_step_on_every_rank),
        cmocka_unit_test(a_rank_is_heard_while_a_step_waits_for_one_that_does_not_end),
    };

    return cmocka_run_group_tests(tests, make_model, remove_model);
}
