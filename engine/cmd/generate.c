#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/cmd/generate_options.h"
#include "engine/cmd/line_reader.h"
#include "engine/front/structured_outputs.h"
#include "engine/front/front.h"
#include "engine/text/utf8.h"
#include "proto/base/list.h"
#include "proto/base/log.h"
#include "proto/base/notify.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_PROMPT_TOKENS = 256 };

struct totals { /* of the sequences that were answered */
    int64_t num_answers;
    int64_t prompt_tokens; /* computed, not found in the prefix cache */
    int64_t decode_tokens; /* all but the first of each sequence */
    int64_t scheduled_ns;  /* the earliest */
    int64_t prefilled_ns;  /* the latest first token */
    int64_t first_token_ns, last_token_ns;
    int64_t first_wait_ns; /* of the earliest first token, since it was submitted */
};

struct run { /* one `tandem generate` */
    const struct generate_options *options;
    struct front *front;
    struct openai_model model; /* front's, but takes any "model" of a request */

    struct line_reader requests; /* at_end from the start: the prompt of the command line is the only one */

    int64_t num_read;        /* requests, refused ones included: the next one's index */
    struct request *waiting; /* read, and refused by a full queue so far */
    struct list_node live;   /* submitted and not finished */
    int64_t num_failed;
    bool streams; /* text goes out as it comes: there is one sequence */
    struct totals totals;
};

struct request {
    struct list_node link; /* in run->live, once submitted */
    struct run *run;
    int64_t index;
    struct generation *generation;
};

/* ---- what is printed --------------------------------------------------------------------------- */

/* Takes `json`: one line of stdout, out at once, for a program may wait for it. */
static void print_line(json_t *json)
{
    json_dumpf(json, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)); /* 9 digits: a float's bits */
    putchar('\n');
    fflush(stdout);
    json_decref(json);
}

static void print_refusal(struct run *run, int64_t index, enum status status, const char *sentence)
{
    AUTO_CLOSE(bytes) struct bytes words = {0};

    run->num_failed++;
    utf8_repair(sentence, strlen(sentence), &words); /* it may quote broken input */
    if (run->options->json)
        print_line(json_pack("{s:I, s:{s:s, s:s}}", "index", (json_int_t)index, "error", "code",
                             status_name(status), "message", bytes_text(&words)));
    else if (run->options->requests)
        fprintf(stderr, "tandem generate: request %lld: %s\n", (long long)index,
                bytes_text(&words));
    else
        fprintf(stderr, "tandem generate: %s\n", bytes_text(&words));
}

