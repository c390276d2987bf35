#include "engine/control/commands.h"

#include "engine/control/tracing.h"
#include "engine/server/server.h"
#include "proto/base/build_id.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/stacks.h"
#include "proto/config/config.h"
#include "proto/wire/messages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Requests that one answer lists, where the client does not say how many it wants. */
enum { DEFAULT_REQUESTS = 1000, MAX_REQUESTS = 4000 };

/* Half of what a reply holds: a newline takes two bytes in JSON. */
enum { MAX_STACKS_BYTES = MAX_LONG_TEXT / 2 };

static const char *const role_names[NUM_CONTROL_ROLES] = {
    [ROLE_NONE] = "none",
    [ROLE_READ] = "read",
    [ROLE_OPERATE] = "operate",
    [ROLE_ADMIN] = "admin",
};

const char *control_role_name(enum control_role role)
{
    return role_names[role];
}

/* ---- small things ---------------------------------------------------------------------------- */

static const char *text_arg(const json_t *args, const char *name, const char *otherwise)
{
    const char *text = json_string_value(json_object_get(args, name));

    return text ? text : otherwise;
}

static int64_t integer_arg(const json_t *args, const char *name, int64_t otherwise)
{
    const json_t *value = json_object_get(args, name);

    return value ? json_integer_value(value) : otherwise;
}

/* What came from outside may be no UTF-8. */
static json_t *string_of(const char *text)
{
    json_t *string = json_string(text);

    if (string)
        return string;
    AUTO_MEM char *copy = mem_strdup(text);
    for (char *c = copy; *c; c++)
        *c = *c < ' ' || *c > '~' ? '?' : *c;
    return json_string(copy);
}

static json_t *real_of(double value, double unit)
{
    return json_real((double)(int64_t)(value / unit + 0.5) * unit);
}

static enum status need_engine(const struct control_scene *scene)
{
    return scene->server ? OK : fail(ERR_CLOSED, "the engine is not ready: %s", scene->progress);
}

/* ---- commands that look ---------------------------------------------------------------------- */

static void tell_stats(const struct server *server, json_t *json)
{
    struct engine_stats stats;
    json_t *numbers;

    engine_stats(front_engine(server->front), &stats);
    numbers = json_pack(
        "{s:s, s:s, s:b, s:b, s:s, s:I, s:i, s:i, s:i, s:i, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i}", "phase",
        engine_phase_name(server->draining ? PHASE_DRAINING : stats.phase), "model",
        front_model(server->front)->name, "paused", stats.is_paused, "asleep", stats.is_asleep,
        "fingerprint", stats.fingerprint, "weights_version", (json_int_t)stats.weights_version,
        "requests_running",
        stats.num_running, "requests_waiting", stats.num_waiting, "kv_blocks", stats.num_kv_blocks,
        "kv_blocks_used", stats.num_kv_blocks_used, "kv_cache_dtype", kv_type_name(stats.kv_type), "kv_token_bytes",
        (json_int_t)stats.kv_token_bytes, "steps", (json_int_t)stats.num_steps,
        "progress_ms", (json_int_t)clock_ms(clock_now_ns() - stats.progress_ns), "preemptions",
        (json_int_t)stats.num_preemptions, "recoveries", (json_int_t)stats.num_recoveries, "ranks",
        stats.num_ranks, "ranks_alive", stats.num_ranks_alive);
    json_object_update(json, numbers);
    json_decref(numbers);
    if (stats.phase == PHASE_FAILED)
        json_object_set_new(json, "failure", string_of(stats.failure));
}

static enum status look_status(const struct control_scene *scene, const json_t *args, json_t **out)
{
    (void)args;
    *out = json_pack("{s:s, s:n, s:s, s:s, s:i, s:o}", "phase", "loading", "model", "version",
                     TANDEM_VERSION, "build", build_id_text(), "pid", (int)getpid(), "uptime_s",
                     real_of((double)(clock_now_ns() - scene->started_ns) / 1e9, 1e-3));
    if (scene->server)
        tell_stats(scene->server, *out);
    else
        json_object_set_new(*out, "progress", string_of(scene->progress));
    return OK;
}

static enum status look_health(const struct control_scene *scene, const json_t *args, json_t **out)
{
    (void)args;
    TRY(need_engine(scene));
    /* Why is what counts; how long it takes is not the answer's own time. */
    if (server_check_serving(scene->server) != OK)
        return fail(ERR_CLOSED, "%s", fail_text());
    *out = json_pack("{s:s}", "status", "ok");
    return OK;
}

