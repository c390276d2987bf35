/* A request's head with its query, and a chunked body behind it, in one push and byte by byte: both must
 * agree. */
#include "engine/server/http_parse.h"
#include "engine/server/query.h"

#include <string.h>

enum { MAX_BODY_BYTES = 4096 };

static enum status decode(const uint8_t *data, size_t size, size_t step, struct bytes *body)
{
    struct http_chunks chunks = {0};

    for (size_t done = 0; done < size && chunks.state != CHUNK_DONE;) {
        size_t used;
        TRY(http_chunks_push(&chunks, data + done, MIN(step, size - done), MAX_BODY_BYTES, body,
                             &used));
        done += used;
    }
    return OK;
}

static void read_query(const char *query)
{
    struct query_parameter parameters[] = {{"mode", "abort"}, {"clear_cache", "true"}, {"", ""}};
    bool flag;

    if (query_read(query, parameters, COUNT_OF(parameters)) != OK)
        return;
    for (size_t i = 0; i < COUNT_OF(parameters); i++) {
        ASSERT(strlen(parameters[i].value) <= MAX_QUERY_VALUE);
        if (query_flag(&parameters[i], &flag) == OK)
            ASSERT(strlen(parameters[i].value) <= strlen("false"));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memmem(data, size, "\r\n\r\n", 4) : NULL;
    size_t head_size = end ? (size_t)(end + 4 - data) : size;
    AUTO_CLOSE(bytes) struct bytes whole = {0};
    AUTO_CLOSE(bytes) struct bytes bytewise = {0};
    struct http_head head;

    for (size_t cut = 1; cut < MIN(head_size, 64); cut++)
        (void)!http_head_check_start((const char *)data, cut);
    if (http_head_parse((const char *)data, head_size, &head) != OK)
        return 0;
    ASSERT(head.path[0] == '/' && head.content_length >= 0);
    ASSERT(!head.chunked || head.content_length == 0);
    read_query(head.query);
    http_head_close(&head);

    data += head_size;
    size -= head_size;
    enum status status = decode(data, size, size, &whole);
    ASSERT(status == decode(data, size, 1, &bytewise));
    ASSERT(status != OK || (whole.size == bytewise.size &&
                            (!whole.size || !memcmp(whole.data, bytewise.data, whole.size))));
    ASSERT(whole.size <= MAX_BODY_BYTES);
    return 0;
}
