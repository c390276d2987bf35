#include "engine/server/query.h"

#include <string.h>
#include <strings.h>

static struct query_parameter *find(struct query_parameter *parameters, size_t n, const char *name,
                                    size_t size)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(parameters[i].name) == size && memcmp(parameters[i].name, name, size) == 0)
            return &parameters[i];
    return NULL;
}

/* "name=value", or "name", whose value is empty. */
static enum status read_pair(const char *pair, size_t size, struct query_parameter *parameters,
                             size_t n)
{
    const char *equals = memchr(pair, '=', size);
    size_t name_size = equals ? (size_t)(equals - pair) : size;
    size_t value_size = equals ? size - name_size - 1 : 0;
    struct query_parameter *parameter = find(parameters, n, pair, name_size);

    if (!parameter)
        return fail(ERR_INVALID, "Unknown query parameter `%.*s`.", (int)MIN(name_size, 64), pair);
    if (value_size > MAX_QUERY_VALUE)
        return fail(ERR_INVALID, "%s has %zu bytes, %d are allowed.", parameter->name, value_size,
                    MAX_QUERY_VALUE);
    memcpy(parameter->value, pair + size - value_size, value_size);
    parameter->value[value_size] = '\0';
    return OK;
}

enum status query_read(const char *query, struct query_parameter *parameters, size_t n)
{
    while (*query) {
        size_t size = strcspn(query, "&");

        TRY(read_pair(query, size, parameters, n));
        query += size + (query[size] == '&');
    }
    return OK;
}

enum status query_flag(const struct query_parameter *parameter, bool *out)
{
    static const char *const words[] = {"false", "true", "0", "1"};

    for (size_t i = 0; i < COUNT_OF(words); i++)
        if (strcasecmp(parameter->value, words[i]) == 0) {
            *out = i % 2;
            return OK;
        }
    return fail(ERR_INVALID, "%s must be true or false, not '%s'.", parameter->name,
                parameter->value);
}