static json_t *worker_row(const struct engine_worker *worker)
{
    const struct memory_held *memory = &worker->memory;
    const struct pass_counts *passes = &worker->passes;

    return json_pack("{s:i, s:i, s:o, s:s, s:I, s:i,"
                     " s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                     "rank", worker->rank, "pid", worker->pid, "host", string_of(worker->host), "state",
                     worker_state_name(worker->state), "epoch", (json_int_t)worker->epoch,
                     "restarts", worker->restarts, "step", (json_int_t)worker->step, "ms_in_step",
                     (json_int_t)worker->ms_in_step, "ms_since_heard",
                     (json_int_t)worker->ms_since_heard, "weights_mib", (json_int_t)memory->weights_bytes >> 20,
                     "kv_cache_mib", (json_int_t)memory->kv_cache_bytes >> 20, "workspace_mib",
                     (json_int_t)memory->workspace_bytes >> 20, "free_mib", (json_int_t)memory->free_bytes >> 20,
                     "total_mib", (json_int_t)memory->total_bytes >> 20,
                     "passes_recorded_first", (json_int_t)passes->recorded_first, "passes_recorded_later",
                     (json_int_t)passes->recorded_later, "passes_replayed", (json_int_t)passes->replayed,
                     "passes_launched", (json_int_t)passes->launched);
}

static enum status look_workers(const struct control_scene *scene, const json_t *args, json_t **out)
{
    struct engine_worker workers[MAX_RANKS];
    int32_t n;

    (void)args;
    TRY(need_engine(scene));
    n = engine_workers(front_engine(scene->server->front), workers, MAX_RANKS);
    *out = json_array();
    for (int32_t i = 0; i < MIN(n, (int32_t)MAX_RANKS); i++)
        json_array_append_new(*out, worker_row(&workers[i]));
    return OK;
}

static json_t *request_row(const struct front_request *request, int64_t now_ns)
{
    return json_pack("{s:I, s:s, s:o, s:s, s:i, s:i, s:I}", "id", (json_int_t)request->id, "name",
                     request->name, "client_id",
                     *request->client_id ? string_of(request->client_id) : json_null(), "state",
                     request->state, "prompt_tokens", request->num_prompt_tokens, "output_tokens",
                     request->num_output_tokens, "age_ms",
                     (json_int_t)clock_ms(now_ns - request->submitted_ns));
}

static enum status look_requests(const struct control_scene *scene, const json_t *args, json_t **out)
{
    int32_t most = (int32_t)integer_arg(args, "most", DEFAULT_REQUESTS);
    AUTO_MEM struct front_request *requests = mem_new_array(struct front_request, (size_t)most);
    int64_t now_ns = clock_now_ns();
    int32_t n;

    TRY(need_engine(scene));
    n = front_requests(scene->server->front, requests, most);
    *out = json_array();
    for (int32_t i = 0; i < MIN(n, most); i++)
        json_array_append_new(*out, request_row(&requests[i], now_ns));
    return OK;
}

static enum status look_metrics(const struct control_scene *scene, const json_t *args, json_t **out)
{
    AUTO_CLOSE(bytes) struct bytes page = {0};

    (void)args;
    TRY(need_engine(scene));
    server_print_metrics(scene->server, &page);
    *out = json_string(bytes_text(&page));
    return OK;
}

static void tell_stacks(const char *title, int32_t pid, struct bytes *out)
{
    bytes_printf(out, "== %s, process %d\n", title, pid);
    if (stacks_of_process(pid, out) != OK)
        bytes_printf(out, "%s\n", fail_text());
}

/* By the process, not by asking it: a rank that hangs would not answer. */
static void tell_rank_stacks(const struct engine_worker *worker, struct bytes *out)
{
    AUTO_MEM char *title = mem_printf("rank %d", worker->rank);
    char host[64] = "";

    gethostname(host, sizeof host - 1);
    if (strcmp(host, worker->host) != 0)
        bytes_printf(out, "== %s, process %d on %s: ask there\n", title, worker->pid, worker->host);
    else if (worker->pid != getpid())
        tell_stacks(title, worker->pid, out);
}

static enum status look_stacks(const struct control_scene *scene, const json_t *args, json_t **out)
{
    struct engine_worker workers[MAX_RANKS];
    AUTO_CLOSE(bytes) struct bytes text = {0};
    int32_t n = scene->server
                    ? engine_workers(front_engine(scene->server->front), workers, MAX_RANKS)
                    : 0;