static json_t *ids_json(const token_id *ids, int32_t count)
{
    json_t *list = json_array();

    for (int32_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

static json_t *logprob_json(float logprob)
{
    return json_real(isfinite(logprob) ? (double)logprob : -9999.0);
}

static json_t *token_json(token_id token, const struct token_logprobs *of_token)
{
    json_t *top = json_array();

    for (int32_t k = 0; k < of_token->num_top; k++)
        json_array_append_new(top, json_pack("[i, o]", of_token->top[k].token,
                                             logprob_json(of_token->top[k].logprob)));
    return json_pack("{s:i, s:o, s:o}", "token_id", token, "logprob",
                     logprob_json(of_token->logprob), "top", top);
}

static json_t *logprobs_json(const struct output_processor *output)
{
    json_t *list = output->logprobs ? json_array() : json_null();

    for (int32_t i = 0; output->logprobs && i < output->num_tokens; i++)
        json_array_append_new(list, token_json(output->tokens[i], &output->logprobs[i]));
    return list;
}

/* Nothing foretells the first token. */
static json_t *prompt_logprobs_json(const struct token_list *prompt,
                                    const struct token_logprobs *logprobs)
{
    json_t *list = logprobs ? json_pack("[n]") : json_null();

    for (int32_t i = 1; logprobs && i < prompt->count; i++) {
        json_t *entry = token_json(prompt->ids[i], &logprobs[i - 1]);

        json_object_set_new(entry, "rank", json_integer(logprobs[i - 1].rank));
        json_array_append_new(list, entry);
    }
    return list;
}

static json_t *answer_json(const struct request *request, int32_t sequence)
{
    const struct generation *generation = request->generation;
    const struct output_processor *output = &generation->outputs[sequence];
    const struct token_list *prompt = &generation->prompts[sequence / generation->params.n].tokens;
    const struct output_processor *scored = generation_scored_output(generation, sequence);
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_t *line = json_pack("{s:I}", "index", (json_int_t)request->index);

    generation_text(&request->run->model, generation, sequence, &text);
    if (generation->num_sequences > 1)
        json_object_set_new(line, "sample", json_integer(sequence));
    json_object_set_new(line, "prompt_token_ids", ids_json(prompt->ids, prompt->count));
    json_object_set_new(line, "token_ids", ids_json(output->tokens, output->num_tokens));
    json_object_set_new(line, "text", json_stringn(bytes_text(&text), text.size));
    json_object_set_new(line, "finish_reason", json_string(finish_reason_name(output->finish)));
    json_object_set_new(line, "logprobs", logprobs_json(output));
    if (generation->params.prompt_logprobs >= 0)
        json_object_set_new(line, "prompt_logprobs",
                            prompt_logprobs_json(prompt, scored->prompt_logprobs));
    return line;
}

static void print_answer(const struct request *request, int32_t sequence)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    if (request->run->options->json) {
        print_line(answer_json(request, sequence));
        return;
    }
    generation_text(&request->run->model, request->generation, sequence, &text);
    printf("[%lld] ", (long long)request->index);
    fwrite(text.data, 1, text.size, stdout);
    putchar('\n');
    fflush(stdout);
}

/* What is new in the one sequence there is. */
static void stream_text(struct output_processor *output)
{
    fwrite(bytes_text(&output->text) + output->text_sent, 1, output->text.size - output->text_sent,
           stdout);
    output->text_sent = output->text.size;
    if (output->finish != FINISH_NONE)
        putchar('\n');
    fflush(stdout);
}

/* ---- phases, on stderr ---------------------------------------------------------------------------- */

/* On a terminal one line that is written over, else (with --verbose) a line a phase. */
static void show_phase(void *user, const char *words, double fraction)
{
    const struct generate_options *options = user;

    (void)fraction; /* the words say it */
    notify("STATUS=%s", words);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%s", words);
    else if (options->verbose)
        fprintf(stderr, "%s\n", words);
    fflush(stderr);
}

static void clear_phase(void)
{
    if (isatty(STDERR_FILENO))
        fputs("\r\033[K", stderr);
}

static double rate(int64_t tokens, int64_t ns)
{
    return ns > 0 ? (double)tokens * 1e9 / (double)ns : 0;
}

static void print_totals(const struct run *run)
{
    const struct totals *totals = &run->totals;
    struct engine_stats stats;

    if (totals->num_answers == 0)
        return;
    engine_stats(front_engine(run->front), &stats);
    fprintf(stderr, "ranks:       %d, %lld answer%s\n", stats.num_ranks,
            (long long)totals->num_answers, totals->num_answers == 1 ? "" : "s");
    fprintf(stderr, "speed:       prefill %.1f tokens/s (%lld tokens), decode %.1f tokens/s "
            "(%lld tokens)\n",
            rate(totals->prompt_tokens, totals->prefilled_ns - totals->scheduled_ns),
            (long long)totals->prompt_tokens,
            rate(totals->decode_tokens, totals->last_token_ns - totals->first_token_ns),
            (long long)totals->decode_tokens);
    if (stats.prefix_cache_hits > 0)
        fprintf(stderr, "prefixes:    %lld of %lld prompt tokens were in the cache\n",
                (long long)stats.prefix_cache_hits, (long long)stats.prefix_cache_queries);
    fprintf(stderr, "first token: after %.0f ms\n", (double)totals->first_wait_ns / 1e6);
}

static void count_answer(struct totals *totals, const struct output_processor *output)
{
    bool first = totals->num_answers++ == 0;

    if (output->num_tokens == 0)
        return;
    totals->prompt_tokens += output->num_prompt_tokens - output->num_cached_tokens;
    totals->decode_tokens += output->num_tokens - 1;
    if (first || output->first_token_ns < totals->first_token_ns) {
        totals->first_token_ns = output->first_token_ns;
        totals->first_wait_ns = output->first_token_ns - output->queued_ns;
    }
    if (first || output->scheduled_ns < totals->scheduled_ns)
        totals->scheduled_ns = output->scheduled_ns;
    totals->prefilled_ns = MAX(totals->prefilled_ns, output->first_token_ns);
    totals->last_token_ns = MAX(totals->last_token_ns, output->latest_token_ns);
}

/* ---- a request ends --------------------------------------------------------------------------------- */

static void request_free(struct request *request)
{
    if (!request)
        return;
    generation_free(request->generation);
    mem_free(request);
}

static void on_sequence(void *user, struct generation *generation, int32_t sequence)
{
    struct request *request = user;
    struct run *run = request->run;
    struct output_processor *output = &generation->outputs[sequence];

    if (run->streams && output->finish != FINISH_ERROR)
        stream_text(output);
    if (output->finish == FINISH_NONE)
        return;
    if (output->finish == FINISH_ERROR) {
        print_refusal(run, request->index, output->error, output->error_text);
    } else {
        count_answer(&run->totals, output);
        if (!run->streams)
            print_answer(request, sequence);
    }
    if (generation->num_finished == generation->num_sequences) {
        list_remove(&request->link);
        request_free(request);
    }
}

/* ---- a request begins ------------------------------------------------------------------------------- */

/* The prompt of the command line. A first try gives the same answer twice, unless the model asks for another
 * temperature. */
static json_t *prompt_body(const struct run *run)
{
    json_t *body = json_pack("{s:s}", "prompt", run->options->prompt);

    json_object_update_missing(body, run->options->params);
    if (!run->model.generation_config->has_temperature)
        json_object_update_missing_new(body, json_pack("{s:i}", "temperature", 0));
    return body;
}

/* --chat: a prompt is what a user says. */
static void make_chat(json_t *body)
{
    json_t *prompt = json_object_get(body, "prompt");

    if (!json_is_string(prompt) || json_object_get(body, "messages"))
        return;
    json_object_set_new(body, "messages",
                        json_pack("[{s:s, s:O}]", "role", "user", "content", prompt));
    json_object_del(body, "prompt");
}

/* Takes `body`. */
static enum status read_body(struct run *run, json_t *body, struct generation **out)
{
    const char *param;
    enum status status;

    /* Its own form stands in for that of the flags. */
    if (structured_outputs_are_asked_for(body) && !json_object_get(body, "structured_outputs"))
        json_object_set_new(body, "structured_outputs", json_null());
    json_object_update_missing(body, run->options->params);
    if (run->options->chat)
        make_chat(body);
    status = openai_read(&run->model, OPENAI_EITHER, body, out, &param);
    json_decref(body);
    return status;
}

static enum status read_line(struct run *run, const char *line, size_t size,
                             struct generation **out)
{
    json_t *body;

    TRY(openai_decode(line, size, run->requests.number, &body));
    return read_body(run, body, out);
}

/* The next request that can be read; those that cannot are answered on the way. NULL: no more now. */
static struct request *next_request(struct run *run)
{
    bool has_file = run->options->requests;
    const char *line = NULL;
    size_t size = 0;

    while (has_file ? (line = line_reader_next(&run->requests, &size)) != NULL : run->num_read == 0) {
        struct request *request = mem_new(struct request);
        enum status status;

        request->run = run;
        request->index = run->num_read++;
        status = has_file ? read_line(run, line, size, &request->generation)
                          : read_body(run, prompt_body(run), &request->generation);
        if (status == OK)
            return request;
        print_refusal(run, request->index, status, fail_text());
        request_free(request);
    }
    return NULL;
}

/* Submits what the engine has room for. */
static void feed(struct run *run)
{
    while (run->waiting || (run->waiting = next_request(run))) {
        struct request *request = run->waiting;
        enum status status = front_submit(run->front, request->generation, on_sequence, request);

        if (status == ERR_FULL && !list_is_empty(&run->live))
            return; /* there is room when another one ends */
        run->waiting = NULL;
        if (status == OK) {
            list_push_back(&run->live, &request->link);
            run->streams = !run->options->requests && !run->options->json &&
                           request->generation->num_sequences == 1;
        } else {
            print_refusal(run, request->index, status, fail_text());
            request_free(request);
        }
        front_poll(run->front); /* a long file is answered while it is read */
    }
}

/* ---- the whole --------------------------------------------------------------------------------------- */

static int interrupt_pipe[2] = {-1, -1};
static volatile sig_atomic_t interrupted_by;

static void on_interrupt(int signal)
{
    int saved = errno;

    interrupted_by = signal;
    (void)!write(interrupt_pipe[1], "", 1);
    errno = saved;
}

/* From here on SIGINT and SIGTERM end the run in order; a second one ends it at once. */
static enum status catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};

    if (pipe2(interrupt_pipe, O_CLOEXEC | O_NONBLOCK) != 0)
        return fail(ERR_IO, "no pipe: %m");
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return OK;
}

