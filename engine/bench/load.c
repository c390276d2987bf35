/*
 * bench load: the whole engine under clients that come again and again, on a model or on a device
 * that --sim describes. Without --http they submit tokens to the engine; with it they stream
 * completions.
 */
#include "engine/bench/bench.h"
#include "engine/bench/stream_clients.h"
#include "engine/front/front.h"
#include "engine/grammar/compiler.h"
#include "engine/server/server.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/config/config.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct load_settings {
    char *model, *sim;
    int32_t clients, prompt_tokens, tokens, seconds;
    char *executor;
    bool http, async_scheduling;
    double structured;
    char *schema, *grammar_folder;
};

/* Objects without end, of most that schemas are made of. */
static const char SCHEMA[] =
    "{\"type\":\"array\",\"minItems\":1000,\"items\":{\"type\":\"object\",\"properties\":{"
    "\"name\":{\"type\":\"string\"},\"age\":{\"type\":\"integer\",\"minimum\":0,"
    "\"maximum\":150},\"email\":{\"type\":\"string\",\"format\":\"email\"},"
    "\"tags\":{\"type\":\"array\",\"items\":{\"enum\":[\"red\",\"green\",\"blue\"]}},"
    "\"score\":{\"type\":[\"number\",\"null\"]}},"
    "\"required\":[\"name\",\"age\",\"email\",\"tags\",\"score\"],"
    "\"additionalProperties\":false}}";

/* ---- an engine ------------------------------------------------------------------------------- */

static enum status parse_config(const struct load_settings *settings, struct config *out)
{
    AUTO_MEM char *seqs = mem_printf("%d", settings->clients);
    char *argv[] = {
        (char *)"load",
        (char *)(settings->sim ? "--sim" : "--model"),
        settings->sim ? settings->sim : settings->model,
        (char *)"--max-num-seqs",
        seqs,
        (char *)"--executor",
        settings->executor,
        (char *)"--log-level",
        (char *)"warn",
        (char *)(settings->async_scheduling ? "--async-scheduling" : "--no-async-scheduling"),
        NULL, NULL, NULL, NULL, /* room */
    };
    int argc = COUNT_OF(argv) - 4;

    if (!settings->sim && !settings->model)
        return fail(ERR_INVALID, "say what is to run: --model FILE, or --sim FILE");
    if (settings->sim && settings->model) { /* for its words */
        argv[argc++] = (char *)"--model";
        argv[argc++] = settings->model;
    }
    if (settings->grammar_folder) {
        argv[argc++] = (char *)"--grammar-folder";
        argv[argc++] = settings->grammar_folder;
    }
    return config_parse(out, NULL, argc, argv);
}

/* In every vocabulary. */
static token_id prompt_token(int32_t request, int32_t at)
{
    return 1 + (request * 31 + at) % 200;
}

/* ---- without HTTP ---------------------------------------------------------------------------- */

struct direct_load {
    const struct load_settings *settings;
    struct engine *engine;
    struct grammar_process *process; /* of the grammar that some follow; NULL: none do */
    token_id *prompt; /* [prompt_tokens] */
    int32_t num_running, num_submitted;
    int64_t end_ns;
    struct stream_counts counts;
};

static enum status submit(struct direct_load *load)
{
    /* Evenly among the others. */
    double share = load->settings->structured;
    bool is_structured = (int64_t)((load->num_submitted + 1) * share) >
                         (int64_t)(load->num_submitted * share);
    AUTO_FREE(grammar)
    struct grammar *grammar = is_structured ? grammar_process_start(load->process) : NULL;
    struct sampling_params params;
    request_id id;

    sampling_params_init(&params);
    params.max_tokens = load->settings->tokens;
    params.ignore_eos = true;
    for (int32_t i = 0; i < load->settings->prompt_tokens; i++)
        load->prompt[i] = prompt_token(load->num_submitted, i);
    load->num_submitted++;
    TRY(engine_submit(load->engine,
                      &(struct submission){.prompt = load->prompt,
                                           .num_prompt = load->settings->prompt_tokens,
                                           .params = &params,
                                           .grammar = grammar},
                      &id));
    grammar = NULL; /* the request's */
    load->num_running++;
    return OK;
}

static enum status take_event(struct direct_load *load, const struct engine_event *event)
{
    load->counts.num_tokens += event->num_tokens;
    if (event->finish == FINISH_NONE)
        return OK;
    load->num_running--;
    if (event->finish == FINISH_ERROR)
        return fail(event->error, "%s", event->error_text);
    load->counts.num_requests++;
    return clock_now_ns() < load->end_ns ? submit(load) : OK;
}

static enum status take_output(struct direct_load *load, struct engine_output *output)
{
    enum status status = OK;

    for (int32_t i = 0; i < output->num_events && status == OK; i++)
        status = take_event(load, &output->events[i]);
    engine_output_free(output);
    return status;
}

/* The grammar that some requests follow. */
static enum status compile(const struct load_settings *settings, struct front *front,
                           struct grammar_process **out)
{
    const char *text = settings->schema ? settings->schema : SCHEMA;
    struct grammar_spec spec = {.kind = GRAMMAR_JSON_SCHEMA, .text = text, .size = strlen(text)};

    return settings->structured == 0 ? OK
                                     : grammar_compiler_wait(front_grammars(front), &spec, out);
}

static enum status run_direct(const struct load_settings *settings, struct front *front,
                              struct stream_counts *out)
{
    AUTO_MEM token_id *prompt = mem_new_array(token_id, (size_t)settings->prompt_tokens);
    struct direct_load load = {
        .settings = settings, .engine = front_engine(front), .prompt = prompt};
    int64_t start_ns;

