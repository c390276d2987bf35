#include "engine/server/http_parse.h"

#include <string.h>
#include <strings.h>

/* Bytes of chunk extensions and trailers that we read over before we call it an attack. */
enum { MAX_CHUNK_EXTRA_BYTES = 4096 };

/* RFC 9110's tchar: what methods and header names are made of. */
static bool is_token_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static bool is_token(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++)
        if (!is_token_char(*text))
            return false;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

enum status http_head_check_start(const char *text, size_t size)
{
    enum { TLS_HANDSHAKE = 0x16 };

    if (text[0] == TLS_HANDSHAKE)
        return fail(ERR_INVALID, "this port speaks http, not https");
    if (!is_token_char(text[0]))
        return fail(ERR_INVALID, "the request does not start with a method");
    if (memmem(text, size, "\n\n", 2))
        return fail(ERR_INVALID, "the lines of a request's head end in CRLF, not in LF alone");
    return OK;
}

/* "METHOD SP target SP HTTP/1.x", cut in place. */
static enum status parse_request_line(char *line, struct http_head *head)
{
    char *target = strchr(line, ' ');
    char *version = target ? strchr(target + 1, ' ') : NULL;

    if (!version || strchr(version + 1, ' '))
        return fail(ERR_INVALID, "the request line is not \"METHOD /path HTTP/1.1\"");
    *target++ = '\0';
    *version++ = '\0';

    if (!is_token(line))
        return fail(ERR_INVALID, "the request's method is not a word");
    if (strncmp(version, "HTTP/1.", 7) != 0 || !is_digit(version[7]) || version[8])
        return fail(ERR_INVALID, "the request line does not end in HTTP/1.0 or HTTP/1.1");
    if (target[0] != '/')
        return fail(ERR_INVALID, "the request's path does not start with '/'");

    head->method = line;
    head->path = target;
    head->minor_version = version[7] - '0';

    char *query = strchr(target, '?');
    head->query = "";
    if (query) {
        *query = '\0';
        head->query = query + 1;
    }
    return OK;
}

static char *trim(char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    size_t size = strlen(text);
    while (size && (text[size - 1] == ' ' || text[size - 1] == '\t'))
        text[--size] = '\0';
    return text;
}

static enum status parse_header_line(char *line, struct http_head *head)
{
    char *colon = strchr(line, ':');

    if (!colon)
        return fail(ERR_INVALID, "header line %d has no colon", head->num_headers + 1);
    *colon = '\0';
    if (!is_token(line))
        return fail(ERR_INVALID, "the name of header line %d is not a word", head->num_headers + 1);
    if (head->num_headers == HTTP_MAX_HEADERS)
        return fail(ERR_FULL, "the request has more than %d header lines", HTTP_MAX_HEADERS);

    head->headers[head->num_headers++] = (struct http_header){line, trim(colon + 1)};
    return OK;
}

static enum status parse_content_length(const char *value, int64_t *out)
{
    int64_t length = 0;

    if (!*value)
        return fail(ERR_INVALID, "Content-Length is empty");
    for (const char *c = value; *c; c++)
        if (!is_digit(*c) || mul_overflows(length, 10, &length) ||
            add_overflows(length, *c - '0', &length))
            return fail(ERR_INVALID, "Content-Length is not a number of bytes: \"%.40s\"", value);
    *out = length;
    return OK;
}

bool http_next_word(const char **list, const char *separators, const char **word_out, size_t *size_out)
{
    *word_out = *list + strspn(*list, separators);
    *size_out = strcspn(*word_out, separators);
    *list = *word_out + *size_out;
    return *size_out > 0;
}

/* Is `word` one of the comma-separated words of `list`? */
static bool lists_word(const char *list, const char *word)
{
    size_t size = strlen(word), here_size;
    const char *here;

    while (http_next_word(&list, ", \t", &here, &here_size))
        if (here_size == size && strncasecmp(here, word, size) == 0)
            return true;
    return false;
}