/* Parks until the engine has news, or whoever writes requests; true: somebody asked for it to stop. */
static bool wait_for_news(const struct run *run)
{
    bool wants_requests = !run->requests.at_end && !run->waiting;
    struct pollfd fds[] = {
        {.fd = front_fd(run->front), .events = POLLIN},
        {.fd = interrupt_pipe[0], .events = POLLIN},
        {.fd = wants_requests ? run->requests.fd : -1, .events = POLLIN},
    };

    while (poll(fds, COUNT_OF(fds), -1) < 0)
        ASSERT(errno == EINTR, "poll: %m");
    return fds[1].revents != 0;
}

/* What could not be read has no index to be refused by. */
static void check_read(struct run *run)
{
    if (!run->requests.error)
        return;
    fprintf(stderr, "tandem generate: --requests %s cannot be read%s: %s\n", run->options->requests,
            run->num_read > 0 ? " to its end" : "", strerror(run->requests.error));
    run->num_failed++;
}

static int answer_all(struct run *run)
{
    for (;;) {
        feed(run);
        if (list_is_empty(&run->live) && run->requests.at_end) {
            check_read(run);
            return run->num_failed > 0 ? EXIT_OTHER : EXIT_CLEAN;
        }
        if (wait_for_news(run))
            return EXIT_SIGNAL + interrupted_by;
        front_poll(run->front);
    }
}

