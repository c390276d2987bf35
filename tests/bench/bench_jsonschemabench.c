/*
 * bench_jsonschemabench: JSON schemas compiled, and instances followed through them, by the product's
 * own path: a process for each, and a mask for each token.
 *
 * mask_us is of the first output that goes through a grammar's states, mask_again_us of the second,
 * which finds what the library has kept.
 *
 * A line of the data is {"id", "schema", "tests": [{"data", "valid"}]}. An instance is accepted if every
 * token of its text is allowed where it stands, and a stop token behind the last.
 */
#include "engine/bench/samples.h"
#include "engine/cmd/cmd.h"
#include "engine/grammar/compiler.h"
#include "engine/text/json_text.h"
#include "proto/base/clock.h"
#include "proto/config/option.h"
#include "proto/model/model_file.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct settings {
    char *data, *model, *folder, *backend;
    bool json, lenient, verbose;
    double timeout;
    int64_t memory;
};

#define ROW(member, ...) OPTION(struct settings, member, __VA_ARGS__)
static const struct option options[] = {
    ROW(data, OPTION_TEXT, NULL, "lines of {\"id\", \"schema\", \"tests\": [{\"data\", \"valid\"}]}",
        .value = "FILE", .group = "Bench"),
    ROW(model, OPTION_TEXT, ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf",
        "whose vocabulary is used", .value = "FILE"),
    ROW(folder, OPTION_TEXT, ".cache/grammar", "of the libraries", .value = "FOLDER"),
    ROW(backend, OPTION_WORD, "llguidance", "the library", .words = "llguidance xgrammar"),
    ROW(lenient, OPTION_BOOL, "false", "ignore keywords that can't be enforced"),
    ROW(timeout, OPTION_F64, "1.5", "seconds that a schema may take to compile", .least = 0.01,
        .most = 3600),
    ROW(memory, OPTION_BYTES, "512MiB", "that a schema may take", .least = 1 << 20,
        .most = (int64_t)1 << 40),
    ROW(json, OPTION_BOOL, "false", "the figures as one JSON object"),
    ROW(verbose, OPTION_BOOL, "false", "tell what is refused, and what goes wrong"),
};
#undef ROW

struct bench {
    const struct settings *settings;
    struct tokenizer *tokenizer;
    struct grammar_compiler *compiler;
    int bell_fd;
    int64_t num_schemas, num_compiled, num_refused, num_killed;
    int64_t num_masks, num_forced; /* forced: masks that allow one token alone */
    int64_t num_valid, num_valid_accepted, num_invalid, num_invalid_rejected;
    struct samples compile, mask, again, round_trip; /* ns */
};

/* ---- a grammar --------------------------------------------------------------------------------- */

/* NULL: refused, and why is in fail_text(). */
static struct grammar_process *compile(struct bench *bench, const char *schema)
{
    struct grammar_process *process = NULL;
    struct grammar_spec spec = {
        .kind = GRAMMAR_JSON_SCHEMA,
        .text = schema,
        .size = strlen(schema),
        .backend = bench->settings->backend,
        .lenient = bench->settings->lenient,
    };
    enum status status = spec.size > MAX_GRAMMAR_BYTES
                             ? fail(ERR_INVALID, "%zu bytes of schema", spec.size)
                             : grammar_compiler_wait(bench->compiler, &spec, &process);

    if (status != OK)
        return NULL;
    samples_add(&bench->compile, grammar_process_compile_ns(process));
    return process;
}

static bool allows_one_token(const uint32_t *words, int32_t num_words)
{
    int32_t num_bits = 0;

    for (int32_t i = 0; i < num_words && num_bits < 2; i++)
        num_bits += __builtin_popcount(words[i]);
    return num_bits == 1;
}

