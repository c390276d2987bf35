#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/cmd/inner.h"

#include "proto/base/log.h"
#include "worker/wire_loop.h"

#include <stdio.h>
#include <sys/prctl.h>

struct worker_settings {
    char *engine, *token;
    int32_t rank, world;
};

#define ROW(member, ...) OPTION(struct worker_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(engine, OPTION_TEXT, NULL, "the engine's endpoint, ipc://PATH", .value = "ENDPOINT",
        .group = "Worker"),
    ROW(token, OPTION_TEXT, NULL, "keys that it shares with the engine, for tcp", .value = "FILE"),
    ROW(rank, OPTION_I32, "0", "which rank this is, from 0", .most = 255),
    ROW(world, OPTION_I32, "1", "how many ranks there are", .least = 1, .most = 256),
};
#undef ROW

static const char usage[] =
    "usage: tandem worker --engine ENDPOINT --rank R --world N\n\n"
    "Runs one rank. The engine starts its ranks itself; this is what it starts.\n"
    "Everything else it is told by the engine when it joins.\n";

static enum status check(const void *target)
{
    const struct worker_settings *settings = target;

    if (!settings->engine)
        return fail(ERR_INVALID, "--engine is missing: where is the engine?");
    if (settings->rank >= settings->world)
        return fail(ERR_INVALID, "--rank %d does not exist among --world %d", settings->rank,
                    settings->world);
    return OK;
}

int cmd_worker(int argc, char **argv)
{
    struct worker_settings settings = {0};
    struct option_set set = {options, COUNT_OF(options), &settings};
    struct token token;
    enum status status;
    int exit_status;

    if (!cmd_parse("worker", &set, usage, argc, argv, check, &exit_status))
        return exit_status;
    /* ps would call us "exe": the engine starts us as /proc/self/exe, to be sure of its own build. */
    prctl(PR_SET_NAME, "tandem-worker");
    status = settings.token ? token_read(settings.token, &token) : OK;
    if (status != OK)
        fprintf(stderr, "tandem worker: %s\n", fail_text());
    /* What goes wrong from here on is told to the engine. */
    if (status == OK)
        status = worker_main(&(struct worker_main_options){.engine = settings.engine,
                                                           .token = settings.token ? &token : NULL,
                                                           .rank = settings.rank,
                                                           .world = settings.world,
                                                           .local_rank = settings.rank,
                                                           .local_world = settings.world});
    options_close(&set);
    return exit_code_of(status);
}