/* What the headers say about the body and the connection. */
static enum status parse_framing(struct http_head *head)
{
    bool has_length = false;

    head->keep_alive = head->minor_version >= 1;
    for (int i = 0; i < head->num_headers; i++) {
        const char *name = head->headers[i].name;
        const char *value = head->headers[i].value;

        if (strcasecmp(name, "Content-Length") == 0) {
            if (has_length)
                return fail(ERR_INVALID, "Content-Length appears twice");
            TRY(parse_content_length(value, &head->content_length));
            has_length = true;
        } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
            if (head->chunked)
                return fail(ERR_INVALID, "Transfer-Encoding appears twice");
            if (strcasecmp(value, "chunked") != 0)
                return fail(ERR_UNSUPPORTED, "Transfer-Encoding \"%.40s\": only chunked is known",
                            value);
            head->chunked = true;
        } else if (strcasecmp(name, "Connection") == 0) {
            if (lists_word(value, "close"))
                head->keep_alive = false;
            else if (lists_word(value, "keep-alive"))
                head->keep_alive = true;
        } else if (strcasecmp(name, "Expect") == 0) {
            if (strcasecmp(value, "100-continue") != 0)
                return fail(ERR_UNSUPPORTED, "Expect \"%.40s\": only 100-continue is known", value);
            head->expects_continue = true;
        }
    }
    if (has_length && head->chunked)
        return fail(ERR_INVALID, "Content-Length and Transfer-Encoding in one request");
    return OK;
}

/* Cuts the next CRLF-ended line off `*rest`. */
static enum status take_line(char **rest, char **line_out)
{
    char *line = *rest;
    char *end = line + strcspn(line, "\r\n");

    if (end[0] != '\r' || end[1] != '\n')
        return fail(ERR_INVALID, "a line of the request's head does not end in CRLF");
    *end = '\0';
    *rest = end + 2;
    *line_out = line;
    return OK;
}

static enum status parse_lines(char *text, struct http_head *head)
{
    char *line;

    TRY(take_line(&text, &line));
    TRY(parse_request_line(line, head));
    for (;;) {
        TRY(take_line(&text, &line));
        if (!*line)
            break;
        TRY(parse_header_line(line, head));
    }
    if (*text)
        return fail(ERR_INVALID, "bytes behind the end of the request's head");
    return parse_framing(head);
}

enum status http_head_parse(const char *text, size_t size, struct http_head *out)
{
    AUTO_CLOSE(http_head) struct http_head head = {0};

    /* Control bytes have no business in a head; NUL among them would cut our strings short. */
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)text[i];
        if ((byte < 0x20 && byte != '\r' && byte != '\n' && byte != '\t') || byte == 0x7f)
            return fail(ERR_INVALID, "byte 0x%02x in the request's head", byte);
    }

    head.text = mem_strndup(text, size);
    TRY(parse_lines(head.text, &head));
    *out = head;
    head.text = NULL;
    return OK;
}

void http_head_close(struct http_head *head)
{
    mem_free(head->text);
    *head = (struct http_head){0};
}

const char *http_head_find(const struct http_head *head, const char *name)
{
    for (int i = 0; i < head->num_headers; i++)
        if (strcasecmp(head->headers[i].name, name) == 0)
            return head->headers[i].value;
    return NULL;
}

/* ---- chunked bodies -------------------------------------------------------------------------- */

static int hex_digit(uint8_t byte)
{
    if (byte >= '0' && byte <= '9')
        return byte - '0';
    if (byte >= 'a' && byte <= 'f')
        return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F')
        return byte - 'A' + 10;
    return -1;
}

static enum status not_chunked(const char *wanted)
{
    return fail(ERR_INVALID, "the chunked body is broken: %s expected", wanted);
}

/* A byte of a chunk's size, or the first behind it. 15 digits: no overflow, and no zeros without
 * end. */
