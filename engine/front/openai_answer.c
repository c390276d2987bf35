#include "engine/front/openai.h"
#include "engine/text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* JSON has no infinities: what vLLM says of a token that cannot come. */
#define LEAST_LOGPROB -9999.0

/* ---- JSON to bytes ----------------------------------------------------------------------------
 */

static int append_json(const char *text, size_t size, void *out)
{
    bytes_append(out, text, size);
    return 0;
}

/* What JSON writes for a byte of a string that it does not write as it is; NULL: as it is. */
static const char *escape_of(uint8_t byte, char room[8])
{
    static const char short_escapes[256] = {
        ['"'] = '"',  ['\\'] = '\\', ['\b'] = 'b', ['\f'] = 'f',
        ['\n'] = 'n', ['\r'] = 'r',  ['\t'] = 't',
    };

    if (short_escapes[byte])
        snprintf(room, 8, "\\%c", short_escapes[byte]);
    else if (byte < 0x20)
        snprintf(room, 8, "\\u%04X", byte);
    else
        return NULL;
    return room;
}

/* The inside of a JSON string; text is UTF-8. */
static void put_escaped(const char *text, size_t size, struct bytes *out)
{
    const char *end = text + size, *escape;
    char room[8];

    for (const char *from = text; text < end; from = text) {
        escape = NULL;
        while (text < end && !(escape = escape_of((uint8_t)*text, room)))
            text++;
        bytes_append(out, from, (size_t)(text - from));
        if (escape) {
            bytes_append(out, escape, strlen(escape));
            text++;
        }
    }
}

/* Takes `json`. 9 digits restore a float's bits. */
static void put_json(json_t *json, struct bytes *out)
{
    int rc = json_dump_callback(json, append_json, out, JSON_COMPACT | JSON_REAL_PRECISION(9));

    ASSERT(rc == 0, "an answer is no JSON");
    json_decref(json);
}

/* Takes `json`, an object, and leaves its end to the caller. */
static void put_open_object(json_t *json, struct bytes *out)
{
    put_json(json, out);
    out->size--;
}

static void put_event(json_t *json, struct bytes *out)
{
    bytes_append(out, "data: ", 6);
    put_json(json, out);
    bytes_append(out, "\n\n", 2);
}

/* Text that may have been cut or quoted anywhere. */
static json_t *any_text(const char *text)
{
    AUTO_CLOSE(bytes) struct bytes whole = {0};

    utf8_repair(text, strlen(text), &whole);
    return json_stringn(bytes_text(&whole), whole.size);
}

/* ---- logprobs ----------------------------------------------------------------------------------
 */

static json_t *logprob_json(float logprob)
{
    return json_real(isfinite(logprob) ? (double)logprob : LEAST_LOGPROB);
}

static void token_bytes(const struct openai_model *model, token_id token, struct bytes *out)
{
    tokenizer_piece(model->tokenizer, token, true, out);
}

/* Chat's {"token", "logprob", "bytes"}. */
static json_t *chat_token(const struct openai_model *model, token_id token, float logprob)
{
    AUTO_CLOSE(bytes) struct bytes piece = {0}, text = {0};
    json_t *entry = json_object(), *list = json_array();

    token_bytes(model, token, &piece);
    tokenizer_decode(model->tokenizer, &token, 1, true, &text);
    for (size_t i = 0; i < piece.size; i++)
        json_array_append_new(list, json_integer(piece.data[i]));
    json_object_set_new(entry, "token", json_stringn(bytes_text(&text), text.size));
    json_object_set_new(entry, "logprob", logprob_json(logprob));
    json_object_set_new(entry, "bytes", list);
    return entry;
}

static json_t *chat_logprobs(const struct openai_model *model,
                             const struct output_processor *output, int32_t first)
{
    json_t *content = json_array();

    for (int32_t i = first; i < output->num_tokens; i++) {
        const struct token_logprobs *of_token = &output->logprobs[i];
        json_t *entry = chat_token(model, output->tokens[i], of_token->logprob);
        json_t *tops = json_array();

        for (int32_t k = 0; k < of_token->num_top; k++)
            json_array_append_new(
                tops, chat_token(model, of_token->top[k].token, of_token->top[k].logprob));
        json_object_set_new(entry, "top_logprobs", tops);
        json_array_append_new(content, entry);
    }
    return json_pack("{s:o}", "content", content);
}

