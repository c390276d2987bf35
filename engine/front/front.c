#include "engine/front/front.h"

#include "engine/grammar/compiler.h"
#include "engine/text/utf8.h"
#include "proto/base/clock.h"
#include "proto/base/file_read.h"
#include "proto/base/log.h"
#include "proto/base/map.h"
#include "proto/base/trace.h"
#include "proto/config/config.h"
#include "proto/wire/messages.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

struct front {
    char *name; /* of the model, for clients */
    struct model_file *model;
    struct tokenizer *tokenizer;
    struct template *chat_template;
    struct engine *engine;
    struct grammar_compiler *grammars;
    struct generation_config generation_config;
    struct openai_model openai;
    struct map routes; /* request_id -> struct sequence_route of a live generation */
    pthread_mutex_t routes_lock; /* held by this thread to add and remove, by others to look */
};

/* ---- opening ------------------------------------------------------------------------------------- */

static enum status read_template(const char *path, struct bytes *out)
{
    enum { MOST = 1 << 20 };
    enum status status = file_read(path, MOST, out);

    return status == ERR_FULL
               ? fail(ERR_INVALID, "%s: a chat template has at most %d bytes", path, MOST)
               : status;
}

/* The template of --chat-template, else the model's own; NULL where there is none. */
static enum status open_template(const struct config *config, const struct model_file *model,
                                 struct template **out)
{
    const struct text_view *own = &model_file_vocabulary(model)->chat_template;
    AUTO_CLOSE(bytes) struct bytes source = {0};

    if (!config->chat_template)
        return own->size > 0 ? template_new(own->data, own->size, out) : OK;
    TRY(read_template(config->chat_template, &source));
    if (template_new(bytes_text(&source), source.size, out) != OK)
        return fail_in(config->chat_template, ERR_INVALID);
    return OK;
}

/* "SmolLM2-135M-Instruct.Q4_1" of a path that ends in that and .gguf; of a folder its name. */
static char *name_of_file(const char *path)
{
    size_t end = strlen(path);

    while (end > 1 && path[end - 1] == '/')
        end--;

    const char *slash = memrchr(path, '/', end), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    size_t size = dot && strcasecmp(dot, ".gguf") == 0 ? (size_t)(dot - name) : (size_t)(path + end - name);

    return mem_strndup(name, size);
}

/* As clients know it. It goes into JSON and onto /metrics, while what it is taken from may be any bytes. */
static char *model_name(const struct config *config)
{
    AUTO_MEM char *given = config->served_model_name ? mem_strdup(config->served_model_name)
                                                     : name_of_file(config_model_path(config));
    AUTO_CLOSE(bytes) struct bytes name = {0};

    utf8_repair(given, strlen(given), &name);
    return mem_strdup(bytes_text(&name));
}

static enum status read_generation_config(const struct config *config, struct front *front)
{
    bool is_wanted = strcmp(config->generation_config, "auto") == 0;
    AUTO_CLOSE(bytes) struct bytes told = {0};

    if (generation_config_read(is_wanted ? model_file_generation_config(front->model) : (struct text_view){0},
                               &front->generation_config, &told) != OK)
        return fail(ERR_INVALID, "%s: generation_config.json: %s (--generation-config vllm does without it)",
                    config->model, fail_text());
    if (told.size > 0)
        log_warn("requests that do not say otherwise are sampled as generation_config.json says, %s; "
                 "--generation-config vllm does without it", bytes_text(&told));
    return OK;
}

struct text_job { /* tokenizer and template, made while the ranks load */
    const struct config *config;
    struct front *front;
    pthread_t thread;
    enum status status;
    char sentence[1024];
};

static void *run_text_job(void *arg)
{
    struct text_job *job = arg;
    struct front *front = job->front;

    trace_name_thread("text");
    job->status = tokenizer_new(model_file_vocabulary(front->model), &front->tokenizer);
    if (job->status == OK)
        job->status = open_template(job->config, front->model, &front->chat_template);
    snprintf(job->sentence, sizeof job->sentence, "%s", fail_text());
    return NULL;
}

static void start_text_job(struct text_job *job)
{
    int error = pthread_create(&job->thread, NULL, run_text_job, job);

    ASSERT(error == 0, "no thread for the tokenizer: %s", strerror(error));
}

static enum status end_text_job(struct text_job *job)
{
    pthread_join(job->thread, NULL);
    return job->status == OK ? OK : fail(job->status, "%s", job->sentence);
}

enum { MAX_COMPILING = 8 };

static enum status open_grammars(const struct config *config, struct front *front)
{
    bool is_auto = strcmp(config->grammar_backend, "auto") == 0;

    return grammar_compiler_new(
        &(struct grammar_compiler_options){
            .backends = backends,
            .folder = config->grammar_folder,
            .backend = is_auto ? NULL : config->grammar_backend,
            .tokenizer = front->tokenizer,
            .num_places = num_slots_for(config->max_num_seqs),
            .bell_fd = engine_grammar_fd(front->engine),
            .memory_bytes = config->grammar_memory,
            .cache_bytes = config->grammar_cache,
            .max_compiling = MAX_COMPILING,
            .compile_timeout_ms = (int32_t)(config->grammar_compile_timeout * 1000),
            .mask_timeout_ms = (int32_t)(config->grammar_mask_timeout * 1000),
        },
        &front->grammars);
}

