#include "worker/identity.h"

#include "proto/base/memory.h"

#include <stdlib.h>
#include <string.h>

/* A row: a launcher, and what it calls what it tells; NULL: it does not tell. */
struct launcher {
    const char *name;
    const char *mark; /* it is this one only where this is set too; NULL: the rank alone will do */
    const char *rank, *world, *local_rank, *local_world, *node;
    const char *tasks_per_node; /* "2(x3),1", where there is no local_world */
    /* Of jobs of several programs: how many, and how many processes each has, "1 4" or "1,2(x2)". */
    const char *num_programs, *program_sizes;
    bool insists; /* the world alone, without the rank, is a mistake: nobody else uses the name */
};

static const struct launcher launchers[] = {
    {.name = "tandem", .rank = "TANDEM_RANK", .world = "TANDEM_WORLD_SIZE",
     .local_rank = "TANDEM_LOCAL_RANK", .local_world = "TANDEM_LOCAL_WORLD_SIZE",
     .node = "TANDEM_NODE", .insists = true},
    /* Its NODE_RANK is the local rank again; it does not number hosts. */
    {.name = "openmpi", .rank = "OMPI_COMM_WORLD_RANK", .world = "OMPI_COMM_WORLD_SIZE",
     .local_rank = "OMPI_COMM_WORLD_LOCAL_RANK", .local_world = "OMPI_COMM_WORLD_LOCAL_SIZE",
     .num_programs = "OMPI_NUM_APP_CTX", .program_sizes = "OMPI_APP_CTX_NUM_PROCS"},
    {.name = "hydra", .mark = "MPI_LOCALRANKID", .rank = "PMI_RANK", .world = "PMI_SIZE",
     .local_rank = "MPI_LOCALRANKID", .local_world = "MPI_LOCALNRANKS"},
    /* Programs never share a node there, so the first node's tasks are the first program's. */
    {.name = "slurm", .mark = "SLURM_STEP_ID", .rank = "SLURM_PROCID",
     .world = "SLURM_STEP_NUM_TASKS", .local_rank = "SLURM_LOCALID", .node = "SLURM_NODEID",
     .tasks_per_node = "SLURM_STEP_TASKS_PER_NODE", .num_programs = "SLURM_HET_SIZE",
     .program_sizes = "SLURM_STEP_TASKS_PER_NODE"},
    {.name = "pmi", .rank = "PMI_RANK", .world = "PMI_SIZE"},
    {.name = "torchrun", .mark = "WORLD_SIZE", .rank = "RANK", .world = "WORLD_SIZE",
     .local_rank = "LOCAL_RANK", .local_world = "LOCAL_WORLD_SIZE", .node = "GROUP_RANK"},
    {.name = "lws", .rank = "LWS_WORKER_INDEX", .world = "LWS_GROUP_SIZE",
     .node = "LWS_WORKER_INDEX"},
};

/* ---- variables ------------------------------------------------------------------------------------ */

struct environment {
    identity_lookup lookup;
    const void *user;
};

/* NULL: not set. A launcher's wrapper may set a variable to nothing: that is not set too. */
static const char *get(const struct environment *environment, const char *name)
{
    const char *value = name ? environment->lookup(environment->user, name) : NULL;

    return value && *value ? value : NULL;
}

/* `out` keeps its value where the variable is not set. */
static enum status get_number(const struct environment *environment, const char *name,
                              int32_t least, int32_t most, int32_t *out)
{
    const char *value = get(environment, name);
    size_t num_digits = value ? strspn(value, "0123456789") : 0;
    long number;

    if (!value)
        return OK;
    if (value[num_digits] != '\0')
        return fail(ERR_INVALID, "%s is '%.32s', a whole number from %d to %d is expected", name,
                    value, least, most);
    number = num_digits > 9 ? INT32_MAX : strtol(value, NULL, 10);
    if (number < least || number > most)
        return fail(ERR_INVALID, "%s is %.32s, it must be from %d to %d", name, value, least,
                    most);
    *out = (int32_t)number;
    return OK;
}

/* "2(x3),1": tasks of node `node`; -1: it does not say. */
static int32_t tasks_of_node(const char *text, int32_t node)
{
    while (text && *text) {
        char *end;
        long num_tasks = strtol(text, &end, 10), repeat = 1;

        if (end == text || num_tasks < 0 || num_tasks > IDENTITY_MAX_WORLD)
            return -1;
        if (strncmp(end, "(x", 2) == 0) {
            text = end + 2;
            repeat = strtol(text, &end, 10);
            if (end == text || repeat < 1 || repeat > IDENTITY_MAX_WORLD || *end++ != ')')
                return -1;
        }
        if (node < repeat)
            return (int32_t)num_tasks;
        node -= (int32_t)repeat;
        text = *end == ',' ? end + 1 : NULL;
    }
    return -1;
}

