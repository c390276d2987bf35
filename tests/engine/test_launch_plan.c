#include "tests/support/expect.h"

#include "engine/launch/plan.h"

enum { MAX_WORDS = 32 };

struct fixture { /* a command line, read and planned */
    char *text, *argv[MAX_WORDS];
    struct launch_options options;
    struct plan plan;
};

/* Words are parted by spaces. */
static enum status make(struct fixture *f, const char *line)
{
    int argc = 1; /* argv[0] is not looked at */

    *f = (struct fixture){.text = mem_strdup(line)};
    for (char *rest = f->text, *word; (word = strsep(&rest, " "));)
        f->argv[argc++] = word;
    TRY(launch_options_parse(argc, f->argv, &f->options));
    return f->options.wants_help ? OK : plan_make(&f->options, &f->plan);
}

static void fixture_close(struct fixture *f)
{
    plan_close(&f->plan);
    launch_options_close(&f->options);
    mem_free(f->text);
}

static void a_plain_program_is_n_ranks_of_this_machine(void **state)
{
    (void)state;
    AUTO_CLOSE(fixture) struct fixture f;

    expect_ok(make(&f, "-np 3 --grace 2.5 --max-restarts=7 -- sleep 5"));
    assert_int_equal(f.plan.count, 3);
    assert_int_equal(f.plan.world, 3);
    assert_int_equal(f.plan.num_hosts, 1);
    assert_true(f.plan.hosts[0].is_local && !f.plan.has_engine && !f.plan.has_remote_hosts);
    assert_int_equal(f.plan.processes[2].rank, 2);
    assert_int_equal(f.plan.processes[2].local_rank, 2);
    assert_string_equal(f.plan.processes[2].words[1], "5");
    assert_int_equal(f.options.max_restarts, 7);
    assert_true(f.options.grace_s == 2.5);
}

static void an_engine_is_one_process_and_its_workers(void **state)
{
    (void)state;
    AUTO_CLOSE(fixture) struct fixture f;
    static const char *const words[] = {"./tandem",   "serve",       "--model", "m",
                                        "--executor", "distributed", "--tp",    "3"};

    expect_ok(make(&f, "-np 3 -- ./tandem serve --model m"));
    assert_int_equal(f.plan.count, 4);
    assert_int_equal(f.plan.processes[0].rank, ENGINE_RANK);
    assert_int_equal(f.plan.processes[0].num_words, COUNT_OF(words));
    for (size_t i = 0; i < COUNT_OF(words); i++)
        assert_string_equal(f.plan.processes[0].words[i], words[i]);
    for (int rank = 0; rank < 3; rank++) {
        assert_int_equal(f.plan.processes[rank + 1].rank, rank);
        assert_int_equal(f.plan.processes[rank + 1].num_words, 2);
        assert_string_equal(f.plan.processes[rank + 1].words[0], "./tandem");
        assert_string_equal(f.plan.processes[rank + 1].words[1], "worker");
    }
    assert_null(plan_engine_flag(&f.plan, "--listen"));
    assert_string_equal(plan_engine_flag(&f.plan, "--model"), "m");
}

static void an_engine_may_name_its_workers_itself(void **state)
{
    (void)state;
    AUTO_CLOSE(fixture) struct fixture f;

    expect_ok(make(
        &f,
        "-- tandem serve --tp=2 --executor distributed : -np 2 -x A=b tandem worker --trace t"));
    assert_int_equal(f.plan.count, 3);
    assert_int_equal(f.plan.world, 2);
    assert_int_equal(f.plan.processes[0].num_words, 5);
    assert_int_equal(f.plan.processes[1].num_words, 4);
    assert_string_equal(f.plan.processes[2].app->variables[0], "A=b");
}

static void an_engine_beside_other_hosts_stays_here(void **state)
{
    (void)state;
    AUTO_CLOSE(fixture) struct fixture f, here;

    expect_ok(make(&f, "-H n1:2,n2:2 -np 4 -- tandem serve"));
    assert_int_equal(f.plan.num_hosts, 3);
    assert_true(f.plan.hosts[f.plan.processes[0].host].is_local);
    assert_int_equal(f.plan.hosts[f.plan.processes[0].host].node, -1);
    assert_string_equal(f.plan.hosts[f.plan.processes[1].host].name, "n1");
    assert_int_equal(f.plan.hosts[f.plan.processes[1].host].node, 0);
    assert_int_equal(f.plan.hosts[f.plan.processes[4].host].node, 1);

    expect_ok(make(&here, "-H n1,localhost -np 2 -- tandem serve"));
    assert_int_equal(here.plan.num_hosts, 2);
    assert_int_equal(here.plan.processes[0].host, 1);
}

