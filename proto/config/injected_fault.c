#include "proto/config/injected_fault.h"

#include "proto/base/memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_STATUS = 86 };

static const char *const kind_names[] = {
    [FAULT_ERROR] = "error", [FAULT_EXIT] = "exit", [FAULT_HANG] = "hang"};
static const char *const verb_names[] = {[FAULT_IN_PREPARE_INPUTS] = "prepare_inputs",
                                         [FAULT_IN_EXECUTE_MODEL] = "execute_model",
                                         [FAULT_IN_SAMPLE] = "sample"};

/* The place of `word` among the names; -1: it is none. */
static int find(const char *const *names, size_t num_names, const char *word)
{
    for (size_t i = 0; i < num_names; i++)
        if (names[i] && strcmp(names[i], word) == 0)
            return (int)i;
    return -1;
}

static enum status parse_number(const char *key, const char *text, int64_t most, int64_t *out)
{
    char *end;
    long long value = strtoll(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || value > most)
        return fail(ERR_INVALID, "--inject-fault: %s is '%s'; it must be 0 to %" PRId64, key, text,
                    most);
    *out = value;
    return OK;
}

static enum status parse_part(const char *key, const char *value, struct injected_fault *out)
{
    int64_t number;
    int place;

    if (strcmp(key, "step") == 0)
        return parse_number(key, value, (int64_t)1 << 53, &out->step);
    if (strcmp(key, "rank") == 0) {
        TRY(parse_number(key, value, 65535, &number));
        out->rank = (int32_t)number;
    } else if (strcmp(key, "kind") == 0) {
        place = find(kind_names, COUNT_OF(kind_names), value);
        if (place < 0)
            return fail(ERR_INVALID, "--inject-fault: kind is '%s'; it must be error, exit or hang",
                        value);
        out->kind = (enum fault_kind)place;
    } else if (strcmp(key, "verb") == 0) {
        place = find(verb_names, COUNT_OF(verb_names), value);
        if (place < 0)
            return fail(ERR_INVALID,
                        "--inject-fault: verb is '%s'; it must be prepare_inputs, execute_model or "
                        "sample",
                        value);
        out->verb = (enum fault_verb)place;
    } else {
        return fail(ERR_INVALID, "--inject-fault: '%s' is unknown; use step, rank, verb and kind",
                    key);
    }
    return OK;
}

enum status injected_fault_parse(const char *text, struct injected_fault *out)
{
    *out = (struct injected_fault){.verb = FAULT_IN_EXECUTE_MODEL, .step = -1};
    if (!text)
        return OK;

    AUTO_MEM char *copy = mem_strdup(text);

    for (char *save, *part = strtok_r(copy, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        char *equals = strchr(part, '=');

        if (!equals)
            return fail(ERR_INVALID, "--inject-fault: '%s' is not of the form key=value", part);
        *equals = '\0';
        TRY(parse_part(part, equals + 1, out));
    }
    if (out->step < 0 || out->kind == FAULT_NONE)
        return fail(ERR_INVALID, "--inject-fault needs a step and a kind, as in "
                                 "step=12,rank=1,verb=execute_model,kind=error");
    return OK;
}

enum status injected_fault_strike(const struct injected_fault *fault, int32_t rank, int64_t step,
                                  enum fault_verb verb)
{
    if (fault->kind == FAULT_NONE || fault->rank != rank || fault->step != step ||
        fault->verb != verb)
        return OK;
    if (fault->kind == FAULT_EXIT)
        _exit(EXIT_STATUS);
    while (fault->kind == FAULT_HANG)
        pause();
    return fail(ERR_INTERNAL, "%s of step %" PRId64 " fails by order of --inject-fault",
                verb_names[verb], step);
}