    (void)args;
    tell_stacks("engine", getpid(), &text);
    for (int32_t i = 0; i < MIN(n, (int32_t)MAX_RANKS); i++)
        tell_rank_stacks(&workers[i], &text);
    text.size = MIN(text.size, (size_t)MAX_STACKS_BYTES);
    *out = string_of(bytes_text(&text));
    return OK;
}

static enum status look_config(const struct control_scene *scene, const json_t *args, json_t **out)
{
    const char *name = text_arg(args, "name", NULL);
    struct option_set set = config_options(NULL);
    const struct option *option = name ? option_find(&set, name) : NULL;
    json_t *value = name ? json_object_get(scene->settings, option ? option->key : name) : NULL;

    if (name && !value)
        return fail(ERR_INVALID, "there is no setting '%.64s'; 'config get' tells all", name);
    *out = name ? json_incref(value) : json_copy((json_t *)scene->settings);
    return OK;
}

static json_t *command_row(const struct control_command *command)
{
    AUTO_CLOSE(bytes) struct bytes usage = {0};

    control_command_usage(command, &usage);
    return json_pack("{s:s, s:s, s:s}", "command", bytes_text(&usage), "role",
                     control_role_name(command->role), "help", command->help);
}

static enum status look_help(const struct control_scene *scene, const json_t *args, json_t **out)
{
    (void)scene;
    (void)args;
    *out = json_array();
    for (size_t i = 0; i < control_num_commands; i++)
        json_array_append_new(*out, command_row(&control_commands[i]));
    return OK;
}

/* ---- commands that act: orders to the engine -------------------------------------------------- */

static struct engine *engine_of(const struct control_call *call)
{
    return front_engine(call->server->front);
}

static void end_order(void *user, enum status status, const char *text)
{
    control_call_end(user, status, text, NULL);
}

/* What engine_pause and its like returned: a refusal is the last word. */
static void given(struct control_call *call, enum status status)
{
    if (status != OK)
        control_call_end(call, status, fail_text(), NULL);
}

static void act_pause(struct control_call *call)
{
    enum pause_mode mode;

    given(call, pause_mode_parse(text_arg(call->args, "mode", "abort"), &mode) == OK
                    ? engine_pause(engine_of(call), mode, true, end_order, call)
                    : ERR_INVALID);
}

static void act_resume(struct control_call *call)
{
    given(call, engine_resume(engine_of(call), end_order, call));
}

static void act_reset_prefix_cache(struct control_call *call)
{
    given(call, engine_reset_prefix_cache(engine_of(call), false, end_order, call));
}

static void act_restart_worker(struct control_call *call)
{
    int32_t rank = (int32_t)integer_arg(call->args, "rank", 0);

    given(call, engine_restart_worker(engine_of(call), rank, end_order, call));
}

static void act_abort(struct control_call *call)
{
    const char *name = text_arg(call->args, "id", "");
    int32_t n = front_abort_named(call->server->front, name);

    if (n == 0)
        control_call_end(call, ERR_NOT_FOUND, "there is no such request; 'requests' lists them",
                         NULL);
    else
        control_call_end(call, OK, NULL, json_pack("{s:i}", "aborted", n));
}

/* ---- orders to the ranks ----------------------------------------------------------------------- */

/* What the ranks say, or the engine of them all, is JSON. */
static void end_told(void *user, enum status status, const char *text)
{
    control_call_end(user, status, text, status == OK ? json_loads(text, 0, NULL) : NULL);
}

static void act_weights_reload(struct control_call *call)
{
    given(call, engine_reload_weights(engine_of(call), text_arg(call->args, "file", ""), end_told,
                                      call));
}

static void act_weights_drop(struct control_call *call)
{
    given(call, engine_call_workers(engine_of(call), "reload_weights", "{\"phase\": \"drop\"}",
                                    end_told, call));
}

static void act_weights_rollback(struct control_call *call)
{
    given(call, engine_call_workers(engine_of(call), "reload_weights",
                                    "{\"phase\": \"rollback\"}", end_told, call));
}

/* Requests wait meanwhile, and start over behind it. */
static void act_sleep(struct control_call *call)
{
    AUTO_MEM char *args = mem_printf("{\"level\": %" PRId64 "}", integer_arg(call->args, "level", 1));

    given(call, engine_call_workers(engine_of(call), "sleep", args, end_told, call));
}

