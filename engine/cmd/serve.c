#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/control/control.h"
#include "engine/front/front.h"
#include "engine/server/http.h"
#include "engine/server/http_parse.h"
#include "engine/server/server.h"

#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/notify.h"
#include "proto/config/config.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { BODIES_AT_ONCE = 32 }; /* of the largest size, in memory together */

struct serve_options {
    char *api_key;
    bool allow_unauthenticated;
    char *allowed_origins;
    double drain_timeout;   /* seconds */
    double request_timeout; /* seconds */
    int32_t max_connections;
    bool enable_dev_endpoints;
    char *control, *control_keys, *control_key;
    int64_t max_head_bytes, max_body_bytes, stream_buffer_bytes;
};

#define ROW(member, ...) OPTION(struct serve_options, member, __VA_ARGS__)
static const struct option option_rows[] = {
    ROW(api_key, OPTION_TEXT, NULL, "clients must send it; better in TANDEM_API_KEY than in ps",
        .value = "KEY", .is_secret = true, .group = "Clients"),
    ROW(allow_unauthenticated, OPTION_BOOL, "false",
        "without a key, other machines may ask all the same"),
    ROW(allowed_origins, OPTION_TEXT, NULL,
        "whose web pages may ask (CORS): https://HOST[:PORT], more behind commas, or * for all; none",
        .value = "LIST"),
    ROW(drain_timeout, OPTION_F64, "30", "seconds that running requests have at SIGTERM",
        .most = 86400),
    ROW(request_timeout, OPTION_F64, "60", "seconds that a client has to send its request",
        .least = 0.1, .most = 86400),
    ROW(enable_dev_endpoints, OPTION_BOOL, "false",
        "clients may pause and resume the engine and reset its prefix cache"),
    ROW(control, OPTION_TEXT, NULL,
        "where `tandem ctl` finds us: ipc://PATH, tcp://HOST:PORT, none; a directory of our own",
        .value = "ADDR"),
    ROW(control_keys, OPTION_TEXT, NULL, "with tcp: who may, lines of PUBLIC_KEY ROLE [NAME]",
        .value = "FILE"),
    ROW(control_key, OPTION_TEXT, NULL,
        "with tcp: our own key, from `tandem ctl keygen`; a new one at each start",
        .value = "FILE"),
    ROW(max_connections, OPTION_I32, "1024", "clients at once", .least = 1, .most = 100000),
    ROW(max_head_bytes, OPTION_BYTES, "16KiB", "of a request's headers", .least = 256,
        .most = 1 << 20),
    ROW(max_body_bytes, OPTION_BYTES, "8MiB", "of a request", .least = 1024, .most = 1 << 30),
    ROW(stream_buffer_bytes, OPTION_BYTES, "1MiB", "unread output at which a client is dropped",
        .least = 4096, .most = 1 << 30),
};
#undef ROW

static struct option_set serve_option_set(struct serve_options *options)
{
    return (struct option_set){option_rows, COUNT_OF(option_rows), options};
}

/* ---- limits ---------------------------------------------------------------------------------- */

static struct http_limits http_limits_of(const struct serve_options *options)
{
    struct http_limits limits = http_default_limits;

    limits.head_bytes = (size_t)options->max_head_bytes;
    limits.body_bytes = (size_t)options->max_body_bytes;
    limits.all_bodies_bytes = (size_t)options->max_body_bytes * BODIES_AT_ONCE;
    limits.stream_buffer_bytes = (size_t)options->stream_buffer_bytes;
    limits.num_connections = options->max_connections;
    limits.request_ms = (int)(options->request_timeout * 1000);
    return limits;
}

/* A connection is a file descriptor, and the usual soft limit of them is a thousand. */
static void raise_file_limit(int num_connections)
{
    struct rlimit limit;
    rlim_t wanted = (rlim_t)num_connections + 256;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted)
        return;
    limit.rlim_cur = MIN(wanted, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur < wanted)
        log_warn("the limit of open files, %llu, is less than --max-connections %d wants",
                 (unsigned long long)limit.rlim_cur, num_connections);
}

/* ---- who may ask ----------------------------------------------------------------------------- */

static enum status check_access(const struct config *config, const struct serve_options *options,
                                const struct http_server *http)
{
    if (options->api_key && !*options->api_key)
        return fail(ERR_INVALID, "--api-key (or TANDEM_API_KEY) is empty");
    if (options->api_key || options->allow_unauthenticated || http_is_loopback(http))
        return OK;
    return fail(ERR_INVALID,
                "--host %s lets other machines ask: give --api-key (or TANDEM_API_KEY), or say "
                "--allow-unauthenticated if all of them may",
                config->host);
}

