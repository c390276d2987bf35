#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/cmd/inner.h"

#include "worker/identity.h"
#include "worker/wire_loop.h"

#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

struct worker_settings {
    char *engine, *token;
    int32_t rank, world;
    double join_timeout;
};

enum { NOT_SAID = -1 };

#define ROW(member, ...) OPTION(struct worker_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(engine, OPTION_TEXT, NULL,
        "where the engine is: ipc://PATH, tcp://HOST:PORT, or file:PATH that holds one of them",
        .value = "ADDRESS", .group = "Worker"),
    ROW(token, OPTION_TEXT, NULL, "keys that it shares with the engine, for tcp", .value = "FILE"),
    ROW(rank, OPTION_I32, "-1", "which rank this is, from 0; -1: as the launcher says",
        .least = NOT_SAID, .most = IDENTITY_MAX_WORLD - 1),
    ROW(world, OPTION_I32, "-1", "how many ranks there are; -1: as the launcher says",
        .least = NOT_SAID, .most = IDENTITY_MAX_WORLD),
    ROW(join_timeout, OPTION_F64, "300", "seconds to look for an engine that is not there yet",
        .least = 0.1, .most = 1e6, .value = "SECONDS"),
};
#undef ROW

static const char usage[] =
    "usage: tandem worker --engine ADDRESS [--token FILE] [--rank R --world N]\n\n"
    "Runs one rank. An engine starts those of its own host itself; with --executor distributed\n"
    "others start them, in any order and before the engine too. Rank and world are what the\n"
    "launcher says, where they are not given: tandem launch, mpirun, mpiexec, srun, torchrun, Ray,\n"
    "LeaderWorkerSet. All else a rank is told by the engine when it joins.\n";

static enum status check(const void *target)
{
    const struct worker_settings *settings = target;

    if (!settings->engine)
        return fail(ERR_INVALID, "--engine is missing: where is the engine?");
    if (strncmp(settings->engine, "tcp://", 6) == 0 && !settings->token)
        return fail(ERR_INVALID, "--token is missing: over tcp only who has the engine's token comes in");
    return OK;
}

/* What the settings leave open, the launcher says. */
static enum status find_identity(const struct worker_settings *settings, struct identity *out)
{
    *out = (struct identity){.launcher = "none", .local_rank = -1, .local_world = -1, .node = -1};
    if (settings->rank == NOT_SAID || settings->world == NOT_SAID)
        TRY(identity_of_process(out));
    if (settings->rank != NOT_SAID)
        out->rank = settings->rank;
    if (settings->world != NOT_SAID)
        out->world = settings->world;
    if (out->world < 1 || out->rank >= out->world)
        return fail(ERR_INVALID, "rank %d does not exist among %d ranks: --rank and --world say which "
                    "this is", out->rank, out->world);
    /* Where nobody says more, all are on this host. */
    if (out->local_rank < 0 || out->local_world <= out->local_rank) {
        out->local_rank = out->rank;
        out->local_world = out->world;
    }
    return OK;
}

/* A file that is not there, or not a token, is a wrong setting. */
static enum status read_token(const struct worker_settings *settings, struct token *out)
{
    enum status status = settings->token ? token_read(settings->token, out) : OK;

    return status == OK || status == ERR_IO ? status : fail(ERR_INVALID, "%s", fail_text());
}

/* What goes wrong is in the log, or told to the engine. */
static enum status run_rank(const struct worker_settings *settings,
                            const struct identity *identity, const struct token *token)
{
    return worker_main(&(struct worker_main_options){
        .engine = settings->engine,
        .token = settings->token ? token : NULL,
        .join_timeout_ms = (int64_t)(settings->join_timeout * 1e3),
        .rank = identity->rank,
        .world = identity->world,
        .local_rank = identity->local_rank,
        .local_world = identity->local_world});
}

int cmd_worker(int argc, char **argv)
{
    struct worker_settings settings = {0};
    struct option_set set = {options, COUNT_OF(options), &settings};
    struct identity identity;
    struct token token;
    enum status status;
    int exit_status;

    if (!cmd_parse("worker", &set, usage, argc, argv, check, &exit_status))
        return exit_status;
    /* ps would call us "exe": the engine starts us as /proc/self/exe, to be sure of its own build. */
    prctl(PR_SET_NAME, "tandem-worker");
    status = find_identity(&settings, &identity);
    if (status == OK)
        status = read_token(&settings, &token);
    if (status != OK)
        fprintf(stderr, "tandem worker: %s\n", fail_text());
    else
        status = run_rank(&settings, &identity, &token);
    options_close(&set);
    return exit_code_of(status);
}