static void act_wake(struct control_call *call)
{
    given(call, engine_call_workers(engine_of(call), "wake_up", "{}", end_told, call));
}

/* ---- settings -------------------------------------------------------------------------------- */

/* "log_level, max_num_queued_reqs, …" */
static char *live_names(const struct option_set *set)
{
    AUTO_CLOSE(bytes) struct bytes names = {0};

    for (size_t i = 0; i < set->num_options; i++)
        if (set->options[i].is_live)
            bytes_printf(&names, "%s%s", names.size ? ", " : "", set->options[i].key);
    return mem_strdup(bytes_text(&names));
}

static enum status find_live(const struct option_set *set, const char *name,
                             const struct option **out)
{
    AUTO_MEM char *names = live_names(set);

    *out = option_find(set, name);
    if (!*out)
        return fail(ERR_INVALID, "there is no setting '%.64s' that could be changed; these can: %s",
                    name, names);
    if (!(*out)->is_live)
        return fail(ERR_INVALID, "%s is read at the start only; these can be changed: %s",
                    (*out)->key, names);
    return OK;
}

/* Into the server's own copy of the settings, and from there to whom it concerns. */
static enum status set_live(struct control_call *call, const struct option *option,
                            const char *text)
{
    struct config *config = &call->server->live_config;
    struct option_set set = config_options(config);
    enum log_level level;

    TRY(option_set_text(&set, option, option->key, text));
    TRY(log_parse_level(config->log_level, &level));
    log_set_level(level);
    call->changed = json_object();

    json_t *all = options_to_json(&set);
    json_object_set(call->changed, option->key, json_object_get(all, option->key));
    json_decref(all);
    return engine_retune(engine_of(call), config, end_order, call);
}

static void set_named(struct control_call *call, const char *name, const char *text)
{
    struct option_set set = config_options(&call->server->live_config);
    const struct option *option;
    enum status status = find_live(&set, name, &option);

    given(call, status == OK ? set_live(call, option, text) : status);
}

static void act_config_set(struct control_call *call)
{
    set_named(call, text_arg(call->args, "name", ""), text_arg(call->args, "value", ""));
}

static void act_log_level(struct control_call *call)
{
    const char *level = text_arg(call->args, "level", NULL);

    if (level)
        set_named(call, "log_level", level);
    else
        control_call_end(call, OK, NULL, json_string(call->server->live_config.log_level));
}

/* ---- the end --------------------------------------------------------------------------------- */

static void end_drain(struct control_call *call, enum status status, const char *why)
{
    list_remove(&call->node);
    control_call_end(call, status, why, NULL);
}

bool control_commands_tick(struct server *server)
{
    struct control_call *call;
    char why[96];

    LIST_FOR_EACH (call, &server->drains, node) {
        if (!server->num_posts) {
            end_drain(call, OK, NULL);
        } else if (clock_now_ns() >= call->deadline_ns) {
            snprintf(why, sizeof why, "%d requests are not answered yet", server->num_posts);
            end_drain(call, ERR_TIMEOUT, why);
        }
    }
    return !list_is_empty(&server->drains);
}

void control_commands_end(struct server *server)
{
    struct control_call *call;

    LIST_FOR_EACH (call, &server->drains, node)
        end_drain(call, ERR_CLOSED, "the server ends");
}

/* New requests are refused, and the server stays: it can be looked at, and told to end. */
static void act_drain(struct control_call *call)
{
    struct server *server = call->server;
    const json_t *wait = json_object_get(call->args, "wait");

    engine_drain(engine_of(call));
    if (!wait || !server->num_posts) {
        control_call_end(call, OK, NULL, json_pack("{s:i}", "requests", server->num_posts));
        return;
    }
    call->deadline_ns = clock_deadline_ns((int64_t)(json_number_value(wait) * 1000));
    list_push_back(&server->drains, &call->node);
    server_watch_now(server);
}

static void act_shutdown(struct control_call *call)
{
    struct server *server = call->server;
    bool is_now = strcmp(text_arg(call->args, "how", "drain"), "now") == 0;

    control_call_end(call, OK, NULL, json_pack("{s:i}", "requests", server->num_posts));
    if (is_now)
        server_end(server, "ended by the control command 'shutdown now'");
    else
        server_drain(server, server->options->drain_ms);
}

/* ---- the table ------------------------------------------------------------------------------- */

