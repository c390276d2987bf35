#include "engine/cmd/cmd.h"
#include "engine/cmd/exit_code.h"
#include "engine/cmd/inner.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char usage[] =
    "usage: tandem tokenize --model FILE [--decode] < LINES\n"
    "\n"
    "Reads one JSON object a line and answers each with one line.\n"
    "\n"
    "{\"text\": \"...\", \"parse_special\": true, \"add_special\": true}  ->  {\"ids\": [...]}\n"
    "  parse_special  control tokens in the text are recognised (default true)\n"
    "  add_special    BOS and EOS are added where the model asks for them (default true)\n"
    "With --decode: {\"ids\": [...], \"show_special\": true}  ->  {\"text\": \"...\"}\n"
    "  show_special   control tokens are part of the text (default true)\n"
    "\n"
    "A line that cannot be used is answered {\"error\": {\"code\", \"message\"}}, the others\n"
    "go on, and the exit status is 1. Other fields and blank lines are passed over.\n";

struct tokenize_settings {
    char *model;
    bool decode;
};

#define ROW(member, ...) OPTION(struct tokenize_settings, member, __VA_ARGS__)
static const struct option rows[] = {
    ROW(model, OPTION_TEXT, NULL, "the model whose vocabulary is used, a file or a folder", .value = "FILE"),
    ROW(decode, OPTION_BOOL, "false", "token ids to text instead"),
};
#undef ROW

static enum status check(const void *target)
{
    const struct tokenize_settings *settings = target;

    return settings->model ? OK : fail(ERR_INVALID, "--model FILE is missing");
}

/* ---- one line ----------------------------------------------------------------------------- */

static enum status read_bool(const json_t *row, const char *name, bool standard, bool *out)
{
    const json_t *value = json_object_get(row, name);

    if (value && !json_is_boolean(value) && !json_is_null(value))
        return fail(ERR_INVALID, "\"%s\" must be true or false", name);
    *out = json_is_boolean(value) ? json_is_true(value) : standard;
    return OK;
}

static enum status encode_row(const struct tokenizer *tokenizer, const json_t *row,
                              struct bytes *answer)
{
    AUTO_CLOSE(token_list) struct token_list list = {0};
    const json_t *text = json_object_get(row, "text");
    bool parse_special = true, add_special = true;

    if (!json_is_string(text))
        return fail(ERR_INVALID, "\"text\" must be a string");
    TRY(read_bool(row, "parse_special", true, &parse_special));
    TRY(read_bool(row, "add_special", true, &add_special));
    TRY(tokenizer_encode(tokenizer, json_string_value(text), json_string_length(text),
                         parse_special, add_special, &list));
    bytes_printf(answer, "{\"ids\":[");
    for (int32_t i = 0; i < list.count; i++)
        bytes_printf(answer, "%s%d", i ? "," : "", list.ids[i]);
    bytes_printf(answer, "]}");
    return OK;
}

static enum status read_ids(const struct tokenizer *tokenizer, const json_t *ids,
                            struct token_list *out)
{
    const int32_t num_tokens = tokenizer_vocab_size(tokenizer);

    if (!json_is_array(ids))
        return fail(ERR_INVALID, "\"ids\" must be an array of integers");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *item = json_array_get(ids, i);
        json_int_t id = json_integer_value(item);

        if (!json_is_integer(item))
            return fail(ERR_INVALID, "\"ids\"[%zu] must be an integer", i);
        if (id < 0 || id >= num_tokens)
            return fail(ERR_INVALID, "\"ids\"[%zu] is %lld; the vocabulary has 0 to %d", i,
                        (long long)id, num_tokens - 1);
        token_list_add(out, (token_id)id);
    }
    return OK;
}

/* Takes `value`. */
static void append_json(struct bytes *out, json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT);

    ASSERT(text);
    bytes_append(out, text, strlen(text));
    free(text);
    json_decref(value);
}

static enum status decode_row(const struct tokenizer *tokenizer, const json_t *row,
                              struct bytes *answer)
{
    AUTO_CLOSE(token_list) struct token_list list = {0};
    AUTO_CLOSE(bytes) struct bytes text = {0};
    bool show_special = true;