/* As browsers name themselves: "https://host" or "https://host:port", in small letters, and nothing behind. */
static bool is_origin(const char *text, size_t size)
{
    const char *end = text + size, *host = memmem(text, size, "://", 3);

    if (!host || host == text || host + 3 == end || memchr(host + 3, '/', (size_t)(end - host - 3)))
        return false;
    for (const char *at = text; at < end; at++)
        if (isupper((unsigned char)*at))
            return false;
    return true;
}

static enum status check_origins(const char *list)
{
    const char *origin;
    size_t size;

    if (!list || strcmp(list, "*") == 0)
        return OK;
    while (http_next_word(&list, ", ", &origin, &size))
        if (!is_origin(origin, size))
            return fail(ERR_INVALID,
                        "--allowed-origins has '%.*s': no browser names a page's origin so; it is like "
                        "https://chat.example or http://localhost:3000, in small letters, or * alone for all",
                        (int)MIN(size, 200u), origin);
    return OK;
}

/* ---- one serve ------------------------------------------------------------------------------- */

/* To whoever asks, and on a terminal: one line that is written over. user: the control socket, or NULL. */
static void show_phase(void *user, const char *words, double fraction)
{
    (void)fraction; /* the words say it */
    notify("STATUS=%s", words);
    if (user)
        control_tell(user, words);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s", words);
}

static enum status open_control(struct config *config, struct serve_options *options,
                                struct control **out)
{
    struct option_set settings[] = {config_options(config), serve_option_set(options)};

    if (options->control && strcmp(options->control, "none") == 0)
        return OK;
    return control_open(&(struct control_options){.endpoint = options->control,
                                                  .keys_path = options->control_keys,
                                                  .key_path = options->control_key,
                                                  .run_dir = config->run_dir,
                                                  .settings = settings,
                                                  .num_settings = COUNT_OF(settings)},
                        out);
}

static enum status serve(struct config *config, struct serve_options *options)
{
    AUTO_FREE(http_server) struct http_server *http = NULL;
    AUTO_FREE(control) struct control *control = NULL;
    AUTO_FREE(front) struct front *front = NULL;
    struct http_limits limits = http_limits_of(options);
    struct engine_stats stats;
    enum log_level level;
    int64_t started_ns = clock_now_ns();

    TRY(log_parse_level(config->log_level, &level));
    log_set_role("engine", -1);
    log_set_level(level);

    /* A port that can't be had is told before a model is loaded for nothing. */
    TRY(http_open(config->host, config->port, &limits, &http));
    TRY(check_access(config, options, http));
    TRY(check_origins(options->allowed_origins));
    raise_file_limit(options->max_connections);
    TRY(open_control(config, options, &control));

    enum status status = front_open(config, show_phase, control, &front);
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
    TRY(status);
    engine_stats(front_engine(front), &stats);
    log_info("ready in %.2f s, with room for %lld tokens in the KV cache, as %s of %lld bytes each",
             (double)(clock_now_ns() - started_ns) / 1e9, (long long)stats.num_kv_blocks * KV_BLOCK_SIZE,
             kv_type_name(stats.kv_type), (long long)stats.kv_token_bytes);
    return server_run(front, http, &(struct server_options){
                                       .api_key = options->api_key,
                                       .allowed_origins = options->allowed_origins,
                                       .drain_ms = (int)(options->drain_timeout * 1000),
                                       .dev_endpoints = options->enable_dev_endpoints,
                                       .config = config,
                                       .control = control,
                                   });
}

static int print_help(void)
{
    AUTO_CLOSE(bytes) struct bytes help = {0};
    struct option_set set = serve_option_set(NULL);

    bytes_printf(&help, "usage: tandem serve --model FILE [OPTION]...\n\n"
                        "Answers OpenAI's HTTP API until SIGTERM; then finishes what runs.\n");
    config_help(&set, &help);
    fwrite(help.data, 1, help.size, stdout);
    return 0;
}

int cmd_serve(int argc, char **argv)
{
    struct config config = {0};
    struct serve_options options = {0};
    struct option_set set = serve_option_set(&options);

    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return print_help();

    enum status status = config_parse(&config, &set, argc, argv);
    if (status == OK && !config.model)
        status = fail(ERR_INVALID, "--model FILE is missing");
    if (status == OK)
        status = serve(&config, &options);
    if (status != OK)
        fprintf(stderr, "tandem serve: %s\n", fail_text());
    options_close(&set);
    config_close(&config);
    return exit_code_of(status);
}