/* A token's name in completions: its text, or OpenAI's "bytes:\xe2\x96" where it is no text by
 * itself, so that two such tokens stay two keys. */
static void token_label(const struct openai_model *model, token_id token, struct bytes *out)
{
    AUTO_CLOSE(bytes) struct bytes piece = {0};
    json_t *text;

    token_bytes(model, token, &piece);
    text = json_stringn(bytes_text(&piece), piece.size);
    if (text && !memchr(piece.data ? (const char *)piece.data : "", 0, piece.size)) {
        bytes_append(out, piece.data, piece.size);
    } else {
        bytes_printf(out, "bytes:");
        for (size_t i = 0; i < piece.size; i++)
            bytes_printf(out, "\\x%02x", piece.data[i]);
    }
    json_decref(text);
}

static int64_t count_characters(const char *text, size_t size)
{
    int64_t count = 0;

    for (size_t i = 0; i < size; i++)
        count += ((uint8_t)text[i] & 0xc0) != 0x80; /* not a continuation byte */
    return count;
}

static void put_label(const struct openai_model *model, token_id token, float logprob,
                      json_t *object)
{
    AUTO_CLOSE(bytes) struct bytes label = {0};

    token_label(model, token, &label);
    json_object_set_new(object, bytes_text(&label), logprob_json(logprob));
}

/* Completions' four columns while they grow. */
struct columns {
    json_t *texts, *logprobs, *tops, *offsets;
};

/* of_token: NULL where nothing foretold it. `offset` is where its text begins, in characters, and is
 * moved behind it. */
static void add_column(const struct openai_model *model, struct columns *columns, token_id token,
                       const struct token_logprobs *of_token, int32_t max_top, int64_t *offset)
{
    AUTO_CLOSE(bytes) struct bytes label = {0}, text = {0};
    json_t *top = of_token ? json_object() : json_null();

    token_label(model, token, &label);
    token_bytes(model, token, &text);
    json_array_append_new(columns->texts, json_stringn(bytes_text(&label), label.size));
    json_array_append_new(columns->logprobs,
                          of_token ? logprob_json(of_token->logprob) : json_null());
    for (int32_t k = 0; of_token && k < MIN(of_token->num_top, max_top); k++)
        put_label(model, of_token->top[k].token, of_token->top[k].logprob, top);
    if (of_token)
        put_label(model, token, of_token->logprob, top);
    json_array_append_new(columns->tops, top);
    json_array_append_new(columns->offsets, json_integer(*offset));
    *offset += count_characters(bytes_text(&text), text.size);
}

static const struct openai_prompt *prompt_of(const struct generation *generation, int32_t sequence)
{
    return &generation->prompts[sequence / generation->params.n];
}

const struct output_processor *generation_scored_output(const struct generation *generation,
                                                        int32_t sequence)
{
    return &generation->outputs[sequence - sequence % generation->params.n];
}

static bool echoes_logprobs(const struct generation *generation)
{
    return generation->echo && generation->params.logprobs >= 0;
}

static void add_prompt_columns(const struct openai_model *model,
                               const struct generation *generation, int32_t sequence,
                               struct columns *columns, int64_t *offset)
{
    const struct token_list *prompt = &prompt_of(generation, sequence)->tokens;
    const struct token_logprobs *logprobs = generation_scored_output(generation, sequence)->prompt_logprobs;

    for (int32_t i = 0; i < prompt->count; i++)
        add_column(model, columns, prompt->ids[i], logprobs && i > 0 ? &logprobs[i - 1] : NULL,
                   generation->params.logprobs, offset);
}

/* Of the tokens from `first` on, behind those of the prompt if that is echoed now. */
static json_t *completion_logprobs(const struct openai_model *model,
                                   const struct generation *generation, int32_t sequence,
                                   bool with_prompt, int32_t first, int64_t *offset)
{
    const struct output_processor *output = &generation->outputs[sequence];
    struct columns columns = {json_array(), json_array(), json_array(), json_array()};

    if (with_prompt)
        add_prompt_columns(model, generation, sequence, &columns, offset);
    for (int32_t i = first; i < output->num_tokens; i++)
        add_column(model, &columns, output->tokens[i], &output->logprobs[i], INT32_MAX, offset);
    return json_pack("{s:o, s:o, s:o, s:o}", "text_offset", columns.offsets, "token_logprobs",
                     columns.logprobs, "tokens", columns.texts, "top_logprobs", columns.tops);
}