    TRY(compile(settings, front, &load.process));
    start_ns = clock_now_ns();
    load.end_ns = start_ns + (int64_t)settings->seconds * 1000000000;
    for (int32_t i = 0; i < settings->clients; i++)
        TRY(submit(&load));
    while (load.num_running > 0) {
        struct pollfd fd = {.fd = engine_fd(load.engine), .events = POLLIN};
        struct engine_output *output;

        poll(&fd, 1, -1);
        while ((output = engine_poll(load.engine)))
            TRY(take_output(&load, output));
    }
    load.counts.elapsed_ns = clock_now_ns() - start_ns;
    *out = load.counts;
    grammar_process_drop(load.process);
    return OK;
}

/* ---- with HTTP ------------------------------------------------------------------------------- */

struct client_thread {
    pthread_t thread;
    struct stream_clients_options options;
    struct stream_counts counts;
    enum status status;
    char sentence[512];
};

static void *run_clients(void *user)
{
    struct client_thread *clients = user;

    clients->status = stream_clients_run(&clients->options, &clients->counts);
    snprintf(clients->sentence, sizeof clients->sentence, "%s", fail_text());
    kill(getpid(), SIGTERM); /* the server drains, and returns */
    return NULL;
}

static char *completion_body(const struct load_settings *settings)
{
    AUTO_CLOSE(bytes) struct bytes body = {0};

    bytes_printf(&body, "{\"prompt\":[");
    for (int32_t i = 0; i < settings->prompt_tokens; i++)
        bytes_printf(&body, "%s%d", i ? "," : "", prompt_token(0, i));
    bytes_printf(&body,
                 "],\"max_tokens\":%d,\"ignore_eos\":true,\"temperature\":0,\"stream\":true,"
                 "\"stream_options\":{\"include_usage\":true}}",
                 settings->tokens);
    return mem_strdup(bytes_text(&body));
}

static enum status run_http(const struct load_settings *settings, struct front *front,
                            struct stream_counts *out)
{
    AUTO_FREE(http_server) struct http_server *http = NULL;
    AUTO_MEM char *body = completion_body(settings);
    struct http_limits limits = http_default_limits;
    struct client_thread clients = {
        .options = {.num_clients = settings->clients,
                    .body = body,
                    .duration_ns = (int64_t)settings->seconds * 1000000000},
    };
    enum status status;

    limits.num_connections = settings->clients + 16;
    TRY(http_open("127.0.0.1", 0, &limits, &http));
    clients.options.port = atoi(strrchr(http_url(http), ':') + 1);
    if (pthread_create(&clients.thread, NULL, run_clients, &clients) != 0)
        return fail(ERR_IO, "no thread for the clients: %m");
    status = server_run(front, http, &(struct server_options){.drain_ms = 5000, .is_quiet = true});
    pthread_join(clients.thread, NULL);
    TRY(status);
    if (clients.status != OK)
        return fail(clients.status, "%s", clients.sentence);
    *out = clients.counts;
    return OK;
}

/* ---- the bench ------------------------------------------------------------------------------- */

static enum status run(const void *user, double *figures_out)
{
    const struct load_settings *settings = user;
    AUTO_CLOSE(config) struct config config = {0};
    AUTO_FREE(front) struct front *front = NULL;
    struct stream_counts counts;
    double seconds;

    TRY(parse_config(settings, &config));
    log_set_level(LOG_WARN);
    TRY(front_open(&config, NULL, NULL, &front));
    TRY(settings->http ? run_http(settings, front, &counts) : run_direct(settings, front, &counts));
    seconds = (double)counts.elapsed_ns / 1e9;
    figures_out[0] = (double)counts.num_tokens / seconds;
    figures_out[1] = (double)counts.num_requests / seconds;
    figures_out[2] = (double)counts.num_events / seconds;
    return OK;
}

#define ROW(member, ...) OPTION(struct load_settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(model, OPTION_TEXT, NULL, "to run on this machine", .value = "FILE"),
    ROW(sim, OPTION_TEXT, NULL, "a device that only takes time; of --model there are only the words",
        .value = "FILE"),
    ROW(clients, OPTION_I32, "256", "requests at a time", .least = 1, .most = BENCH_MAX_RUNNING),
    ROW(prompt_tokens, OPTION_I32, "16", "of each request", .least = 1, .most = 1 << 16),
    ROW(tokens, OPTION_I32, "512", "that each is answered with", .least = 1, .most = 1 << 16),
    ROW(seconds, OPTION_I32, "5", "while which requests begin", .least = 1, .most = 3600),
    ROW(executor, OPTION_WORD, "multiproc", "where the ranks run", .words = "uniproc multiproc"),
    ROW(http, OPTION_BOOL, "false", "clients stream completions over HTTP"),
    ROW(structured, OPTION_F64, "0", "share of the requests that follow a JSON schema", .most = 1),
    ROW(schema, OPTION_TEXT, NULL, "that schema; an array of objects without end", .value = "JSON"),
    ROW(grammar_folder, OPTION_TEXT, NULL, "of the libraries; `grammar` beside the program",
        .value = "FOLDER"),
    ROW(async_scheduling, OPTION_BOOL, "true", "a step is prepared while the one before runs"),
};
#undef ROW

static const struct figure figures[] = {
    {"tokens_per_s", 0, "of all clients together, over the whole time"},
    {"requests_per_s", 1, "answered"},
    {"events_per_s", 0, "of the streams; a busy server puts several tokens into one"},
};

const struct bench bench_load = {
    .name = "load",
    .help = "the whole engine under many clients, with or without HTTP",
    .options = options,
    .num_options = COUNT_OF(options),
    .settings_bytes = sizeof(struct load_settings),
    .figures = figures,
    .num_figures = COUNT_OF(figures),
    .run = run,
};
