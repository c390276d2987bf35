#include "proto/config/option.h"

#include "proto/base/log.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char env_prefix[] = "TANDEM_";

static void *place_of(const struct option_set *set, const struct option *option)
{
    return (char *)set->target + option->offset;
}

static bool is_text(const struct option *option)
{
    return option->kind == OPTION_TEXT || option->kind == OPTION_WORD;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Are `name` (dashes) and `key` (underscores) the same? */
static bool name_fits(const char *name, size_t size, const char *key)
{
    if (strlen(key) != size)
        return false;
    for (size_t i = 0; i < size; i++)
        if (name[i] != key[i] && !(name[i] == '-' && key[i] == '_'))
            return false;
    return true;
}

static char *flag_of(const char *key)
{
    char *flag = mem_printf("--%s", key);

    for (char *c = flag; *c; c++)
        *c = *c == '_' ? '-' : *c;
    return flag;
}

static char *variable_of(const char *key)
{
    char *name = mem_printf("%s%s", env_prefix, key);

    for (char *c = name; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    return name;
}

enum { MAX_WORD = 63 };

/* Letters to insert, drop or change to make `b` of `a`, which have MAX_WORD letters at most. */
static size_t distance(const char *a, const char *b)
{
    size_t row[MAX_WORD + 1], a_size = strlen(a), b_size = strlen(b);

    for (size_t k = 0; k <= b_size; k++)
        row[k] = k;
    for (size_t i = 1; i <= a_size; i++) {
        size_t diagonal = row[0];

        row[0] = i;
        for (size_t k = 1; k <= b_size; k++) {
            size_t change = diagonal + (a[i - 1] != b[k - 1]);
            size_t insert_or_drop = MIN(row[k], row[k - 1]) + 1;

            diagonal = row[k];
            row[k] = MIN(change, insert_or_drop);
        }
    }
    return row[b_size];
}

const char *nearest_word(const char *word, const char *const *words)
{
    size_t best = strlen(word) / 3 + 2; /* further away it is not a slip of the finger */
    const char *nearest = NULL;

    for (; *words && strlen(word) <= MAX_WORD; words++)
        if (strlen(*words) <= MAX_WORD && distance(word, *words) < best) {
            best = distance(word, *words);
            nearest = *words;
        }
    return nearest;
}

static enum status unknown(const char *what, const char *word, char **names, size_t num_names)
{
    const char *nearest;

    names[num_names] = NULL;
    nearest = nearest_word(word, (const char *const *)names);
    enum status status =
        nearest ? fail(ERR_INVALID, "%s %.64s is unknown; did you mean %s?", what, word, nearest)
                : fail(ERR_INVALID, "%s %.64s is unknown", what, word);
    for (size_t i = 0; i < num_names; i++)
        mem_free(names[i]);
    return status;
}

static enum status unknown_name(const struct option_set *sets, size_t num_sets, const char *what,
                                const char *word, char *(*spell)(const char *key))
{
    char *names[512];
    size_t n = 0;

    for (size_t s = 0; s < num_sets; s++)
        for (size_t i = 0; i < sets[s].num_options && n < COUNT_OF(names) - 2; i++) {
            names[n++] = spell(sets[s].options[i].key);
            if (sets[s].options[i].alias && spell == flag_of)
                names[n++] = spell(sets[s].options[i].alias);
        }
    return unknown(what, word, names, n);
}

const struct option *option_find(const struct option_set *set, const char *key)
{
    for (size_t i = 0; i < set->num_options; i++)
        if (name_fits(key, strlen(key), set->options[i].key))
            return &set->options[i];
    return NULL;
}

/* ---- values ---------------------------------------------------------------------------------- */

static enum status not_a(const char *origin, const char *text, const char *what)
{
    return fail(ERR_INVALID, "%s must be %s, not '%.64s'", origin, what, text);
}

static enum status check_range(const struct option *option, const char *origin, double value)
{
    if ((option->least == 0 && option->most == 0) ||
        (value >= option->least && value <= option->most))
        return OK;
    if (option->least == option->most)
        return fail(ERR_INVALID, "%s must be %.15g, not %.15g", origin, option->least, value);
    return fail(ERR_INVALID, "%s must be %.15g to %.15g, not %.15g", origin, option->least,
                option->most, value);
}

static enum status parse_bool(const char *origin, const char *text, bool *out)
{
    static const char *const words[] = {"0", "1", "false", "true", "no", "yes", "off", "on"};

    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (strcasecmp(text, words[i]) == 0) {
            *out = i % 2;
            return OK;
        }
    return not_a(origin, text, "true or false");
}

static enum status parse_integer(const struct option *option, const char *origin, const char *text,
                                 int64_t *out)
{
    char *end;

    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end)
        return not_a(origin, text, "an integer");
    if (errno || (option->kind == OPTION_I32 && value != (int32_t)value))
        return not_a(origin, text, option->kind == OPTION_I32 ? "an integer of 32 bits"
                                                              : "an integer of 64 bits");
    TRY(check_range(option, origin, (double)value));
    *out = value;
    return OK;
}

static enum status parse_number(const struct option *option, const char *origin, const char *text,
                                double *out)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !isfinite(value))
        return not_a(origin, text, "a number");
    TRY(check_range(option, origin, value));
    *out = value;
    return OK;
}