static void ranks_fill_slots_or_go_round(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        int32_t hosts[6]; /* of rank 0, 1 ... */
        int count;
    } cases[] = {
        {"-H a:2,b:3 x", {0, 0, 1, 1, 1}, 5},
        {"-H a:2,b:3 -np 3 x", {0, 0, 1}, 3},
        {"-H a:2,b:3 --map-by node x", {0, 1, 0, 1, 1}, 5},
        {"-H a,b -np 5 --oversubscribe x", {0, 0, 0, 1, 1}, 5},
        {"-H a,b -np 5 --oversubscribe --map-by node x", {0, 1, 0, 1, 0}, 5},
    };

    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        AUTO_CLOSE(fixture) struct fixture f;

        expect_ok(make(&f, cases[i].line));
        assert_int_equal(f.plan.count, cases[i].count);
        for (int k = 0; k < cases[i].count; k++)
            assert_int_equal(f.plan.processes[k].host, cases[i].hosts[k]);
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *line, *part;
    } cases[] = {
        {"", "no program is named"},
        {"-np 3 --", "no program is named"},
        {"-H a:2,b -np 4 x", "4 ranks, and the hosts have 3 slots"},
        {"-np 1000 x : -np 1000 y", "2000 ranks, 1023 are the most"},
        {"-- tandem serve : tandem generate", "2 engines are named"},
        {"-np 2 -- tandem serve : tandem worker", "there is one engine"},
        {"-np 2 -- tandem serve --tp 4", "told --tp 4, and -np says 2 ranks"},
        {"-np 2 -- tandem serve --tensor-parallel-size=4", "told --tp 4"},
        {"-np 2 -- tandem serve --executor multiproc", "told --executor multiproc"},
        {"-- tandem serve --address-file a", "--address-file: the launcher says where"},
        {"-- tandem serve : sleep 5", "sleep cannot be a rank of an engine"},
        {"--map-by slot:PE=2 x", "PE=2 gives each rank cores: it wants --bind-to core"},
        {"--map-by slot:XX=2 x", "--map-by takes :PE=N"},
        {"--grace -1 x", "--grace must be 0 to 86400 seconds, not -1"},
        {"--grace nan x", "--grace must be a number of seconds"},
        {"--tag-output=1 x", "--tag-output takes no value"},
        {"x : --grace 5 y", "--grace belongs before the first program"},
        {"--launch-agent= x", "--launch-agent wants a command"},
    };

    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        AUTO_CLOSE(fixture) struct fixture f;

        expect_fails(make(&f, cases[i].line), ERR_INVALID, cases[i].part);
    }
}

static void help_is_asked_for_before_the_program_only(void **state)
{
    (void)state;
    AUTO_CLOSE(fixture) struct fixture f, g;
    AUTO_CLOSE(bytes) struct bytes help = {0};

    expect_ok(make(&f, "-- x --help"));
    assert_false(f.options.wants_help);
    expect_ok(make(&g, "-np 2 --help"));
    assert_true(g.options.wants_help);
    launch_options_help(&help);
    assert_non_null(strstr(bytes_text(&help), "  -np, -n N "));
    assert_null(strstr(bytes_text(&help), " \n")); /* nothing hangs over the end of a line */
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_plain_program_is_n_ranks_of_this_machine),
    cmocka_unit_test(an_engine_is_one_process_and_its_workers),
    cmocka_unit_test(an_engine_may_name_its_workers_itself),
    cmocka_unit_test(an_engine_beside_other_hosts_stays_here),
    cmocka_unit_test(ranks_fill_slots_or_go_round),
    cmocka_unit_test(what_does_not_fit_is_refused),
    cmocka_unit_test(help_is_asked_for_before_the_program_only),
};
TEST_MAIN(tests)