enum status front_open(const struct config *config,
                       void (*progress)(void *user, const char *words, double fraction), void *user,
                       struct front **out)
{
    AUTO_FREE(front) struct front *front = mem_new(struct front);
    struct text_job job = {.config = config, .front = front};
    enum status status;

    pthread_mutex_init(&front->routes_lock, NULL);
    trace_name_thread("front");
    TRY(config_open_model(config, MODEL_WHOLE, &front->model));
    TRY(read_generation_config(config, front));
    start_text_job(&job);
    status = engine_new(config, front->model, progress, user, &front->engine);
    if (status != OK) { /* whatever the text has met, this came first */
        AUTO_MEM char *sentence = mem_strdup(fail_text());

        pthread_join(job.thread, NULL);
        return fail(status, "%s", sentence);
    }
    TRY(end_text_job(&job));
    TRY(open_grammars(config, front));
    front->name = model_name(config);
    front->openai = (struct openai_model){
        .name = front->name,
        .tokenizer = front->tokenizer,
        .chat_template = front->chat_template,
        .max_model_len = engine_max_model_len(front->engine),
        .seed = config->seed,
        .max_logprobs = config->max_logprobs,
        .generation_config = &front->generation_config,
        .serves_by_priority = strcmp(config->scheduling_policy, "priority") == 0,
    };
    *out = give(front);
    return OK;
}

void front_free(struct front *front)
{
    if (!front)
        return;
    grammar_compiler_free(front->grammars);
    engine_free(front->engine);
    map_close(&front->routes);
    pthread_mutex_destroy(&front->routes_lock);
    template_free(front->chat_template);
    tokenizer_free(front->tokenizer);
    model_file_free(front->model);
    mem_free(front->name);
    mem_free(front);
}

struct engine *front_engine(const struct front *front)
{
    return front->engine;
}

const struct openai_model *front_model(const struct front *front)
{
    return &front->openai;
}

struct grammar_compiler *front_grammars(const struct front *front)
{
    return front->grammars;
}

/* ---- in ------------------------------------------------------------------------------------------- */

static void add_route(struct front *front, struct sequence_route *route)
{
    pthread_mutex_lock(&front->routes_lock);
    map_put(&front->routes, (uint64_t)route->id, route);
    pthread_mutex_unlock(&front->routes_lock);
}

static bool remove_route(struct front *front, struct sequence_route *route)
{
    pthread_mutex_lock(&front->routes_lock);
    bool was_there = map_remove(&front->routes, (uint64_t)route->id) != NULL;
    pthread_mutex_unlock(&front->routes_lock);
    route->id = 0;
    return was_there;
}

/* process: of its grammar; NULL: it has none, or waits for it. */
static enum status submit_sequence(struct front *front, struct generation *generation,
                                   int32_t sequence, struct grammar_process *process)
{
    struct sequence_route *route = &generation->routes[sequence];
    AUTO_FREE(grammar) struct grammar *grammar = process ? grammar_process_start(process) : NULL;
    struct submission submission;
    struct sampling_params params;

    generation_submission(generation, sequence, front->tokenizer, &submission, &params);
    submission.grammar = grammar;
    submission.awaits_grammar = generation->grammar && !process;
    TRY(engine_submit(front->engine, &submission, &route->id));
    grammar = NULL; /* the request's */
    route->generation = generation;
    route->awaits_grammar = submission.awaits_grammar;
    route->submitted_ns = clock_now_ns();
    route->num_prompt_tokens = submission.num_prompt;
    add_route(front, route);
    return OK;
}

/* Sequences whose grammar is being compiled. They may be over when it comes. */
struct awaited_grammar {
    struct engine *engine;
    int32_t num_ids;
    request_id ids[];
};

/* On the compiler's thread. */
static void bring_grammar(void *user, struct grammar_process *process, enum status status,
                          const char *text)
{
    struct awaited_grammar *awaited = user;

    for (int32_t i = 0; i < awaited->num_ids; i++)
        engine_set_grammar(awaited->engine, awaited->ids[i],
                           process ? grammar_process_start(process) : NULL, status, text);
    mem_free(awaited);
}

static enum status ask_for_grammar(struct front *front, const struct generation *generation)
{
    size_t n = (size_t)generation->num_sequences;
    struct awaited_grammar *awaited = mem_alloc(sizeof *awaited + n * sizeof *awaited->ids);
    enum status status;

    awaited->engine = front->engine;
    awaited->num_ids = generation->num_sequences;
    for (size_t i = 0; i < n; i++)
        awaited->ids[i] = generation->routes[i].id;
    status = grammar_compiler_compile(front->grammars, generation->grammar, bring_grammar, awaited);
    if (status != OK)
        mem_free(awaited);
    return status;
}

static enum status submit_all(struct front *front, struct generation *generation,
                              struct grammar_process *process)
{
    for (int32_t i = 0; i < generation->num_sequences; i++)
        TRY(submit_sequence(front, generation, i, process));
    return generation->grammar && !process ? ask_for_grammar(front, generation) : OK;
}