static json_t *logprobs_json(const struct openai_model *model, const struct generation *generation,
                             int32_t sequence, bool with_prompt, int32_t first, int64_t *offset)
{
    const struct output_processor *output = &generation->outputs[sequence];

    if (!output->logprobs && !with_prompt)
        return json_null();
    return generation->endpoint == OPENAI_CHAT
               ? chat_logprobs(model, output, first)
               : completion_logprobs(model, generation, sequence, with_prompt, first, offset);
}

/* As put_json writes it. */
static void put_logprob(float logprob, struct bytes *out)
{
    char text[32];

    snprintf(text, sizeof text, "%.9g", isfinite(logprob) ? (double)logprob : LEAST_LOGPROB);
    bytes_printf(out, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}

/* vLLM's {"logprob", "rank", "decoded_token"} under the token's id. room: for its text. */
static void put_scored(const struct openai_model *model, token_id token, float logprob, int32_t rank,
                       struct bytes *room, struct bytes *out)
{
    bytes_printf(out, "\"%d\":{\"logprob\":", token);
    put_logprob(logprob, out);
    bytes_printf(out, ",\"rank\":%d,\"decoded_token\":\"", rank);
    room->size = 0;
    tokenizer_decode(model->tokenizer, &token, 1, true, room);
    put_escaped((const char *)room->data, room->size, out);
    bytes_printf(out, "\"}");
}

/* vLLM's prompt_logprobs: a prompt's first token has none. There may be 20 for each of very many tokens,
 * and while they are written nobody else is answered: so they are no JSON in between. */
static void put_prompt_logprobs(const struct openai_model *model,
                                const struct generation *generation, int32_t sequence,
                                struct bytes *out)
{
    const struct token_list *prompt = &prompt_of(generation, sequence)->tokens;
    const struct token_logprobs *logprobs =
        generation_scored_output(generation, sequence)->prompt_logprobs;
    AUTO_CLOSE(bytes) struct bytes room = {0};

    bytes_printf(out, ",\"prompt_logprobs\":%s", logprobs ? "[null" : "null");
    for (int32_t i = 1; logprobs && i < prompt->count; i++) {
        const struct token_logprobs *of_token = &logprobs[i - 1];

        bytes_printf(out, ",{");
        put_scored(model, prompt->ids[i], of_token->logprob, of_token->rank, &room, out);
        for (int32_t k = 0; k < of_token->num_top; k++) {
            if (of_token->top[k].token == prompt->ids[i])
                continue;
            bytes_printf(out, ",");
            put_scored(model, of_token->top[k].token, of_token->top[k].logprob, k + 1, &room, out);
        }
        bytes_printf(out, "}");
    }
    bytes_printf(out, "%s", logprobs ? "]" : "");
}

/* ---- parts of answers ---------------------------------------------------------------------------
 */

static json_t *usage_json(const struct generation *generation)
{
    int64_t prompt = 0, completion = 0, cached = 0;

    for (int32_t i = 0; i < generation->num_sequences; i++) {
        const struct output_processor *output = &generation->outputs[i];

        completion += output->num_tokens;
        if (i % generation->params.n ==
            0) { /* a prompt counts once, however often it is answered */
            prompt += output->num_prompt_tokens;
            cached += output->num_cached_tokens;
        }
    }
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", (json_int_t)prompt,
                     "total_tokens", (json_int_t)(prompt + completion), "completion_tokens",
                     (json_int_t)completion, "prompt_tokens_details", "cached_tokens",
                     (json_int_t)cached);
}

static json_t *stop_reason_json(const struct output_processor *output)
{
    if (output->stop_string)
        return any_text(output->stop_string);
    return output->stop_token >= 0 ? json_integer(output->stop_token) : json_null();
}

static void set_finish(json_t *choice, const struct output_processor *output)
{
    bool finished = output && output->finish != FINISH_NONE;

    json_object_set_new(choice, "finish_reason",
                        finished ? json_string(finish_reason_name(output->finish)) : json_null());
    json_object_set_new(choice, "stop_reason", finished ? stop_reason_json(output) : json_null());
}

static json_t *ids_json(const token_id *ids, int32_t count)
{
    json_t *list = json_array();

    for (int32_t i = 0; i < count; i++)
        json_array_append_new(list, json_integer(ids[i]));
    return list;
}