#define ROW(command, command_help, command_role, ...)                                              \
    {.name = (command), .help = (command_help), .role = (command_role), __VA_ARGS__}

const struct control_command control_commands[] = {
    ROW("status", "phase, requests, KV blocks, steps; answers while a step hangs", ROLE_READ,
        .look = look_status),
    ROW("health", "is a request that comes now answered? else why not, and exit 1", ROLE_READ,
        .look = look_health),
    ROW("workers", "each rank: process, host, state, what it does", ROLE_READ,
        .look = look_workers),
    ROW("requests", "what is in flight, oldest first", ROLE_READ,
        .args = {{"most", CONTROL_INTEGER, .is_flag = true, .least = 1, .most = MAX_REQUESTS}},
        .look = look_requests),
    ROW("metrics", "the page of /metrics", ROLE_READ, .look = look_metrics),
    ROW("stacks", "where every thread of the engine and of its ranks here is", ROLE_READ,
        .look = look_stacks),
    ROW("config get", "a setting, or all", ROLE_READ, .args = {{"name", CONTROL_TEXT}},
        .look = look_config),
    ROW("config set", "changes a setting that is live", ROLE_ADMIN,
        .args = {{"name", CONTROL_TEXT, .is_needed = true},
                 {"value", CONTROL_TEXT, .is_needed = true}},
        .act = act_config_set),
    ROW("log-level", "what the engine's process logs", ROLE_OPERATE,
        .args = {{"level", CONTROL_WORD, .words = "error warn info debug"}}, .act = act_log_level),
    ROW("drain", "refuses new requests for good; waits until all are answered", ROLE_OPERATE,
        .args = {{"wait", CONTROL_SECONDS, .is_flag = true, .most = 86400}}, .act = act_drain),
    ROW("pause", "admits no request until resume; ends, awaits or freezes those inside",
        ROLE_OPERATE, .args = {{"mode", CONTROL_WORD, .words = "abort wait keep"}},
        .act = act_pause),
    ROW("resume", "goes on after pause", ROLE_OPERATE, .act = act_resume),
    ROW("abort", "ends a request: the engine's number, the answer's id or X-Request-Id",
        ROLE_OPERATE, .args = {{"id", CONTROL_TEXT, .is_needed = true}}, .act = act_abort),
    ROW("reset-prefix-cache", "forgets all prefixes; refused while requests run", ROLE_OPERATE,
        .act = act_reset_prefix_cache),
    ROW("sleep", "gives the ranks' memory back until wake; requests wait", ROLE_ADMIN,
        .args = {{"level", CONTROL_INTEGER, .least = 1, .most = 2}},
        .act = act_sleep),
    ROW("wake", "takes that memory again; requests start over", ROLE_ADMIN, .act = act_wake),
    ROW("restart-worker", "ends a rank's process and starts it anew", ROLE_ADMIN,
        .args = {{"rank", CONTROL_INTEGER, .is_needed = true, .most = MAX_RANKS - 1}},
        .act = act_restart_worker),
    ROW("weights reload", "other weights of the same shape and words, for all ranks between two steps, or for none",
        ROLE_ADMIN, .args = {{"file", CONTROL_FILE, .is_needed = true}},
        .act = act_weights_reload),
    ROW("weights rollback", "takes back the weights before the last reload; one that failed has forgotten them", ROLE_ADMIN,
        .act = act_weights_rollback),
    ROW("weights drop", "forgets them", ROLE_ADMIN, .act = act_weights_drop),
    ROW("profile start", "notes what every thread does, from now on", ROLE_OPERATE,
        .act = tracing_start),
    ROW("profile stop", "and tells it: how busy the devices were, what they waited for",
        ROLE_OPERATE, .act = tracing_profile),
    ROW("trace start", "the same notes, to be written by trace dump", ROLE_OPERATE,
        .act = tracing_start),
    ROW("trace stop", "notes no more", ROLE_OPERATE, .act = tracing_stop),
    ROW("trace dump", "writes what was noted into a file, on the engine's host", ROLE_ADMIN,
        .args = {{"file", CONTROL_FILE, .is_needed = true}}, .act = tracing_dump),
    ROW("shutdown", "ends the server as SIGTERM does, or now", ROLE_ADMIN,
        .args = {{"how", CONTROL_WORD, .words = "drain now"}}, .act = act_shutdown),
    ROW("help", "these commands", ROLE_READ, .look = look_help),
};
const size_t control_num_commands = COUNT_OF(control_commands);
