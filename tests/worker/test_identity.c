#include "tests/support/expect.h"

#include "proto/base/memory.h"
#include "worker/identity.h"

/* "A=1 B=2 C=": as an environment. A value with blanks is written with _. */
static const char *look_up(const void *user, const char *name)
{
    static char values[16][64];
    static unsigned next;
    size_t size = strlen(name);

    for (const char *at = user; at && *at; at = strchr(at, ' ') ? strchr(at, ' ') + 1 : NULL) {
        if (strncmp(at, name, size) != 0 || at[size] != '=')
            continue;
        char *value = values[next++ % 16];
        const char *from = at + size + 1;
        size_t n = strcspn(from, " ");

        assert_true(n < sizeof values[0]);
        for (size_t i = 0; i < n; i++)
            value[i] = from[i] == '_' ? ' ' : from[i];
        value[n] = '\0';
        return value;
    }
    return NULL;
}

static void expect_identity(const char *environment, struct identity wanted)
{
    struct identity found;

    expect_ok(identity_find(look_up, environment, &found));
    assert_string_equal(found.launcher, wanted.launcher);
    assert_int_equal(found.rank, wanted.rank);
    assert_int_equal(found.world, wanted.world);
    assert_int_equal(found.local_rank, wanted.local_rank);
    assert_int_equal(found.local_world, wanted.local_world);
    assert_int_equal(found.node, wanted.node);
}