    TRY(read_ids(tokenizer, json_object_get(row, "ids"), &list));
    TRY(read_bool(row, "show_special", true, &show_special));
    tokenizer_decode(tokenizer, list.ids, list.count, show_special, &text);
    append_json(answer, json_pack("{s:o}", "text", json_stringn(bytes_text(&text), text.size)));
    return OK;
}

static enum status answer_object(const struct tokenizer *tokenizer, bool decode, const json_t *row,
                                 struct bytes *answer)
{
    if (!json_is_object(row))
        return fail(ERR_INVALID, "an object is expected");
    return decode ? decode_row(tokenizer, row, answer) : encode_row(tokenizer, row, answer);
}

static enum status answer_line(const struct tokenizer *tokenizer, bool decode, const char *line,
                               size_t size, long number, struct bytes *answer)
{
    struct utf8_fault fault;
    json_error_t error;
    json_t *row;

    if (!utf8_is_valid(line, size, &fault))
        return fail(ERR_INVALID, "line %ld, column %d: byte 0x%02x is no UTF-8", number,
                    fault.column, fault.byte);
    row = json_loadb(line, size, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (!row)
        return fail(ERR_INVALID, "line %ld, column %d: %s", number, error.column, error.text);

    enum status status = answer_object(tokenizer, decode, row, answer);

    json_decref(row);
    return status == OK ? OK : fail(status, "line %ld: %s", number, fail_text());
}

static void append_error(struct bytes *answer, enum status status)
{
    AUTO_CLOSE(bytes) struct bytes message = {0};

    utf8_repair(fail_text(), strlen(fail_text()), &message); /* it may quote broken input */
    append_json(answer, json_pack("{s:{s:s,s:s}}", "error", "code", status_name(status), "message",
                                  bytes_text(&message)));
}

/* ---- all lines ---------------------------------------------------------------------------- */

static bool is_blank(const char *line, size_t size)
{
    return strspn(line, " \t\r\n") == size;
}

/* Returns how many lines were refused. */
static long answer_lines(const struct tokenizer *tokenizer, bool decode, FILE *in, FILE *out)
{
    AUTO_CLOSE(bytes) struct bytes answer = {0};
    AUTO_MEM char *line = NULL;
    size_t capacity = 0;
    long num_refused = 0;
    ssize_t size;

    for (long number = 1; (size = getline(&line, &capacity, in)) >= 0; number++) {
        if (is_blank(line, (size_t)size))
            continue;
        answer.size = 0;

        enum status status = answer_line(tokenizer, decode, line, (size_t)size, number, &answer);

        if (status != OK) {
            append_error(&answer, status);
            num_refused++;
        }
        bytes_append(&answer, "\n", 1);
        fwrite(answer.data, 1, answer.size, out);
    }
    return num_refused;
}

static enum status open_tokenizer(const char *path, struct tokenizer **out)
{
    AUTO_FREE(model_file) struct model_file *file = NULL;

    TRY(model_file_open(path, &file));

    enum status status = tokenizer_new(model_file_vocabulary(file), out);

    return fail_in(path, status);
}

/* The exit status. */
static int tokenize(const struct tokenize_settings *settings)
{
    AUTO_FREE(tokenizer) struct tokenizer *tokenizer = NULL;
    enum status status = open_tokenizer(settings->model, &tokenizer);

    if (status != OK) {
        fprintf(stderr, "tandem tokenize: %s\n", fail_text());
        return exit_code_of(status);
    }
    /* An answer leaves as soon as its line is whole: a program may talk to us line by line. */
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);

    long num_refused = answer_lines(tokenizer, settings->decode, stdin, stdout);

    if (num_refused)
        fprintf(stderr, "tandem tokenize: %ld line%s refused\n", num_refused,
                num_refused == 1 ? "" : "s");
    if (ferror(stdin) || fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "tandem tokenize: reading or writing failed: %m\n");
        return EXIT_IO;
    }
    return num_refused ? EXIT_OTHER : EXIT_CLEAN;
}

int cmd_tokenize(int argc, char **argv)
{
    struct tokenize_settings settings = {0};
    struct option_set set = {rows, COUNT_OF(rows), &settings};
    int exit_status;

    if (!cmd_parse("tokenize", &set, usage, argc, argv, check, &exit_status))
        return exit_status;
    exit_status = tokenize(&settings);
    options_close(&set);
    return exit_status;
}
