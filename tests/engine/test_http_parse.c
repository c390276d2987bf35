#include "tests/support/expect.h"

#include "engine/server/http_parse.h"

static enum status parse(const char *text, struct http_head *out)
{
    return http_head_parse(text, strlen(text), out);
}

static void a_head_gives_method_path_query_and_headers(void **state)
{
    (void)state;
    struct http_head head;

    expect_ok(parse("POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nContent-Length:  12 \r\n\r\n",
                    &head));
    assert_string_equal(head.method, "POST");
    assert_string_equal(head.path, "/v1/completions");
    assert_string_equal(head.query, "a=b");
    assert_string_equal(http_head_find(&head, "host"), "x");
    assert_null(http_head_find(&head, "accept"));
    assert_int_equal(head.content_length, 12);
    assert_true(head.keep_alive);
    assert_false(head.chunked);
    http_head_close(&head);
}

static void connections_stay_open_as_version_and_header_say(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool keep_alive;
    } rows[] = {
        {"GET / HTTP/1.1\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nConnection: Upgrade, Close\r\n\r\n", false},
        {"GET / HTTP/1.0\r\n\r\n", false},
        {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http_head head;
        expect_ok(parse(rows[i].text, &head));
        assert_int_equal(head.keep_alive, rows[i].keep_alive);
        http_head_close(&head);
    }
}

static void what_could_hide_a_request_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status status;
        const char *part;
    } rows[] = {
        {"GET /\r\n\r\n", ERR_INVALID, "request line"},
        {"GET / HTTP/2.0\r\n\r\n", ERR_INVALID, "HTTP/1.1"},
        {"GET x HTTP/1.1\r\n\r\n", ERR_INVALID, "start with '/'"},
        {"G(T / HTTP/1.1\r\n\r\n", ERR_INVALID, "method"},
        {"GET / HTTP/1.1\nHost: x\r\n\r\n", ERR_INVALID, "CRLF"},
        {"GET / HTTP/1.1\r\nHost : x\r\n\r\n", ERR_INVALID, "header line 1"},
        {"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", ERR_INVALID, "header line 2"},
        {"GET / HTTP/1.1\r\nno colon\r\n\r\n", ERR_INVALID, "no colon"},
        {"GET / HTTP/1.1\r\nA: \x01\r\n\r\n", ERR_INVALID, "byte 0x01"},
        {"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", ERR_INVALID, "twice"},
        {"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", ERR_INVALID, "\"-1\""},
        {"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", ERR_INVALID, "999"},
        {"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", ERR_INVALID,
         "in one request"},
        {"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", ERR_UNSUPPORTED, "gzip"},
        {"GET / HTTP/1.1\r\nExpect: miracles\r\n\r\n", ERR_UNSUPPORTED, "miracles"},
        {"GET / HTTP/1.1\r\n\r\nmore", ERR_INVALID, "behind the end"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct http_head head;
        expect_fails(parse(rows[i].text, &head), rows[i].status, rows[i].part);
    }
}

static void header_lines_have_a_limit(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct http_head head;

    bytes_printf(&text, "GET / HTTP/1.1\r\n");
    for (int i = 0; i <= HTTP_MAX_HEADERS; i++)
        bytes_printf(&text, "A: b\r\n");
    bytes_printf(&text, "\r\n");
    expect_fails(http_head_parse((char *)text.data, text.size, &head), ERR_FULL, "more than 64");
}

/* Decodes in pieces of `step` bytes; what is behind the body must be left alone. */
static enum status decode(const char *text, size_t step, size_t max_bytes, struct bytes *body,
                          size_t *used_out)
{
    struct http_chunks chunks = {0};
    size_t size = strlen(text);

    for (*used_out = 0; *used_out < size && chunks.state != CHUNK_DONE;) {
        size_t used;
        TRY(http_chunks_push(&chunks, (const uint8_t *)text + *used_out,
                             MIN(step, size - *used_out), max_bytes, body, &used));
        *used_out += used;
    }
    return chunks.state == CHUNK_DONE ? OK : fail(ERR_INVALID, "not at its end");
}

static void chunks_decode_the_same_however_they_are_cut(void **state)
{
    (void)state;
    const char *text =
        "4\r\nWiki\r\n6;note=1\r\npedia \r\nB\r\nin \r\nchunks\r\n0\r\nA: b\r\n\r\nGET";

    for (size_t step = 1; step < 40; step++) {
        AUTO_CLOSE(bytes) struct bytes body = {0};
        size_t used;
        expect_ok(decode(text, step, 100, &body, &used));
        assert_string_equal(bytes_text(&body), "Wikipedia in \r\nchunks");
        assert_string_equal(text + used, "GET");
    }
}

static void broken_chunks_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum status status;
        const char *part;
    } rows[] = {
        {"x\r\n", ERR_INVALID, "hex digits"},
        {"\r\n", ERR_INVALID, "hex digits"},
        {"4\nWiki\r\n0\r\n\r\n", ERR_INVALID, "CRLF"},
        {"4\r\nWikiX\r\n", ERR_INVALID, "CRLF"},
        {"1234567890abcdef\r\n", ERR_INVALID, "15 digits"},
        {"b\r\nhello world\r\n0\r\n\r\n", ERR_FULL, "larger than 10"},
        {"4\r\nWi", ERR_INVALID, "not at its end"},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        AUTO_CLOSE(bytes) struct bytes body = {0};
        size_t used;
        expect_fails(decode(rows[i].text, 3, 10, &body, &used), rows[i].status, rows[i].part);
        assert_true(body.size <= 10);
    }
}

static void endless_trailers_are_refused(void **state)
{
    (void)state;
    AUTO_CLOSE(bytes) struct bytes text = {0};
    AUTO_CLOSE(bytes) struct bytes body = {0};
    size_t used;

    bytes_printf(&text, "0\r\n");
    for (int i = 0; i < 2000; i++)
        bytes_printf(&text, "A: b\r\n");
    bytes_printf(&text, "\r\n");
    expect_fails(decode(bytes_text(&text), 100, 10, &body, &used), ERR_INVALID, "4096 bytes");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_head_gives_method_path_query_and_headers),
    cmocka_unit_test(connections_stay_open_as_version_and_header_say),
    cmocka_unit_test(what_could_hide_a_request_is_refused),
    cmocka_unit_test(header_lines_have_a_limit),
    cmocka_unit_test(chunks_decode_the_same_however_they_are_cut),
    cmocka_unit_test(broken_chunks_are_refused),
    cmocka_unit_test(endless_trailers_are_refused),
};
TEST_MAIN(tests)