static enum status open_requests(const char *path, struct line_reader *reader)
{
    if (path)
        reader->fd = strcmp(path, "-") == 0 ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
    if (reader->fd < 0)
        return fail(ERR_NOT_FOUND, "--requests %s: %m", path);
    reader->at_end = !path;
    return OK;
}

static enum status open_run(struct run *run, const struct config *config)
{
    const struct generate_options *options = run->options;
    enum status status;

    TRY(open_requests(options->requests, &run->requests));
    status = front_open(config, show_phase, (void *)options, &run->front);
    clear_phase();
    TRY(status);
    run->model = *front_model(run->front);
    run->model.name = NULL;
    if (options->prompt)
        run->model.default_tokens = DEFAULT_PROMPT_TOKENS; /* a first try wants more than OpenAI's */
    notify("READY=1");
    return catch_interrupts();
}

static int close_run(struct run *run, int exit_status)
{
    struct request *request;

    notify("STOPPING=1");
    LIST_FOR_EACH(request, &run->live, link) {
        front_abort(run->front, request->generation);
        request_free(request);
    }
    request_free(run->waiting);
    front_free(run->front);
    if (run->requests.fd > STDIN_FILENO)
        close(run->requests.fd);
    line_reader_close(&run->requests);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "tandem generate: writing the answers failed: %m\n");
        return exit_status == EXIT_CLEAN ? EXIT_IO : exit_status;
    }
    return exit_status;
}

static int complain(enum status status)
{
    fprintf(stderr, "tandem generate: %s\n", fail_text());
    return exit_code_of(status);
}

/* What goes well is not told unless asked for: stderr has the phases and the totals. */
static enum status set_log_level(const struct config *config,
                                 const struct generate_options *options)
{
    enum log_level level;

    TRY(log_parse_level(config->log_level, &level));
    log_set_level(level == LOG_INFO && !options->verbose ? LOG_WARN : level);
    return OK;
}

static int run_generate(const struct config *config, const struct generate_options *options)
{
    struct run run = {.options = options};
    enum status status = set_log_level(config, options);
    int exit_status;

    list_init(&run.live);
    if (status == OK)
        status = open_run(&run, config);
    if (status != OK)
        return close_run(&run, complain(status));
    exit_status = answer_all(&run);
    print_totals(&run);
    return close_run(&run, exit_status);
}

static int print_help(void)
{
    AUTO_CLOSE(bytes) struct bytes help = {0};

    generate_options_help(&help);
    fwrite(help.data, 1, help.size, stdout);
    return 0;
}

int cmd_generate(int argc, char **argv)
{
    AUTO_CLOSE(generate_options) struct generate_options options = {0};
    AUTO_CLOSE(config) struct config config = {0};
    enum status status = generate_options_parse(argc, argv, &config, &options);

    if (status != OK)
        return complain(status);
    return options.help ? print_help() : run_generate(&config, &options);
}
