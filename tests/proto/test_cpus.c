/* Machines that hwloc makes up, and cgroups that are files in a folder. */
#include "tests/support/expect.h"
#include "tests/support/one_core.h"

#include "proto/base/cpus.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static struct cpus *machine(const char *synthetic, const char *root)
{
    struct cpus *cpus;

    expect_ok(cpus_open(&(struct cpus_options){.synthetic = synthetic, .root = root}, &cpus));
    return cpus;
}

/* ---- cgroups --------------------------------------------------------------------------------- */

struct file {
    const char *path, *text;
};

/* A root with these files (path NULL at the end); the caller owns the name. */
static char *make_root(const struct file *files)
{
    char *root = mem_strdup("/tmp/tandem-cpus-XXXXXX");

    assert_non_null(mkdtemp(root));
    for (; files->path; files++) {
        AUTO_MEM char *path = mem_printf("%s/%s", root, files->path);
        FILE *file;

        for (char *slash = path + strlen(root); (slash = strchr(slash + 1, '/'));) {
            *slash = '\0';
            mkdir(path, 0700);
            *slash = '/';
        }
        file = fopen(path, "w");
        assert_non_null(file);
        fputs(files->text, file);
        fclose(file);
    }
    return root;
}

static void remove_root(char *root)
{
    AUTO_MEM char *command = mem_printf("rm -r '%s'", root);

    assert_int_equal(system(command), 0);
    mem_free(root);
}

/* On 8 cores: how many are left by these files, and the quota. */
static void expect_cores(const struct file *files, int32_t cores, double quota)
{
    char *root = make_root(files);
    AUTO_FREE(cpus) struct cpus *cpus = machine("core:8 pu:2", root);

    assert_float_equal(cpus_quota(cpus), quota, 1e-9);
    assert_int_equal(cpus_num_cores(cpus), cores);
    remove_root(root);
}

#define EXPECT_CORES(cores, quota, ...)                                                            \
    expect_cores((const struct file[]){__VA_ARGS__, {NULL}}, cores, quota)