static enum status next_mask(struct bench *bench, struct grammar *grammar, uint32_t *words,
                             int32_t num_words, struct samples *masks)
{
    int64_t begin_ns = clock_now_ns();
    struct pollfd fd = {.fd = bench->bell_fd, .events = POLLIN};
    int64_t fill_begin_ns, fill_end_ns;
    eventfd_t ignored;

    grammar_begin_mask(grammar);
    while (!grammar_is_ready(grammar)) {
        poll(&fd, 1, -1);
        eventfd_read(bench->bell_fd, &ignored);
    }
    samples_add(&bench->round_trip, clock_now_ns() - begin_ns);
    TRY(grammar_fill_bitmask(grammar, words, num_words));
    bench->num_masks++;
    bench->num_forced += allows_one_token(words, num_words);
    grammar_fill_times(grammar, &fill_begin_ns, &fill_end_ns);
    samples_add(masks, fill_end_ns - fill_begin_ns);
    return OK;
}

/* Is the instance accepted? A failure of the grammar is no acceptance, and is told. */
static bool follow(struct bench *bench, struct grammar *grammar, const struct token_list *tokens,
                   struct samples *masks)
{
    int32_t num_words = grammar_num_words(tokenizer_vocab_size(bench->tokenizer)), num_stops;
    token_id stop = tokenizer_stop_ids(bench->tokenizer, &num_stops)[0];
    AUTO_MEM uint32_t *words = mem_new_array(uint32_t, (size_t)num_words);

    for (int32_t i = 0; i <= tokens->count; i++) {
        enum status status = next_mask(bench, grammar, words, num_words, masks);

        if (status != OK) {
            fprintf(stderr, "a mask failed: %s\n", fail_text());
            return false;
        }
        if (!grammar_accept(grammar, i < tokens->count ? tokens->ids[i] : stop))
            return false;
    }
    return true;
}

static void try_instance(struct bench *bench, struct grammar_process *process, const char *id,
                         const json_t *test)
{
    bool is_valid = json_is_true(json_object_get(test, "valid"));
    AUTO_CLOSE(bytes) struct bytes text = {0};
    AUTO_CLOSE(token_list) struct token_list tokens = {0};
    AUTO_FREE(grammar) struct grammar *grammar = grammar_process_start(process);
    AUTO_FREE(grammar) struct grammar *again = grammar_process_start(process);
    bool is_accepted;

    json_text(json_object_get(test, "data"), JSON_SPACED, &text);
    if (tokenizer_encode(bench->tokenizer, bytes_text(&text), text.size, false, false, &tokens) != OK)
        return;
    is_accepted = follow(bench, grammar, &tokens, &bench->mask);
    if (follow(bench, again, &tokens, &bench->again) != is_accepted)
        fprintf(stderr, "%s: is not followed twice alike\n", id);
    bench->num_valid += is_valid;
    bench->num_invalid += !is_valid;
    bench->num_valid_accepted += is_valid && is_accepted;
    bench->num_invalid_rejected += !is_valid && !is_accepted;
    if (bench->settings->verbose && is_valid != is_accepted)
        fprintf(stderr, "%s: %s and %s: %.200s\n", id, is_valid ? "valid" : "invalid",
                is_accepted ? "accepted" : "refused", bytes_text(&text));
}

static void try_line(struct bench *bench, const json_t *line)
{
    const char *id = json_string_value(json_object_get(line, "id"));
    AUTO_CLOSE(bytes) struct bytes schema = {0};
    struct grammar_process *process;
    json_t *test;
    size_t i;

    json_text(json_object_get(line, "schema"), JSON_TIGHT, &schema);
    bench->num_schemas++;
    process = compile(bench, bytes_text(&schema));
    bench->num_compiled += process != NULL;
    bench->num_refused += !process;
    if (!process && bench->settings->verbose)
        fprintf(stderr, "%s: refused: %s\n", id, fail_text());
    if (!process)
        return;
    json_array_foreach(json_object_get(line, "tests"), i, test)
        try_instance(bench, process, id, test);
    grammar_process_drop(process);
}

/* ---- the whole ------------------------------------------------------------------------------------ */

static enum status read_lines(struct bench *bench, const char *path)
{
    FILE *file = fopen(path, "r");
    char *line = NULL;
    size_t capacity = 0;
    int64_t number = 0;