static void each_launcher_is_understood(void **state)
{
    static const struct {
        const char *environment;
        struct identity identity;
    } rows[] = {
        {"", {"none", 0, 1, -1, -1, -1}},
        {"TANDEM_RANK=2 TANDEM_WORLD_SIZE=4", {"tandem", 2, 4, -1, -1, -1}},
        {"TANDEM_RANK=2 TANDEM_WORLD_SIZE=4 TANDEM_LOCAL_RANK=0 TANDEM_LOCAL_WORLD_SIZE=2 "
         "TANDEM_NODE=1", {"tandem", 2, 4, 0, 2, 1}},
        {"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
         "OMPI_COMM_WORLD_LOCAL_SIZE=2 OMPI_COMM_WORLD_NODE_RANK=1 OMPI_NUM_APP_CTX=1 "
         "OMPI_APP_CTX_NUM_PROCS=4", {"openmpi", 3, 4, 1, 2, -1}},
        {"PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", {"hydra", 1, 2, 1, 2, -1}},
        {"SLURM_PROCID=6 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=0 SLURM_NODEID=3 "
         "SLURM_STEP_TASKS_PER_NODE=2(x3),1", {"slurm", 6, 7, 0, 1, 3}},
        {"SLURM_PROCID=3 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=7 SLURM_LOCALID=1 SLURM_NODEID=1 "
         "SLURM_STEP_TASKS_PER_NODE=2(x3),1", {"slurm", 3, 7, 1, 2, 1}},
        {"PMI_RANK=5 PMI_SIZE=6", {"pmi", 5, 6, -1, -1, -1}},
        {"RANK=3 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 GROUP_RANK=1",
         {"torchrun", 3, 8, 1, 2, 1}},
        {"LWS_WORKER_INDEX=2 LWS_GROUP_SIZE=3", {"lws", 2, 3, -1, -1, 2}},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_identity(rows[i].environment, rows[i].identity);
}

static void what_knows_better_comes_first(void **state)
{
    (void)state;
    /* hydra inside an allocation: SLURM_PROCID is that of its proxy */
    expect_identity("SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=1 PMI_RANK=3 PMI_SIZE=4 "
                    "MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2", (struct identity){"hydra", 3, 4, 1, 2, -1});
    expect_identity("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 SLURM_PROCID=0 SLURM_STEP_ID=0 "
                    "SLURM_STEP_NUM_TASKS=1", (struct identity){"openmpi", 1, 2, -1, -1, -1});
    expect_identity("SLURM_PROCID=1 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 PMI_RANK=1 PMI_SIZE=2",
                    (struct identity){"slurm", 1, 2, -1, -1, -1});
    expect_identity("TANDEM_RANK=0 TANDEM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 "
                    "RANK=7 WORLD_SIZE=8", (struct identity){"tandem", 0, 1, -1, -1, -1});
    /* A batch script has a SLURM_PROCID, and is no rank. */
    expect_identity("SLURM_PROCID=0 SLURM_NTASKS=4", (struct identity){"none", 0, 1, -1, -1, -1});
    /* Others' names, each of them too common to mean much alone. */
    expect_identity("RANK=3", (struct identity){"none", 0, 1, -1, -1, -1});
    expect_identity("WORLD_SIZE=3", (struct identity){"none", 0, 1, -1, -1, -1});
    expect_identity("TANDEM_RANK= TANDEM_WORLD_SIZE= RANK=1 WORLD_SIZE=2",
                    (struct identity){"torchrun", 1, 2, -1, -1, -1});
}

static void an_engine_in_the_same_job_is_taken_off(void **state)
{
    struct identity identity;

    (void)state;
#define OMPI "OMPI_NUM_APP_CTX=2 OMPI_APP_CTX_NUM_PROCS=1_4 OMPI_COMM_WORLD_SIZE=5 "
    expect_identity(OMPI "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 "
                    "OMPI_COMM_WORLD_LOCAL_SIZE=3", (struct identity){"openmpi", 0, 4, 0, 2, -1});
    expect_identity(OMPI "OMPI_COMM_WORLD_RANK=4 OMPI_COMM_WORLD_LOCAL_RANK=1 "
                    "OMPI_COMM_WORLD_LOCAL_SIZE=2", (struct identity){"openmpi", 3, 4, 1, 2, -1});
    expect_fails(identity_find(look_up, OMPI "OMPI_COMM_WORLD_RANK=0", &identity), ERR_INVALID,
                 "OMPI_COMM_WORLD_RANK is 0, and the first of several programs");
#define SLURM "SLURM_STEP_ID=0 SLURM_HET_SIZE=2 SLURM_STEP_NUM_TASKS=3 "
    expect_identity(SLURM "SLURM_PROCID=2 SLURM_LOCALID=1 SLURM_NODEID=1 "
                    "SLURM_STEP_TASKS_PER_NODE=1,2", (struct identity){"slurm", 1, 2, 1, 2, 1});
    expect_identity(SLURM "SLURM_PROCID=1 SLURM_LOCALID=0 SLURM_NODEID=1 "
                    "SLURM_STEP_TASKS_PER_NODE=1(x3)", (struct identity){"slurm", 0, 2, 0, 1, 1});
    /* Two programs of two processes: both are of ranks. */
    expect_identity("OMPI_NUM_APP_CTX=2 OMPI_APP_CTX_NUM_PROCS=2_2 OMPI_COMM_WORLD_SIZE=4 "
                    "OMPI_COMM_WORLD_RANK=3", (struct identity){"openmpi", 3, 4, -1, -1, -1});
    expect_identity("OMPI_NUM_APP_CTX=many OMPI_APP_CTX_NUM_PROCS=1 OMPI_COMM_WORLD_SIZE=4 "
                    "OMPI_COMM_WORLD_RANK=3", (struct identity){"openmpi", 3, 4, -1, -1, -1});
    expect_identity("TANDEM_RANK=0 TANDEM_WORLD_SIZE=4 " OMPI "OMPI_COMM_WORLD_RANK=0",
                    (struct identity){"tandem", 0, 4, -1, -1, -1});
    /* 256 ranks and their engine. */
    expect_identity("OMPI_NUM_APP_CTX=2 OMPI_APP_CTX_NUM_PROCS=1_256 OMPI_COMM_WORLD_SIZE=257 "
                    "OMPI_COMM_WORLD_RANK=256", (struct identity){"openmpi", 255, 256, -1, -1, -1});
}

static void what_makes_no_sense_is_refused_by_the_variables_name(void **state)
{
    static const struct {
        const char *environment, *part;
    } rows[] = {
        {"TANDEM_RANK=1", "TANDEM_RANK is set and TANDEM_WORLD_SIZE is not"},
        {"TANDEM_WORLD_SIZE=2 RANK=0 WORLD_SIZE=1", "TANDEM_WORLD_SIZE is set and TANDEM_RANK is not"},
        {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_RANK is set and OMPI_COMM_WORLD_SIZE is not"},
        {"PMI_RANK=1 MPI_LOCALRANKID=0", "PMI_RANK is set and PMI_SIZE is not"},
        {"TANDEM_RANK=one TANDEM_WORLD_SIZE=2",
         "TANDEM_RANK is 'one', a whole number from 0 to 256 is expected"},
        {"TANDEM_RANK=-1 TANDEM_WORLD_SIZE=2", "TANDEM_RANK is '-1'"},
        {"TANDEM_RANK=1.5 TANDEM_WORLD_SIZE=2", "TANDEM_RANK is '1.5'"},
        {"TANDEM_RANK=_1 TANDEM_WORLD_SIZE=2", "TANDEM_RANK is ' 1'"},
        {"TANDEM_RANK=0x1 TANDEM_WORLD_SIZE=2", "TANDEM_RANK is '0x1'"},
        {"TANDEM_RANK=0 TANDEM_WORLD_SIZE=0", "TANDEM_WORLD_SIZE is 0, it must be from 1"},
        {"TANDEM_RANK=2 TANDEM_WORLD_SIZE=2",
         "TANDEM_RANK is 2 and TANDEM_WORLD_SIZE is 2: ranks are numbered from 0 to 1"},
        {"TANDEM_RANK=0 TANDEM_WORLD_SIZE=257", "TANDEM_WORLD_SIZE is 257, it must be from 1 to 256"},
        {"TANDEM_RANK=99999999999999999999 TANDEM_WORLD_SIZE=2", "it must be from 0 to 256"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=1", "LOCAL_RANK is 1, of 1 on this host"},
        {"RANK=0 WORLD_SIZE=2 LOCAL_RANK=x", "LOCAL_RANK is 'x'"},
    };
    struct identity identity;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        expect_fails(identity_find(look_up, rows[i].environment, &identity), ERR_INVALID,
                     rows[i].part);
    /* What only adds to the picture may be odd. */
    expect_identity("SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 "
                    "SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2(x", (struct identity){"slurm", 0, 2, 0, -1, 0});
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(each_launcher_is_understood),
    cmocka_unit_test(what_knows_better_comes_first),
    cmocka_unit_test(an_engine_in_the_same_job_is_taken_off),
    cmocka_unit_test(what_makes_no_sense_is_refused_by_the_variables_name),
};
TEST_MAIN(tests)
