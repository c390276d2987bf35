#include "worker/join.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { FIRST_PAUSE_MS = 100, LAST_PAUSE_MS = 1000, SAY_EVERY_MS = 10000 };

static const char file_prefix[] = "file:";

static uint32_t make_nonce(void)
{
    uint32_t nonce;

    if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce)
        ASSERT(false, "no random number: %m");
    return nonce;
}

/* Where it is now. */
static enum status find_endpoint(const char *engine, char out[static RENDEZVOUS_MAX_ENDPOINT + 1])
{
    if (strncmp(engine, file_prefix, strlen(file_prefix)) == 0)
        return rendezvous_look_up(engine + strlen(file_prefix), out);
    if (strlen(engine) > RENDEZVOUS_MAX_ENDPOINT)
        return fail(ERR_INVALID, "the engine's address has %zu characters, %d at most are expected",
                    strlen(engine), RENDEZVOUS_MAX_ENDPOINT);
    strcpy(out, engine);
    return OK;
}

static enum status try_once(const struct join_options *options, int64_t deadline_ns,
                            struct arena *arena, struct joined *out)
{
    AUTO_FREE(channel) struct channel *channel = NULL;
    char name[CHANNEL_MAX_NAME + 1];
    struct channel_keys keys;
    enum status status;

    arena_reset(arena);
    TRY(find_endpoint(options->engine, out->endpoint));
    if (options->token)
        channel_keys_of_worker(options->token, &keys);
    rendezvous_name(options->rank, make_nonce(), name);
    TRY(channel_connect(out->endpoint, name, options->token ? &keys : NULL, &channel));
    status = rendezvous_join(channel, options->rank, options->world, deadline_ns, arena,
                             &out->welcome, &out->epoch);
    if (status == OK)
        out->channel = give(channel);
    if (status == ERR_CLOSED)
        return fail(channel_is_refused(channel) ? ERR_MISMATCH : ERR_CLOSED, "%s: %s",
                    out->endpoint, *channel_end(channel) ? channel_end(channel) : fail_text());
    return status;
}

/* What the next moment may change. */
static bool may_pass(enum status status)
{
    return status == ERR_CLOSED || status == ERR_NOT_FOUND || status == ERR_IO;
}

enum status join_engine(const struct join_options *options, struct arena *arena,
                        struct joined *out)
{
    int64_t deadline_ns = clock_deadline_ns(options->timeout_ms);
    int64_t say_at_ns = clock_deadline_ns(SAY_EVERY_MS);
    int64_t pause_ms = FIRST_PAUSE_MS;
    enum status status;

    for (;;) {
        *out = (struct joined){0};
        status = try_once(options, deadline_ns, arena, out);
        if (!may_pass(status))
            return status;
        if (clock_now_ns() + pause_ms * 1000000 >= deadline_ns)
            return fail(ERR_TIMEOUT, "no engine for %.1f s: %s", (double)options->timeout_ms / 1e3,
                        fail_text());
        if (clock_now_ns() >= say_at_ns) {
            log_info("rank %d waits for the engine: %s", options->rank, fail_text());
            say_at_ns = clock_deadline_ns(SAY_EVERY_MS);
        }
        usleep((useconds_t)(pause_ms * 1000));
        pause_ms = MIN(2 * pause_ms, LAST_PAUSE_MS);
    }
}