/* The prompt as its reader would write it: for echo. */
static void prompt_text(const struct openai_model *model, const struct openai_prompt *prompt,
                        struct bytes *out)
{
    if (prompt->text)
        bytes_append(out, prompt->text, prompt->text_size);
    else
        tokenizer_decode(model->tokenizer, prompt->tokens.ids, prompt->tokens.count, true, out);
}

void generation_text(const struct openai_model *model, const struct generation *generation,
                     int32_t sequence, struct bytes *out)
{
    const struct output_processor *output = &generation->outputs[sequence];

    if (generation->echo)
        prompt_text(model, prompt_of(generation, sequence), out);
    bytes_append(out, output->text.data, output->text.size);
}

/* A seed that the client did not give is told, so that the answer can be had again. */
static json_t *answer_head(const struct generation *generation, const char *object)
{
    json_t *head =
        json_pack("{s:s, s:s, s:I, s:s}", "id", generation->id, "object", object, "created",
                  (json_int_t)generation->created, "model", generation->model);

    if (generation->system_fingerprint[0])
        json_object_set_new(head, "system_fingerprint",
                            json_string(generation->system_fingerprint));
    if (!sampling_params_is_greedy(&generation->params))
        json_object_set_new(head, "seed", json_integer(generation->params.seed));
    return head;
}

/* Where they are wanted. `object`: a choice, or, as vLLM has it, all of a chat's answer or chunk. */
static void set_prompt_ids(const struct generation *generation, int32_t sequence, json_t *object)
{
    const struct token_list *prompt = &prompt_of(generation, sequence)->tokens;

    if (generation->return_token_ids)
        json_object_set_new(object, "prompt_token_ids", ids_json(prompt->ids, prompt->count));
}

/* ---- whole answers
 * ------------------------------------------------------------------------------- */