static enum status parse_bytes(const struct option *option, const char *origin, const char *text,
                               int64_t *out)
{
    static const struct {
        const char *suffix;
        double factor;
    } units[] = {
        {"", 1}, {"B", 1}, {"K", 1 << 10}, {"KiB", 1 << 10}, {"M", 1 << 20}, {"MiB", 1 << 20},
        {"G", 1 << 30}, {"GiB", 1 << 30}, {"T", 1LL << 40}, {"TiB", 1LL << 40},
        {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
    };
    char *end;
    double value = strtod(text, &end);

    for (size_t i = 0; i < COUNT_OF(units) && end != text; i++) {
        if (strcmp(end, units[i].suffix) != 0)
            continue;
        value *= units[i].factor;
        if (!(value >= 0 && value < 9e18))
            break;
        TRY(check_range(option, origin, value));
        *out = (int64_t)value;
        return OK;
    }
    return not_a(origin, text, "a size in bytes such as 1.5GiB or 512M");
}

static enum status check_word(const struct option *option, const char *origin, const char *text)
{
    AUTO_MEM char *words = mem_strdup(option->words);
    char *rest = words;

    for (char *word; (word = strsep(&rest, " "));)
        if (strcmp(word, text) == 0)
            return OK;
    return fail(ERR_INVALID, "%s must be one of %s, not '%.64s'", origin, option->words, text);
}

static void replace_text(char **place, const char *text)
{
    char *copy = text ? mem_strdup(text) : NULL;

    mem_free(*place);
    *place = copy;
}

enum status option_set_text(const struct option_set *set, const struct option *option,
                            const char *origin, const char *text)
{
    void *place = place_of(set, option);
    int64_t integer = 0;

    switch (option->kind) {
    case OPTION_BOOL:
        return parse_bool(origin, text, place);
    case OPTION_I32:
        TRY(parse_integer(option, origin, text, &integer));
        *(int32_t *)place = (int32_t)integer;
        return OK;
    case OPTION_I64:
        return parse_integer(option, origin, text, place);
    case OPTION_F64:
        return parse_number(option, origin, text, place);
    case OPTION_BYTES:
        return parse_bytes(option, origin, text, place);
    case OPTION_WORD:
        TRY(check_word(option, origin, text));
        replace_text(place, text);
        return OK;
    case OPTION_TEXT:
        replace_text(place, text);
        return OK;
    }
    return OK;
}

void options_init(const struct option_set *set)
{
    for (size_t i = 0; i < set->num_options; i++) {
        const struct option *option = &set->options[i];

        if (option->default_text)
            ASSERT(option_set_text(set, option, option->key, option->default_text) == OK, "%s",
                   fail_text());
    }
}

void options_close(const struct option_set *set)
{
    for (size_t i = 0; i < set->num_options; i++)
        if (is_text(&set->options[i]))
            replace_text(place_of(set, &set->options[i]), NULL);
}

/* ---- command line ---------------------------------------------------------------------------- */

struct found {
    const struct option_set *set;
    const struct option *option;
    bool is_negated;
};

static bool find_flag(const struct option_set *sets, size_t num_sets, const char *name, size_t size,
                      struct found *out)
{
    bool is_negated = size > 3 && strncmp(name, "no-", 3) == 0;

    for (size_t s = 0; s < num_sets; s++)
        for (size_t i = 0; i < sets[s].num_options; i++) {
            const struct option *option = &sets[s].options[i];

            *out = (struct found){&sets[s], option, false};
            if (name_fits(name, size, option->key) ||
                (option->alias && name_fits(name, size, option->alias)))
                return true;
            out->is_negated = true;
            if (is_negated && option->kind == OPTION_BOOL &&
                name_fits(name + 3, size - 3, option->key))
                return true;
        }
    return false;
}

/* Handles argv[*i], a flag, and moves *i on when it takes the next word as its value. */
static enum status parse_flag(const struct option_set *sets, size_t num_sets, int argc,
                              char *const *argv, int *i)
{
    const char *word = argv[*i], *name = word + (word[1] == '-' ? 2 : 1);
    size_t size = strcspn(name, "=");
    const char *value = name[size] ? name + size + 1 : NULL;
    AUTO_MEM char *origin = mem_strndup(word, (size_t)(name - word) + size);
    struct found found;

    if (!find_flag(sets, num_sets, name, size, &found))
        return unknown_name(sets, num_sets, "option", origin, flag_of);
    if (found.is_negated && value)
        return fail(ERR_INVALID, "%s takes no value", origin);
    if (found.is_negated)
        return option_set_text(found.set, found.option, origin, "false");
    if (!value && found.option->kind == OPTION_BOOL)
        value = "true";
    if (!value && *i + 1 >= argc)
        return fail(ERR_INVALID, "%s needs a value", origin);
    return option_set_text(found.set, found.option, origin, value ? value : argv[++*i]);
}

static enum status parse_words(const struct option_set *sets, size_t num_sets, int argc,
                               char *const *argv, const char **words_out, int *num_words_out)
{
    int num_words = 0;
    bool all_are_words = false;

    for (int i = 1; i < argc; i++) {
        if (!all_are_words && strcmp(argv[i], "--") == 0) {
            all_are_words = true;
        } else if (!all_are_words && argv[i][0] == '-' && argv[i][1]) {
            TRY(parse_flag(sets, num_sets, argc, argv, &i));
        } else if (words_out) {
            words_out[num_words++] = argv[i];
        } else {
            return fail(ERR_INVALID, "'%.64s' is not an option; options begin with --", argv[i]);
        }
    }
    if (num_words_out)
        *num_words_out = num_words;
    return OK;
}

/* ---- environment ----------------------------------------------------------------------------- */

static enum status parse_variable(const struct option_set *sets, size_t num_sets,
                                  const char *variable, const char *value)
{
    for (size_t s = 0; s < num_sets; s++)
        for (size_t i = 0; i < sets[s].num_options; i++) {
            const struct option *option = &sets[s].options[i];
            AUTO_MEM char *name = variable_of(option->key);

            if (strcmp(name, variable) != 0)
                continue;
            if (!*value && option->kind != OPTION_TEXT)
                return OK;
            return option_set_text(&sets[s], option, variable, value);
        }
    /* It may be another program's of ours, so it is not refused. */
    if (unknown_name(sets, num_sets, "environment variable", variable, variable_of) != OK)
        log_debug("%s", fail_text());
    return OK;
}

static enum status parse_environment(const struct option_set *sets, size_t num_sets)
{
    for (char **entry = environ; *entry; entry++) {
        size_t size = strcspn(*entry, "=");

        if (strncmp(*entry, env_prefix, strlen(env_prefix)) != 0 || !(*entry)[size])
            continue;
        AUTO_MEM char *variable = mem_strndup(*entry, size);
        TRY(parse_variable(sets, num_sets, variable, *entry + size + 1));
    }
    return OK;
}

enum status options_parse(const struct option_set *sets, size_t num_sets, int argc,
                          char *const *argv, const char **words_out, int *num_words_out)
{
    TRY(parse_environment(sets, num_sets));
    return parse_words(sets, num_sets, argc, argv, words_out, num_words_out);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static enum status option_set_json(const struct option_set *set, const struct option *option,
                                   const json_t *value)
{
    if (json_is_null(value) && is_text(option)) {
        replace_text(place_of(set, option), NULL);
        return OK;
    }
    if (json_is_string(value))
        return option_set_text(set, option, option->key, json_string_value(value));
    if (is_text(option) || json_is_object(value) || json_is_array(value) || json_is_null(value) ||
        json_is_boolean(value) != (option->kind == OPTION_BOOL))
        return fail(ERR_INVALID, "%s has a value of the wrong kind", option->key);
    AUTO_MEM char *text = json_dumps(value, JSON_ENCODE_ANY);
    return option_set_text(set, option, option->key, text);
}

enum status options_from_json(const struct option_set *set, const json_t *json)
{
    const char *key;
    json_t *value;
    struct found found;

    if (!json_is_object(json))
        return fail(ERR_INVALID, "settings must be a JSON object");
    json_object_foreach((json_t *)json, key, value) {
        if (!find_flag(set, 1, key, strlen(key), &found) || found.is_negated)
            return unknown_name(set, 1, "the setting", key, mem_strdup);
        TRY(option_set_json(found.set, found.option, value));
    }
    return OK;
}

static json_t *option_to_json(const struct option_set *set, const struct option *option)
{
    const void *place = place_of(set, option);

    switch (option->kind) {
    case OPTION_BOOL:
        return json_boolean(*(const bool *)place);
    case OPTION_I32:
        return json_integer(*(const int32_t *)place);
    case OPTION_I64:
    case OPTION_BYTES:
        return json_integer(*(const int64_t *)place);
    case OPTION_F64:
        return json_real(*(const double *)place);
    default:
        return *(char *const *)place ? json_string(*(char *const *)place) : json_null();
    }
}

json_t *options_to_json(const struct option_set *set)
{
    json_t *json = json_object();

    for (size_t i = 0; i < set->num_options; i++)
        json_object_set_new(json, set->options[i].key, option_to_json(set, &set->options[i]));
    return json;
}

/* ---- help ------------------------------------------------------------------------------------ */

static const char *value_name(const struct option *option)
{
    static const char *const names[] = {[OPTION_BOOL] = "", [OPTION_I32] = "N", [OPTION_I64] = "N",
                                        [OPTION_F64] = "X", [OPTION_BYTES] = "SIZE",
                                        [OPTION_TEXT] = "TEXT", [OPTION_WORD] = "WORD"};

    return option->value ? option->value : names[option->kind];
}

static void print_help(const struct option *option, struct bytes *out)
{
    AUTO_MEM char *flag = flag_of(option->key);
    AUTO_MEM char *left = mem_printf("%s %s", flag, value_name(option));

    if (option->group)
        bytes_printf(out, "\n%s\n", option->group);
    bytes_printf(out, "  %-32s %s", left, option->help);
    if (option->words)
        bytes_printf(out, ": %s", option->words);
    if (option->kind == OPTION_BOOL && option->default_text &&
        strcmp(option->default_text, "true") == 0)
        bytes_printf(out, " (on; --no-%s)", flag + 2);
    else if (option->default_text && *option->default_text)
        bytes_printf(out, " (%s)", option->default_text);
    if (option->is_live)
        bytes_printf(out, " [live]");
    bytes_printf(out, "\n");
}

void options_help(const struct option_set *sets, size_t num_sets, struct bytes *out)
{
    for (size_t s = 0; s < num_sets; s++)
        for (size_t i = 0; i < sets[s].num_options; i++)
            print_help(&sets[s].options[i], out);
}
