#include "engine/launch/hosts.h"

#include "proto/base/file_read.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

void host_list_close(struct host_list *list)
{
    for (int32_t i = 0; i < list->count; i++)
        mem_free(list->hosts[i].name);
    mem_free(list->hosts);
    *list = (struct host_list){0};
}

/* ---- one host -------------------------------------------------------------------------------- */

/* A name goes onto the command line of ssh, where one that begins with - would be an option. */
static enum status check_name(const char *name, size_t size)
{
    static const char fine[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@";

    if (size == 0)
        return fail(ERR_INVALID, "a host's name is missing");
    if (size > MAX_HOST_NAME)
        return fail(ERR_INVALID, "a host's name has %zu letters, %d are the most", size,
                    MAX_HOST_NAME);
    for (size_t i = 0; i < size; i++)
        if (name[i] == '\0' || !strchr(fine, name[i]) || (i == 0 && name[i] == '-'))
            return fail(ERR_INVALID, "'%.*s' is no name of a host: byte %zu is 0x%02x",
                        (int)MIN(size, 64u), name, i, (unsigned char)name[i]);
    return OK;
}

static enum status read_slots(const char *what, const char *text, size_t size, int32_t *out)
{
    int32_t value = 0;

    for (size_t i = 0; i < size && value <= MAX_SLOTS; i++) {
        if (text[i] < '0' || text[i] > '9')
            return fail(ERR_INVALID, "%s must be a number, not '%.*s'", what, (int)MIN(size, 32u),
                        text);
        value = value * 10 + (text[i] - '0');
    }
    if (size == 0 || value < 1 || value > MAX_SLOTS)
        return fail(ERR_INVALID, "%s must be 1 to %d, not '%.*s'", what, MAX_SLOTS,
                    (int)MIN(size, 32u), text);
    *out = value;
    return OK;
}

/* "node:4": the slots may be left out. */
static enum status read_name(const char *word, size_t size, struct host *out)
{
    const char *colon = memchr(word, ':', size);
    size_t name_size = colon ? (size_t)(colon - word) : size;

    TRY(check_name(word, name_size));
    *out = (struct host){.slots = 1, .max_slots = INT32_MAX};
    if (colon)
        TRY(read_slots("the slots behind the colon", colon + 1, size - name_size - 1, &out->slots));
    out->name = mem_strndup(word, name_size);
    return OK;
}

/* Takes host->name. */
static enum status add(struct host_list *list, struct host *host)
{
    AUTO_MEM char *name = give(host->name);

    if (list->count == MAX_HOSTS)
        return fail(ERR_INVALID, "more than %d hosts", MAX_HOSTS);
    for (int32_t i = 0; i < list->count; i++)
        if (strcmp(list->hosts[i].name, name) == 0)
            return list->hosts[i].line > 0
                       ? fail(ERR_INVALID, "host %s is named twice, in line %d too", name,
                              list->hosts[i].line)
                       : fail(ERR_INVALID, "host %s is named twice; say %s:%d for more slots", name,
                              name, list->hosts[i].slots + host->slots);
    list->hosts = mem_resize(list->hosts, sizeof *list->hosts * (size_t)(list->count + 1));
    list->hosts[list->count] = *host;
    list->hosts[list->count++].name = give(name);
    return OK;
}

/* ---- the command line ------------------------------------------------------------------------ */

enum status host_list_add_words(struct host_list *list, const char *words)
{
    for (;;) {
        size_t size = strcspn(words, ",");
        struct host host;

        TRY(fail_in("--host", read_name(words, size, &host)));
        TRY(fail_in("--host", add(list, &host)));
        if (words[size] == '\0')
            return OK;
        words += size + 1;
    }
}

/* ---- the file -------------------------------------------------------------------------------- */

static bool is_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

/* The next word of the line; its size is 0 at the end. */
static const char *next_word(const char **at, const char *end, size_t *size_out)
{
    const char *word = *at;

    while (word < end && is_blank(*word))
        word++;
    *at = word;
    while (*at < end && !is_blank(**at))
        (*at)++;
    *size_out = (size_t)(*at - word);
    return word;
}

static enum status read_attribute(const char *word, size_t size, struct host *host)
{
    const struct {
        const char *key;
        int32_t *value;
    } attributes[] = {
        {"slots=", &host->slots},
        {"max_slots=", &host->max_slots},
        {"max-slots=", &host->max_slots},
    };

    for (size_t i = 0; i < COUNT_OF(attributes); i++) {
        const char *key = attributes[i].key;
        size_t key_size = strlen(key);

        if (size >= key_size && memcmp(word, key, key_size) == 0)
            return read_slots(key, word + key_size, size - key_size, attributes[i].value);
    }
    return fail(ERR_INVALID, "'%.*s' is neither slots=N nor max_slots=N", (int)MIN(size, 64u),
                word);
}

static enum status read_attributes(const char *at, const char *end, struct host *host)
{
    const char *word;
    size_t size;

    while (word = next_word(&at, end, &size), size > 0)
        TRY(read_attribute(word, size, host));
    if (host->max_slots < host->slots)
        return fail(ERR_INVALID, "max_slots=%d is less than the %d slots", host->max_slots,
                    host->slots);
    return OK;
}

static enum status read_line(struct host_list *list, const char *line, const char *end,
                             int32_t number)
{
    const char *comment = memchr(line, '#', (size_t)(end - line)), *at = line, *word;
    struct host host;
    size_t size;

    if (comment)
        end = comment;
    word = next_word(&at, end, &size);
    if (size == 0)
        return OK;
    TRY(read_name(word, size, &host));

    enum status status = read_attributes(at, end, &host);
    if (status != OK) {
        mem_free(host.name);
        return status;
    }
    host.line = number;
    return add(list, &host);
}

enum status host_list_add_text(struct host_list *list, const char *name, const char *text,
                               size_t size)
{
    const char *end = text + size;

    for (int32_t number = 1; text < end; number++) {
        const char *newline = memchr(text, '\n', (size_t)(end - text));
        const char *line_end = newline ? newline : end;
        enum status status = read_line(list, text, line_end, number);

        if (status != OK)
            return fail(status, "%s, line %d: %s", name, number, fail_text());
        text = newline ? newline + 1 : end;
    }
    return OK;
}

enum status host_list_add_file(struct host_list *list, const char *path)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    int32_t before = list->count;

    if (file_read(path, MAX_HOST_FILE_BYTES, &text) != OK)
        return fail(ERR_INVALID, "--hostfile %s", fail_text());
    TRY(host_list_add_text(list, path, bytes_text(&text), text.size));
    return list->count > before ? OK : fail(ERR_INVALID, "--hostfile %s names no host", path);
}

/* ---- this machine ---------------------------------------------------------------------------- */

bool host_is_local(const char *name)
{
    static const char *const names[] = {"localhost", "127.0.0.1"};
    char ours[MAX_HOST_NAME + 1] = "";

    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return gethostname(ours, sizeof ours - 1) == 0 && strcmp(name, ours) == 0;
}