static json_t *choice_json(const struct openai_model *model, const struct generation *generation,
                           int32_t sequence)
{
    const struct output_processor *output = &generation->outputs[sequence];
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_t *choice = json_pack("{s:i}", "index", sequence), *content;
    int64_t offset = 0;

    generation_text(model, generation, sequence, &text);
    content = json_stringn(bytes_text(&text), text.size);
    if (generation->endpoint == OPENAI_CHAT)
        json_object_set_new(
            choice, "message",
            json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", content, "refusal"));
    else
        json_object_set_new(choice, "text", content);
    json_object_set_new(choice, "logprobs",
                        logprobs_json(model, generation, sequence, echoes_logprobs(generation), 0,
                                      &offset));
    set_finish(choice, output);
    if (generation->return_token_ids)
        json_object_set_new(choice, "token_ids", ids_json(output->tokens, output->num_tokens));
    if (generation->endpoint != OPENAI_CHAT)
        set_prompt_ids(generation, sequence, choice);
    return choice;
}

void openai_response(const struct openai_model *model, const struct generation *generation,
                     struct bytes *out)
{
    bool chat = generation->endpoint == OPENAI_CHAT, scores = generation->tells_prompt_logprobs;
    json_t *head = answer_head(generation, chat ? "chat.completion" : "text_completion");

    if (chat)
        set_prompt_ids(generation, 0, head);
    put_open_object(head, out);
    bytes_printf(out, ",\"choices\":[");
    for (int32_t i = 0; i < generation->num_sequences; i++) {
        bytes_printf(out, "%s", i > 0 ? "," : "");
        put_open_object(choice_json(model, generation, i), out);
        if (scores && !chat)
            put_prompt_logprobs(model, generation, i, out);
        bytes_printf(out, "}");
    }
    bytes_printf(out, "],\"usage\":");
    put_json(usage_json(generation), out);
    if (scores && chat)
        put_prompt_logprobs(model, generation, 0, out);
    bytes_printf(out, "}");
}

const struct output_processor *generation_failure(const struct generation *generation)
{
    for (int32_t i = 0; i < generation->num_sequences; i++)
        if (generation->outputs[i].finish == FINISH_ERROR)
            return &generation->outputs[i];
    return NULL;
}

/* ---- streams
 * --------------------------------------------------------------------------------------- */

/* Takes `choices`. */
static json_t *chunk_json(const struct generation *generation, json_t *choices, bool last)
{
    bool chat = generation->endpoint == OPENAI_CHAT;
    json_t *chunk = answer_head(generation, chat ? "chat.completion.chunk" : "text_completion");

    json_object_set_new(chunk, "choices", choices);
    if (last || generation->continuous_usage)
        json_object_set_new(chunk, "usage", usage_json(generation));
    else if (generation->include_usage)
        json_object_set_new(chunk, "usage", json_null());
    return chunk;
}

/* Takes `choices`. */
static void put_chunk(const struct generation *generation, json_t *choices, bool last,
                      struct bytes *out)
{
    put_event(chunk_json(generation, choices, last), out);
}

/* A choice that brings `size` bytes of text. */
static json_t *delta_choice(const struct generation *generation, int32_t sequence, const char *text,
                            size_t size)
{
    json_t *choice = json_pack("{s:i}", "index", sequence);
    json_t *content = json_stringn(text, size);

    if (generation->endpoint == OPENAI_CHAT)
        json_object_set_new(choice, "delta", json_pack("{s:o}", "content", content));
    else
        json_object_set_new(choice, "text", content);
    json_object_set_new(choice, "logprobs", json_null());
    set_finish(choice, NULL);
    return choice;
}

static void put_role(struct generation *generation, int32_t sequence, struct bytes *out)
{
    json_t *choice = delta_choice(generation, sequence, "", 0);
    json_t *chunk = chunk_json(generation, json_pack("[o]", choice), false);

    json_object_set_new(choice, "delta",
                        json_pack("{s:s, s:s}", "role", "assistant", "content", ""));
    set_prompt_ids(generation, sequence, chunk);
    generation->outputs[sequence].prompt_sent = true;
    put_event(chunk, out);
}

static void put_echo(const struct openai_model *model, struct generation *generation,
                     int32_t sequence, struct bytes *out)
{
    struct output_processor *output = &generation->outputs[sequence];
    AUTO_CLOSE(bytes) struct bytes text = {0};
    json_t *choice;

    prompt_text(model, prompt_of(generation, sequence), &text);
    choice = delta_choice(generation, sequence, bytes_text(&text), text.size);
    if (echoes_logprobs(generation))
        json_object_set_new(choice, "logprobs",
                            completion_logprobs(model, generation, sequence, true,
                                                output->num_tokens, &output->characters_sent));
    set_prompt_ids(generation, sequence, choice);
    output->prompt_sent = true;
    put_chunk(generation, json_pack("[o]", choice), false, out);
}

void openai_stream_start(const struct openai_model *model, struct generation *generation,
                         struct bytes *out)
{
    bool chat = generation->endpoint == OPENAI_CHAT;

    for (int32_t i = 0; i < generation->num_sequences; i++) {
        if (chat)
            put_role(generation, i, out);
        else if (generation->echo && !echoes_logprobs(generation))
            put_echo(model, generation, i, out);
    }
}

/*
 * Most events differ in their text alone. So the event of a text that is only a mark is written
 * once for a sequence, and cut where the mark is; a stream is then these two ends with texts
 * between.
 */
static void make_event_ends(const struct generation *generation, int32_t sequence,
                            struct event_ends *ends)
{
    static const char mark[] = "\x7f\x7f text \x7f\x7f"; /* JSON writes it as it is */
    AUTO_CLOSE(bytes) struct bytes event = {0};
    json_t *choice = delta_choice(generation, sequence, mark, sizeof mark - 1);

    put_chunk(generation, json_pack("[o]", choice), false, &event);

    const char *begin = bytes_text(&event), *at = begin;

    /* The last one: a model's name may be anything, and comes before the choices. */
    for (const char *next = begin; (next = strstr(next, mark)); next++)
        at = next;
    ASSERT(at > begin);
    ends->begin_bytes = (size_t)(at - begin);
    ends->end_bytes = event.size - ends->begin_bytes - (sizeof mark - 1);
    ends->text = mem_strndup(begin, ends->begin_bytes + ends->end_bytes);
    memcpy(ends->text + ends->begin_bytes, at + sizeof mark - 1, ends->end_bytes);
}

static void put_text_event(struct generation *generation, int32_t sequence, const char *text,
                           size_t size, struct bytes *out)
{
    struct event_ends *ends = &generation->event_ends[sequence];

    if (!ends->text)
        make_event_ends(generation, sequence, ends);
    bytes_append(out, ends->text, ends->begin_bytes);
    put_escaped(text, size, out);
    bytes_append(out, ends->text + ends->begin_bytes, ends->end_bytes);
}

static void put_news(const struct openai_model *model, struct generation *generation,
                     int32_t sequence, struct bytes *out)
{
    struct output_processor *output = &generation->outputs[sequence];
    const char *text = bytes_text(&output->text) + output->text_sent;
    size_t size = output->text.size - output->text_sent;

    if (!output->logprobs && !generation->return_token_ids && !generation->continuous_usage) {
        put_text_event(generation, sequence, text, size, out);
        output->text_sent = output->text.size;
        output->tokens_sent = output->num_tokens;
        return;
    }

    json_t *choice = delta_choice(generation, sequence, text, size);

    json_object_set_new(
        choice, "logprobs",
        logprobs_json(model, generation, sequence, false, output->tokens_sent,
                      &output->characters_sent));
    if (!output->prompt_sent)
        set_prompt_ids(generation, sequence, choice);
    output->prompt_sent = true;
    if (generation->return_token_ids)
        json_object_set_new(choice, "token_ids",
                            ids_json(output->tokens + output->tokens_sent,
                                     output->num_tokens - output->tokens_sent));
    output->text_sent = output->text.size;
    output->tokens_sent = output->num_tokens;
    put_chunk(generation, json_pack("[o]", choice), false, out);
}

static void put_finish(const struct generation *generation, int32_t sequence, struct bytes *out)
{
    json_t *choice = delta_choice(generation, sequence, "", 0);

    if (generation->endpoint == OPENAI_CHAT)
        json_object_set_new(choice, "delta", json_object());
    set_finish(choice, &generation->outputs[sequence]);
    put_chunk(generation, json_pack("[o]", choice), false, out);
}

static json_t *error_json(int http_status, const char *message, const char *param);

void openai_stream_delta(const struct openai_model *model, struct generation *generation,
                         int32_t sequence, struct bytes *out)
{
    struct output_processor *output = &generation->outputs[sequence];
    const struct output_processor *scored = generation_scored_output(generation, sequence);
    bool tokens_matter = output->logprobs || generation->return_token_ids;

    if (echoes_logprobs(generation) && !output->prompt_sent && output->finish != FINISH_ERROR) {
        if (!scored->prompt_logprobs && scored->finish == FINISH_NONE)
            return; /* what has come so far goes behind it */
        put_echo(model, generation, sequence, out);
    }
    if (output->text.size > output->text_sent ||
        (tokens_matter && output->num_tokens > output->tokens_sent))
        put_news(model, generation, sequence, out);
    if (output->finish == FINISH_NONE || output->finish_sent)
        return;
    output->finish_sent = true;
    if (output->finish == FINISH_ERROR)
        put_event(error_json(openai_http_status(output->error), output->error_text, NULL), out);
    else
        put_finish(generation, sequence, out);
}

void openai_stream_end(const struct generation *generation, struct bytes *out)
{
    if (generation->include_usage)
        put_chunk(generation, json_array(), true, out);
    bytes_printf(out, "data: [DONE]\n\n");
}

/* ---- refusals
 * --------------------------------------------------------------------------------------- */

int openai_http_status(enum status status)
{
    switch (status) {
    case ERR_INVALID:
    case ERR_UNSUPPORTED:
        return 400;
    case ERR_NOT_FOUND:
        return 404;
    case ERR_FULL:
    case ERR_CLOSED:
        return 503;
    case ERR_MISSING:
        return 501;
    case ERR_TIMEOUT:
        return 504;
    default:
        return 500;
    }
}

static const char *error_type(int http_status)
{
    static const struct {
        int http_status;
        const char *type;
    } rows[] = {
        {401, "AuthenticationError"},     {404, "NotFoundError"}, {429, "RateLimitError"},
        {501, "NotImplementedError"},     {503, "ServiceUnavailableError"}, {504, "TimeoutError"},
    };

    for (size_t i = 0; i < COUNT_OF(rows); i++)
        if (rows[i].http_status == http_status)
            return rows[i].type;
    return http_status < 500 ? "BadRequestError" : "InternalServerError";
}

static json_t *error_json(int http_status, const char *message, const char *param)
{
    return json_pack("{s:{s:o, s:s, s:o, s:i}}", "error", "message", any_text(message), "type",
                     error_type(http_status), "param", param ? any_text(param) : json_null(),
                     "code", http_status);
}

void openai_http_error(int http_status, const char *message, const char *param, struct bytes *out)
{
    put_json(error_json(http_status, message, param), out);
}

void openai_error(enum status status, const char *message, const char *param, struct bytes *out)
{
    openai_http_error(openai_http_status(status), message, param, out);
}
