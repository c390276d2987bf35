#include "engine/cmd/cmd.h"
#include "engine/cmd/inner.h"

#include "engine/grammar/host.h"

#include <sys/prctl.h>

struct host_settings {
    int32_t socket, vocabulary, bell;
    int64_t memory;
    char *folder;
};

#define ROW(member, ...) OPTION(struct host_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(socket, OPTION_I32, "-1", "descriptor of the engine's socket", .least = -1, .most = 1 << 20,
        .group = "Host"),
    ROW(vocabulary, OPTION_I32, "-1", "descriptor of the vocabulary's file", .least = -1,
        .most = 1 << 20),
    ROW(bell, OPTION_I32, "-1", "descriptor of the eventfd that tells of masks", .least = -1,
        .most = 1 << 20),
    ROW(memory, OPTION_I64, "536870912", "bytes that a grammar may take", .least = 1 << 20,
        .most = INT64_MAX / 2),
    ROW(folder, OPTION_TEXT, "grammar", "where the libraries are", .value = "FOLDER"),
};
#undef ROW

static const char usage[] =
    "usage: tandem grammar-host --socket FD --vocabulary FD --bell FD --folder FOLDER\n\n"
    "Compiles grammars and fills masks, in a process for each grammar. The engine starts it\n"
    "itself when the first request brings a grammar.\n";

static enum status check(const void *target)
{
    const struct host_settings *settings = target;

    return settings->socket < 0 || settings->vocabulary < 0
               ? fail(ERR_INVALID,
                      "--socket and --vocabulary are missing: the engine gives them")
               : OK;
}

int cmd_grammar_host(int argc, char **argv)
{
    struct host_settings settings = {0};
    struct option_set set = {options, COUNT_OF(options), &settings};
    int exit_status;

    if (!cmd_parse("grammar-host", &set, usage, argc, argv, check, &exit_status))
        return exit_status;
    prctl(PR_SET_NAME, "tandem-gramhost");
    return host_main(&(struct host_options){
        .backends = backends,
        .socket_fd = settings.socket,
        .vocabulary_fd = settings.vocabulary,
        .bell_fd = settings.bell,
        .folder = settings.folder,
        .memory_bytes = settings.memory,
    });
}