/* Whose answers those are: of which weights, and how often these were exchanged. */
static void tell_weights(const struct front *front, struct generation *generation)
{
    struct engine_stats stats;

    engine_stats(front->engine, &stats);
    snprintf(generation->system_fingerprint, sizeof generation->system_fingerprint,
             "fp_%.8s-%" PRId64, stats.fingerprint, stats.weights_version);
}

enum status front_submit(struct front *front, struct generation *generation,
                         generation_listener *listener, void *user)
{
    struct grammar_process *process = NULL;
    enum status status;

    TRY(engine_check_admission(front->engine, generation->num_sequences));
    generation->listener = listener;
    generation->user = user;
    tell_weights(front, generation);
    if (generation->grammar)
        process = grammar_compiler_find(front->grammars, generation->grammar);
    status = submit_all(front, generation, process);
    grammar_process_drop(process);
    if (status != OK)
        front_abort(front, generation);
    return status;
}

void front_abort(struct front *front, struct generation *generation)
{
    for (int32_t i = 0; i < generation->num_sequences; i++) {
        struct sequence_route *route = &generation->routes[i];
        request_id id = route->id;

        if (id && remove_route(front, route))
            engine_abort(front->engine, id);
    }
}

static bool is_called(const struct sequence_route *route, const char *name, request_id id)
{
    const struct generation *generation = route->generation;

    return route->id == id || strcmp(generation->id, name) == 0 ||
           (generation->client_id && strcmp(generation->client_id, name) == 0);
}

int32_t front_abort_named(struct front *front, const char *name)
{
    char *end;
    long long number = strtoll(name, &end, 10);
    request_id id = *name && !*end ? number : -1;
    int32_t n = 0;

    MAP_FOR_EACH (&front->routes, entry)
        if (is_called(entry->value, name, id)) {
            engine_abort(front->engine, (request_id)entry->key);
            n++;
        }
    return n;
}

/* ---- what is in flight ------------------------------------------------------------------------------ */

static void describe(const struct sequence_route *route, struct front_request *out)
{
    const struct generation *generation = route->generation;
    int32_t num_output = atomic_load_explicit(&route->num_output_tokens, memory_order_relaxed);

    *out = (struct front_request){
        .id = route->id,
        .state = num_output > 0          ? "output"
                 : route->awaits_grammar ? "grammar"
                                         : "prompt",
        .num_prompt_tokens = route->num_prompt_tokens,
        .num_output_tokens = num_output,
        .submitted_ns = route->submitted_ns,
    };
    snprintf(out->name, sizeof out->name, "%s", generation->id);
    snprintf(out->client_id, sizeof out->client_id, "%s",
             generation->client_id ? generation->client_id : "");
}

static int compare_routes(const void *a, const void *b)
{
    request_id a_id = (*(const struct sequence_route *const *)a)->id;
    request_id b_id = (*(const struct sequence_route *const *)b)->id;

    return (a_id > b_id) - (a_id < b_id);
}

int32_t front_requests(struct front *front, struct front_request *out, int32_t capacity)
{
    pthread_mutex_lock(&front->routes_lock);

    size_t n = front->routes.num_entries, i = 0;
    AUTO_MEM const struct sequence_route **routes =
        mem_new_array(const struct sequence_route *, MAX(n, (size_t)1));

    MAP_FOR_EACH (&front->routes, entry)
        routes[i++] = entry->value;
    qsort(routes, n, sizeof *routes, compare_routes);
    for (i = 0; i < MIN(n, (size_t)capacity); i++)
        describe(routes[i], &out[i]);
    pthread_mutex_unlock(&front->routes_lock);
    return (int32_t)n;
}

/* ---- out ------------------------------------------------------------------------------------------ */

int front_fd(const struct front *front)
{
    return engine_fd(front->engine);
}

static void deliver(struct front *front, const struct engine_event *event)
{
    struct sequence_route *route = map_get(&front->routes, (uint64_t)event->id);
    struct generation *generation;
    struct output_processor *output;
    int32_t sequence;

    if (!route) /* its reader is gone, or a stop string has ended it */
        return;
    generation = route->generation;
    sequence = (int32_t)(route - generation->routes);
    output = &generation->outputs[sequence];
    atomic_store_explicit(&route->num_output_tokens, event->num_output_tokens,
                          memory_order_relaxed);
    if (output_processor_push(output, event))
        engine_abort(front->engine, event->id);
    if (output->finish != FINISH_NONE) {
        remove_route(front, route);
        generation->num_finished++;
    }
    generation->listener(generation->user, generation, sequence);
}

void front_poll(struct front *front)
{
    struct engine_output *output;
    int64_t begin_ns = trace_begin();
    bool is_news = false;

    while ((output = engine_poll(front->engine))) {
        is_news = true;
        for (int32_t i = 0; i < output->num_events; i++)
            deliver(front, &output->events[i]);
        engine_output_free(output);
    }
    if (is_news)
        trace_end("detokenize", begin_ns, -1);
}