/* ---- what they mean ----------------------------------------------------------------------------- */

static enum status check(const struct launcher *launcher, const struct identity *identity)
{
    if (identity->rank >= identity->world)
        return fail(ERR_INVALID, "%s is %d and %s is %d: ranks are numbered from 0 to %d",
                    launcher->rank, identity->rank, launcher->world, identity->world,
                    identity->world - 1);
    if (identity->local_world >= 0 && identity->local_rank >= identity->local_world)
        return fail(ERR_INVALID, "%s is %d, of %d on this host", launcher->local_rank,
                    identity->local_rank, identity->local_world);
    return OK;
}

/* The engine is the only process of the job's first program. */
static bool is_beside_engine(const struct environment *environment, const struct launcher *launcher)
{
    const char *sizes = get(environment, launcher->program_sizes);
    int32_t num_programs = 1;

    /* What cannot be read tells nothing. */
    return get_number(environment, launcher->num_programs, 1, IDENTITY_MAX_WORLD, &num_programs) == OK &&
           num_programs > 1 && sizes && strtol(sizes, NULL, 10) == 1;
}

static enum status take_engine_off(const struct launcher *launcher, struct identity *identity)
{
    if (identity->rank == 0)
        return fail(ERR_INVALID,
                    "%s is 0, and the first of several programs with one process is taken for the "
                    "engine; where it is a rank, set TANDEM_RANK and TANDEM_WORLD_SIZE for all",
                    launcher->rank);
    /* Launchers fill host by host, so the first host is where both numbers are the same. */
    if (identity->local_rank == identity->rank) {
        identity->local_rank--;
        identity->local_world -= identity->local_world > 0;
    }
    identity->rank--;
    identity->world--;
    return OK;
}

static enum status read_row(const struct environment *environment, const struct launcher *launcher,
                            struct identity *out)
{
    /* With the engine beside them there is one more. */
    static const int32_t most = IDENTITY_MAX_WORLD;
    struct identity identity = {.launcher = launcher->name, .local_rank = -1, .local_world = -1,
                                .node = -1};

    if (!get(environment, launcher->world))
        return fail(ERR_INVALID, "%s is set and %s is not: both are wanted", launcher->rank,
                    launcher->world);
    TRY(get_number(environment, launcher->rank, 0, most, &identity.rank));
    TRY(get_number(environment, launcher->world, 1, most + 1, &identity.world));
    TRY(get_number(environment, launcher->local_rank, 0, most, &identity.local_rank));
    TRY(get_number(environment, launcher->local_world, 1, most + 1, &identity.local_world));
    TRY(get_number(environment, launcher->node, 0, most, &identity.node));
    if (identity.node >= 0 && launcher->tasks_per_node)
        identity.local_world =
            tasks_of_node(get(environment, launcher->tasks_per_node), identity.node);
    TRY(check(launcher, &identity));
    if (is_beside_engine(environment, launcher))
        TRY(take_engine_off(launcher, &identity));
    if (identity.world > IDENTITY_MAX_WORLD)
        return fail(ERR_INVALID, "%s is %d, it must be from 1 to %d", launcher->world,
                    identity.world, IDENTITY_MAX_WORLD);
    *out = identity;
    return OK;
}

enum status identity_find(identity_lookup lookup, const void *user, struct identity *out)
{
    const struct environment environment = {lookup, user};

    for (size_t i = 0; i < COUNT_OF(launchers); i++) {
        const struct launcher *launcher = &launchers[i];

        if (launcher->insists && !get(&environment, launcher->rank) &&
            get(&environment, launcher->world))
            return fail(ERR_INVALID, "%s is set and %s is not: both are wanted", launcher->world,
                        launcher->rank);
        if (get(&environment, launcher->rank) &&
            (!launcher->mark || get(&environment, launcher->mark)))
            return read_row(&environment, launcher, out);
    }
    *out = (struct identity){.launcher = "none", .world = 1, .local_rank = -1, .local_world = -1,
                             .node = -1};
    return OK;
}

static const char *look_up(const void *user, const char *name)
{
    (void)user;
    return getenv(name);
}

enum status identity_of_process(struct identity *out)
{
    return identity_find(look_up, NULL, out);
}