    if (!file)
        return fail(ERR_NOT_FOUND, "%s: %m", path);
    while (getline(&line, &capacity, file) > 0) {
        json_error_t error;
        json_t *json = json_loads(line, JSON_ALLOW_NUL, &error);

        number++;
        if (json_is_object(json))
            try_line(bench, json);
        else
            fprintf(stderr, "line %ld: %s\n", (long)number, error.text);
        json_decref(json);
    }
    free(line);
    fclose(file);
    return OK;
}

static void print_spread(const char *name, struct samples *samples, double per_unit,
                         const char *end)
{
    static const struct {
        const char *name;
        double share;
    } rows[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}, {"max", 1}};

    printf("\"%s\": {", name);
    for (size_t i = 0; i < COUNT_OF(rows) && samples->count > 0; i++)
        printf("%s\"%s\": %.4g", i ? ", " : "", rows[i].name,
               (double)samples_quantile(samples, rows[i].share) / per_unit);
    printf("}%s", end);
}

static void print_result(struct bench *bench)
{
    const char *separator = bench->settings->json ? ", " : ",\n ";
    struct grammar_compiler_stats stats;

    grammar_compiler_get_stats(bench->compiler, &stats);
    printf("{\"schemas\": %" PRId64 ", \"compiled\": %" PRId64 ", \"refused\": %" PRId64
           ", \"killed\": %" PRId64 "%s",
           bench->num_schemas, bench->num_compiled, bench->num_refused, stats.num_killed, separator);
    printf("\"valid_accepted\": %" PRId64 ", \"valid\": %" PRId64 ", \"invalid_rejected\": %" PRId64
           ", \"invalid\": %" PRId64 "%s",
           bench->num_valid_accepted, bench->num_valid, bench->num_invalid_rejected,
           bench->num_invalid, separator);
    printf("\"masks\": %" PRId64 ", \"masks_of_one_token\": %" PRId64 "%s", bench->num_masks,
           bench->num_forced, separator);
    print_spread("compile_ms", &bench->compile, 1e6, separator);
    print_spread("mask_us", &bench->mask, 1e3, separator);
    print_spread("mask_again_us", &bench->again, 1e3, separator);
    print_spread("round_trip_us", &bench->round_trip, 1e3, "}\n");
}

static enum status run(const struct settings *settings)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;
    struct bench bench = {.settings = settings};
    enum status status;

    if (!settings->data)
        return fail(ERR_INVALID, "--data FILE is missing");
    TRY(model_file_open(settings->model, &file));
    TRY(tokenizer_new(model_file_vocabulary(file), &bench.tokenizer));
    bench.bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    status = grammar_compiler_new(
        &(struct grammar_compiler_options){
            .backends = backends,
            .folder = settings->folder,
            .tokenizer = bench.tokenizer,
            .num_places = 4,
            .bell_fd = bench.bell_fd,
            .memory_bytes = settings->memory,
            .cache_bytes = 16 << 20,
            .max_compiling = 1,
            .compile_timeout_ms = (int32_t)(settings->timeout * 1000),
            .mask_timeout_ms = 1000,
        },
        &bench.compiler);
    if (status == OK)
        status = read_lines(&bench, settings->data);
    if (status == OK)
        print_result(&bench);
    grammar_compiler_free(bench.compiler);
    tokenizer_free(bench.tokenizer);
    samples_close(&bench.compile);
    samples_close(&bench.mask);
    samples_close(&bench.again);
    samples_close(&bench.round_trip);
    close(bench.bell_fd);
    return status;
}

int main(int argc, char **argv)
{
    struct settings settings = {0};
    struct option_set set = {options, COUNT_OF(options), &settings};
    enum status status;

    if (argc > 1 && strcmp(argv[1], "grammar-host") == 0) /* it is its own host */
        return cmd_grammar_host(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        AUTO_CLOSE(bytes) struct bytes text = {0};

        options_help(&set, 1, &text);
        printf("usage: jsonschemabench --data FILE [--json]\n\n%s", bytes_text(&text));
        return 0;
    }
    options_init(&set);
    status = options_parse(&set, 1, argc, argv, NULL, NULL);
    if (status == OK)
        status = run(&settings);
    if (status != OK)
        fprintf(stderr, "jsonschemabench: %s\n", fail_text());
    options_close(&set);
    return status == OK ? 0 : status == ERR_INVALID ? 2 : 1;
}
