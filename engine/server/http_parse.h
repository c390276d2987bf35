/*
 * http_parse: what an HTTP/1.x client sent, from bytes that anyone can send.
 *
 * Strict wherever leniency has let one request hide inside another: lines end in CRLF, a name has
 * no space before its colon, lines are not folded, Content-Length appears once at most and never
 * beside Transfer-Encoding. It reads memory only; sockets are http.c's business.
 *
 * Thread: any.
 */
#ifndef ENGINE_SERVER_HTTP_PARSE_H
#define ENGINE_SERVER_HTTP_PARSE_H

#include "proto/base/memory.h"

enum { HTTP_MAX_HEADERS = 64 };

struct http_header {
    const char *name;
    const char *value; /* without the blanks around it */
};

struct http_head {
    char *text; /* owned: everything below points into it */
    const char *method;
    const char *path;  /* starts with '/', as sent: nothing is decoded */
    const char *query; /* behind the '?', "" when there is none */
    int minor_version; /* HTTP/1.0 or HTTP/1.1 */
    struct http_header headers[HTTP_MAX_HEADERS];
    int num_headers;

    int64_t content_length; /* bytes of the body, 0 when the head names none */
    bool chunked;           /* the body comes in chunks; content_length is 0 */
    bool keep_alive;        /* the connection may carry another request */
    bool expects_continue;  /* the client waits for "100 Continue" before it sends the body */
};

/*
 * Can these bytes, at least one, still become a head? ERR_INVALID: not as HTTP/1.x, so that a client
 * that speaks TLS, or ends its lines in LF alone, need not wait until its time is up.
 */
MUST_USE enum status http_head_check_start(const char *text, size_t size);

/*
 * Takes a whole head, up to and with the empty line that ends it. ERR_INVALID: it is not HTTP/1.x
 * (answer 400); ERR_FULL: more headers than HTTP_MAX_HEADERS (431); ERR_UNSUPPORTED: a transfer
 * coding or an expectation that is not ours (501). On failure there is nothing to close.
 */
MUST_USE enum status http_head_parse(const char *text, size_t size, struct http_head *out);
void http_head_close(struct http_head *head); /* a zeroed head is fine */

/* The value of the first header of this name, in any case, or NULL. */
const char *http_head_find(const struct http_head *head, const char *name);
/* The next word of a list that any of `separators` divide, and *list moves behind it. false: there is none. */
bool http_next_word(const char **list, const char *separators, const char **word_out, size_t *size_out);

/* ---- chunked bodies -------------------------------------------------------------------------- */

enum http_chunk_state {
    CHUNK_SIZE,      /* hex digits */
    CHUNK_EXTENSION, /* ";…" behind the size: read over */
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_TRAILER,      /* at the start of a line behind the last chunk */
    CHUNK_TRAILER_LINE, /* inside such a line: read over */
    CHUNK_TRAILER_LF,
    CHUNK_END_LF,
    CHUNK_DONE,
};

struct http_chunks { /* zeroed: at the start of a body */
    enum http_chunk_state state;
    uint64_t left;      /* CHUNK_DATA: bytes of this chunk still to come */
    int num_digits;     /* CHUNK_SIZE: digits seen */
    size_t extra_bytes; /* extensions and trailers read over so far */
};

/*
 * Decodes the next `size` bytes of a chunked body and appends what they carry to `body`.
 * `used_out`: how many of them belong to this body (fewer than `size` only when it is done).
 * ERR_INVALID: not the chunked coding. ERR_FULL: the body would pass `max_bytes`.
 */
MUST_USE enum status http_chunks_push(struct http_chunks *chunks, const uint8_t *data, size_t size,
                                      size_t max_bytes, struct bytes *body, size_t *used_out);

#endif