static void a_quota_of_cgroups_v2_is_kept(void **state)
{
    (void)state;
    EXPECT_CORES(3, 3, {"proc/self/cgroup", "0::/a/b\n"}, {"sys/fs/cgroup/a/b/cpu.max", "300000 100000\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "0::/a\n"}, {"sys/fs/cgroup/a/cpu.max", "max 100000\n"});
    /* A group above has less. */
    EXPECT_CORES(2, 2, {"proc/self/cgroup", "0::/a/b\n"}, {"sys/fs/cgroup/a/cpu.max", "100000 50000\n"},
                 {"sys/fs/cgroup/a/b/cpu.max", "max 100000\n"});
    /* A container sees its own group as the top, whatever the path says. */
    EXPECT_CORES(4, 4, {"proc/self/cgroup", "0::/../../pod7\n"},
                 {"sys/fs/cgroup/cpu.max", "400000 100000"});
    EXPECT_CORES(5, 5, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/unified/cpu.max", "500000 100000"});
}

static void a_quota_of_cgroups_v1_is_kept(void **state)
{
    (void)state;
    EXPECT_CORES(2, 2.5, {"proc/self/cgroup", "5:cpuset:/\n4:cpu,cpuacct:/d/c\n0::/\n"},
                 {"sys/fs/cgroup/cpu,cpuacct/d/c/cpu.cfs_quota_us", "250000\n"},
                 {"sys/fs/cgroup/cpu,cpuacct/d/c/cpu.cfs_period_us", "100000\n"});
    EXPECT_CORES(6, 6, {"proc/self/cgroup", "4:cpuacct,cpu:/d\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "600000\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "1:cpu:/\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "1:cpuset:/\n2:cpuacct:/\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n"},
                 {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"});
}

static void less_than_a_core_is_one_thread(void **state)
{
    (void)state;
    EXPECT_CORES(1, 0.25, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "25000 100000\n"});
    EXPECT_CORES(8, 12, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "1200000 100000\n"});
}

static void broken_files_are_no_quota(void **state)
{
    (void)state;
    EXPECT_CORES(8, 0, {"proc/self/cgroup", ""});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "0\n::\n7:cpu\n0:x:y\n:cpu:/\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "100000\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "1 0\n"});
    EXPECT_CORES(8, 0, {"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "-3 5\n"});
    EXPECT_CORES(8, 0, {"proc/cgroup", ""});
}

/* ---- cores and nodes ------------------------------------------------------------------------- */

static void cores_are_counted_not_their_threads(void **state)
{
    static const struct {
        const char *machine;
        int32_t cores, nodes;
    } rows[] = {
        {"core:8 pu:2", 8, 1}, {"core:8 pu:1", 8, 1}, {"pack:2 numa:1 core:16 pu:2", 32, 2},
        {"numa:4 core:2 pu:4", 8, 4}, {"pu:6", 6, 1},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_FREE(cpus) struct cpus *cpus = machine(rows[i].machine, "/nowhere");

        assert_int_equal(cpus_num_cores(cpus), rows[i].cores);
        assert_int_equal(cpus_num_nodes(cpus), rows[i].nodes);
    }
}

static bool set_is(const cpu_set_t *set, int first, int count)
{
    for (int i = first; i < first + count; i++)
        if (!CPU_ISSET(i, set))
            return false;
    return CPU_COUNT(set) == count;
}

static void threads_that_fill_the_machine_have_a_core_each(void **state)
{
    AUTO_FREE(cpus) struct cpus *cpus = machine("numa:2 core:4 pu:2", "/nowhere");
    cpu_set_t sets[8];

    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        assert_true(cpus_place(cpus, rank, 2, 4, sets));
        for (int i = 0; i < 4; i++)
            assert_true(set_is(&sets[i], rank * 8 + 2 * i, 2)); /* both threads of the core */
    }
    assert_true(cpus_place(cpus, 0, 1, 8, sets));
    assert_true(set_is(&sets[7], 14, 2));
}

static void fewer_threads_have_a_node_of_their_rank(void **state)
{
    AUTO_FREE(cpus) struct cpus *cpus = machine("numa:2 core:4 pu:1", "/nowhere");
    cpu_set_t sets[4];

    (void)state;
    for (int rank = 0; rank < 2; rank++) {
        assert_true(cpus_place(cpus, rank, 2, 3, sets));
        for (int i = 0; i < 3; i++)
            assert_true(set_is(&sets[i], rank * 4, 4));
    }
    /* One rank leaves the other node to others; three do not come out even, but fit. */
    assert_true(cpus_place(cpus, 0, 1, 4, sets) && set_is(&sets[0], 0, 4));
    assert_true(cpus_place(cpus, 2, 3, 2, sets) && set_is(&sets[1], 0, 4));
}

static void threads_that_could_meet_others_are_not_bound(void **state)
{
    AUTO_FREE(cpus) struct cpus *one = machine("core:8 pu:1", "/nowhere");
    AUTO_FREE(cpus) struct cpus *two = machine("numa:2 core:4 pu:1", "/nowhere");
    cpu_set_t sets[16];

    (void)state;
    assert_false(cpus_place(one, 0, 1, 9, sets));  /* more threads than cores */
    assert_false(cpus_place(one, 0, 2, 5, sets));
    assert_false(cpus_place(one, 0, 1, 1, sets));  /* another engine would take the same */
    assert_false(cpus_place(two, 0, 1, 5, sets));  /* more than a node */
    assert_false(cpus_place(two, 0, 3, 3, sets));
}

static void a_quota_leaves_threads_where_the_kernel_wants_them(void **state)
{
    char *root = make_root((const struct file[]){{"proc/self/cgroup", "0::/\n"},
                                                 {"sys/fs/cgroup/cpu.max", "400000 100000\n"},
                                                 {NULL}});
    AUTO_FREE(cpus) struct cpus *cpus = machine("numa:2 core:4 pu:1", root);
    cpu_set_t sets[8];

    (void)state;
    assert_false(cpus_place(cpus, 0, 1, 4, sets));
    assert_false(cpus_place(cpus, 0, 1, 8, sets));
    remove_root(root);
}

static void the_affinity_mask_is_kept(void **state)
{
    struct cpus *cpus;
    cpu_set_t before, sets[1];
    int first = keep_one_core(&before);

    (void)state;
    expect_ok(cpus_open(&(struct cpus_options){.root = "/nowhere"}, &cpus));
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    assert_int_equal(cpus_num_cores(cpus), 1);
    assert_true(cpus_place(cpus, 0, 1, 1, sets) && set_is(&sets[0], first, 1));
    cpus_free(cpus);
}

static void this_machine_has_a_core(void **state)
{
    struct cpus *cpus;

    (void)state;
    expect_ok(cpus_open(NULL, &cpus));
    assert_true(cpus_num_cores(cpus) >= 1 && cpus_num_nodes(cpus) >= 1);
    cpus_free(cpus);
    expect_fails(cpus_open(&(struct cpus_options){.synthetic = "nonsense"}, &cpus), ERR_INVALID,
                 "no machine is 'nonsense'");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_quota_of_cgroups_v2_is_kept),
    cmocka_unit_test(a_quota_of_cgroups_v1_is_kept),
    cmocka_unit_test(less_than_a_core_is_one_thread),
    cmocka_unit_test(broken_files_are_no_quota),
    cmocka_unit_test(cores_are_counted_not_their_threads),
    cmocka_unit_test(threads_that_fill_the_machine_have_a_core_each),
    cmocka_unit_test(fewer_threads_have_a_node_of_their_rank),
    cmocka_unit_test(threads_that_could_meet_others_are_not_bound),
    cmocka_unit_test(a_quota_leaves_threads_where_the_kernel_wants_them),
    cmocka_unit_test(the_affinity_mask_is_kept),
    cmocka_unit_test(this_machine_has_a_core),
};

TEST_MAIN(tests)