static enum status push_size_byte(struct http_chunks *chunks, uint8_t byte)
{
    int digit = hex_digit(byte);

    if (digit >= 0) {
        if (++chunks->num_digits > 15)
            return not_chunked("a size of at most 15 digits");
        chunks->left = chunks->left * 16 + (uint64_t)digit;
        return OK;
    }
    if (!chunks->num_digits)
        return not_chunked("a size in hex digits");
    if (byte == '\r')
        chunks->state = CHUNK_SIZE_LF;
    else if (byte == ';' || byte == ' ' || byte == '\t')
        chunks->state = CHUNK_EXTENSION;
    else
        return not_chunked("CRLF behind a size");
    return OK;
}

/* What we read over is bounded too. */
static enum status skip_byte(struct http_chunks *chunks, uint8_t byte, enum http_chunk_state at_cr)
{
    if (byte == '\n')
        return not_chunked("CRLF");
    if (++chunks->extra_bytes > MAX_CHUNK_EXTRA_BYTES)
        return fail(ERR_INVALID, "more than %d bytes of chunk extensions and trailers",
                    MAX_CHUNK_EXTRA_BYTES);
    if (byte == '\r')
        chunks->state = at_cr;
    return OK;
}

static enum status expect_byte(struct http_chunks *chunks, uint8_t byte, uint8_t wanted,
                               enum http_chunk_state next)
{
    if (byte != wanted)
        return not_chunked("CRLF");
    chunks->state = next;
    return OK;
}

/* Every byte that is framing, not data. */
static enum status push_framing_byte(struct http_chunks *chunks, uint8_t byte)
{
    switch (chunks->state) {
    case CHUNK_SIZE:
        return push_size_byte(chunks, byte);
    case CHUNK_EXTENSION:
        return skip_byte(chunks, byte, CHUNK_SIZE_LF);
    case CHUNK_SIZE_LF:
        chunks->num_digits = 0;
        return expect_byte(chunks, byte, '\n', chunks->left ? CHUNK_DATA : CHUNK_TRAILER);
    case CHUNK_DATA_CR:
        return expect_byte(chunks, byte, '\r', CHUNK_DATA_LF);
    case CHUNK_DATA_LF:
        return expect_byte(chunks, byte, '\n', CHUNK_SIZE);
    case CHUNK_TRAILER:
        chunks->state = CHUNK_TRAILER_LINE;
        return skip_byte(chunks, byte, CHUNK_END_LF);
    case CHUNK_TRAILER_LINE:
        return skip_byte(chunks, byte, CHUNK_TRAILER_LF);
    case CHUNK_TRAILER_LF:
        return expect_byte(chunks, byte, '\n', CHUNK_TRAILER);
    case CHUNK_END_LF:
        return expect_byte(chunks, byte, '\n', CHUNK_DONE);
    case CHUNK_DATA:
    case CHUNK_DONE:
        break;
    }
    ASSERT(false, "state %d has no framing byte", (int)chunks->state);
}

enum status http_chunks_push(struct http_chunks *chunks, const uint8_t *data, size_t size,
                             size_t max_bytes, struct bytes *body, size_t *used_out)
{
    size_t used = 0;

    while (used < size && chunks->state != CHUNK_DONE) {
        if (chunks->state != CHUNK_DATA) {
            TRY(push_framing_byte(chunks, data[used++]));
            if (chunks->state == CHUNK_DATA && chunks->left > max_bytes - body->size)
                return fail(ERR_FULL, "the body is larger than %zu bytes", max_bytes);
            continue;
        }
        size_t here = MIN(size - used, (size_t)chunks->left);
        bytes_append(body, data + used, here);
        used += here;
        chunks->left -= here;
        if (!chunks->left)
            chunks->state = CHUNK_DATA_CR;
    }
    *used_out = used;
    return OK;
}
