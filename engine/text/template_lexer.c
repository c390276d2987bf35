#include "engine/text/template_internal.h"
#include "engine/text/utf8.h"

#include <errno.h>
#include <string.h>

struct lexer {
    const char *text; /* newlines are \n; no newline at the very end */
    size_t size, at;
    struct arena *arena;
    struct token_array *out;
    int32_t line;
    size_t line_start;
    size_t place;     /* up to where line and line_start are right */
    bool line_begins; /* the token before ended with a newline, or there was none */
    char brackets[MAX_SOURCE_DEPTH + 1]; /* open ones: "}}" may close a dict, not the tag */
    int32_t num_brackets;
};

/* Line and column of a place; places are asked for in ascending order. */
static void locate(struct lexer *lexer, size_t place, int32_t *line, int32_t *column)
{
    for (; lexer->place < place; lexer->place++)
        if (lexer->text[lexer->place] == '\n') {
            lexer->line++;
            lexer->line_start = lexer->place + 1;
        }
    *line = lexer->line;
    *column = (int32_t)(place - lexer->line_start) + 1;
}

#define lex_fail(lexer, place, ...)                                                                \
    ({                                                                                             \
        int32_t line_, column_;                                                                    \
        AUTO_MEM char *what_ = mem_printf(__VA_ARGS__);                                            \
        locate((lexer), (place), &line_, &column_);                                                \
        fail(ERR_CORRUPT, "template line %d, column %d: %s", line_, column_, what_);               \
    })

static struct token *add_token(struct lexer *lexer, enum token_kind kind, size_t place)
{
    struct token_array *out = lexer->out;

    if (out->count == out->capacity) {
        out->capacity = out->capacity ? out->capacity * 2 : 64;
        out->tokens = mem_resize(out->tokens, out->capacity * sizeof *out->tokens);
    }
    struct token *token = &out->tokens[out->count++];

    *token = (struct token){.kind = kind};
    locate(lexer, place, &token->line, &token->column);
    return token;
}

void token_array_close(struct token_array *tokens)
{
    mem_free(tokens->tokens);
    *tokens = (struct token_array){0};
}

static bool is_at(const struct lexer *lexer, size_t place, const char *text)
{
    size_t n = strlen(text);

    return place <= lexer->size && n <= lexer->size - place &&
           memcmp(lexer->text + place, text, n) == 0;
}

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static char peek(const struct lexer *lexer, size_t place)
{
    return place < lexer->size ? lexer->text[place] : '\0';
}

static size_t skip_space(const struct lexer *lexer, size_t place)
{
    return place + text_leading(value_string(lexer->text + place, lexer->size - place), NULL);
}

/* ---- text and the edges of tags ---------------------------------------------------------- */

/* What stands before a tag: "-" takes all space away, and a tag of statements or a comment that
 * is alone on its line takes its indentation away, unless "+" says not to. */
static size_t trimmed_end(const struct lexer *lexer, size_t start, size_t tag)
{
    char sign = peek(lexer, tag + 2);
    struct value text = value_string(lexer->text + start, tag - start);
    size_t end = tag - text_trailing(text, NULL), line;

    if (sign == '-')
        return end;
    if (sign == '+' || lexer->text[tag + 1] == '{')
        return tag;
    for (line = tag; line > start && lexer->text[line - 1] != '\n'; line--)
        ;
    return end <= line && (line > start || lexer->line_begins) ? line : tag;
}

static void add_text(struct lexer *lexer, size_t start, size_t end)
{
    if (end > start)
        add_token(lexer, TOKEN_TEXT, start)->value = value_string(lexer->text + start, end - start);
}

/* If a tag may end here ("-%}", "+%}", "%}"): where it goes on after it, else 0. */
static size_t end_of_tag(const struct lexer *lexer, size_t place, const char *mark)
{
    char sign = peek(lexer, place);
    bool is_print = mark[0] == '}';

    if (sign == '-' && is_at(lexer, place + 1, mark))
        return skip_space(lexer, place + 1 + strlen(mark));
    if (sign == '+' && !is_print && is_at(lexer, place + 1, mark))
        return place + 1 + strlen(mark);
    if (!is_at(lexer, place, mark))
        return 0;
    place += strlen(mark);
    return place + (!is_print && peek(lexer, place) == '\n'); /* trim_blocks */
}

static void move_to(struct lexer *lexer, size_t place)
{
    lexer->at = place;
    lexer->line_begins = place > 0 && lexer->text[place - 1] == '\n';
}

static enum status lex_comment(struct lexer *lexer, size_t start)
{
    for (size_t place =
             start + 2 + (peek(lexer, start + 2) == '-' || peek(lexer, start + 2) == '+');
         place < lexer->size; place++) {
        size_t end = end_of_tag(lexer, place, "#}");

        if (end) {
            move_to(lexer, end);
            return OK;
        }
    }
    return lex_fail(lexer, start, "this comment has no end \"#}\"");
}

/* Behind "{%", a sign and a word: where the tag "{% word %}" ends, 0 if it is another tag. */
static size_t word_tag(const struct lexer *lexer, size_t start, const char *word)
{
    size_t place = start + 2;
    char sign = peek(lexer, place);

    place = skip_space(lexer, place + (sign == '-' || sign == '+'));
    if (!is_at(lexer, place, word))
        return 0;
    return skip_space(lexer, place + strlen(word));
}

static enum status lex_raw(struct lexer *lexer, size_t start, size_t begin)
{
    begin = peek(lexer, begin) == '-' ? skip_space(lexer, begin + 3) : begin + 2;
    move_to(lexer, begin);
    for (size_t place = begin; place < lexer->size; place++) {
        size_t end = is_at(lexer, place, "{%") ? word_tag(lexer, place, "endraw") : 0;

        end = end ? end_of_tag(lexer, end, "%}") : 0;
        if (end) {
            add_text(lexer, begin, trimmed_end(lexer, begin, place));
            move_to(lexer, end);
            return OK;
        }
    }
    return lex_fail(lexer, start, "this raw block has no {%% endraw %%}");
}

/* ---- inside of tags ------------------------------------------------------------------------ */

static const struct operator_row {
    char text[3];
    enum operator op;
} operators[] = {
    /* the longer ones first */
    {"//", OP_FLOOR_DIV}, {"**", OP_POWER},    {"==", OP_EQ},      {"!=", OP_NE},
    {">=", OP_GE},        {"<=", OP_LE},       {"+", OP_ADD},      {"-", OP_SUB},
    {"*", OP_MUL},        {"/", OP_DIV},       {"%", OP_MOD},      {"~", OP_CONCAT},
    {"<", OP_LT},         {">", OP_GT},        {"=", OP_ASSIGN},   {".", OP_DOT},
    {",", OP_COMMA},      {":", OP_COLON},     {"|", OP_PIPE},     {"(", OP_LPAREN},
    {")", OP_RPAREN},     {"[", OP_LBRACKET},  {"]", OP_RBRACKET}, {"{", OP_LBRACE},
    {"}", OP_RBRACE},     {";", OP_SEMICOLON},
};

static enum status balance(struct lexer *lexer, char bracket)
{
    const char *opening = strchr("([{", bracket), *closing = strchr(")]}", bracket);

    if (opening) {
        if (lexer->num_brackets == MAX_SOURCE_DEPTH)
            return lex_fail(lexer, lexer->at, "brackets are nested more than %d deep",
                            MAX_SOURCE_DEPTH);
        lexer->brackets[lexer->num_brackets++] = ")]}"[strchr("([{", bracket) - "([{"];
    } else if (closing) {
        if (lexer->num_brackets == 0)
            return lex_fail(lexer, lexer->at, "unexpected \"%c\"", bracket);
        char wanted = lexer->brackets[--lexer->num_brackets];

        if (wanted != bracket)
            return lex_fail(lexer, lexer->at, "unexpected \"%c\", expected \"%c\"", bracket,
                            wanted);
    }
    return OK;
}

static enum status lex_operator(struct lexer *lexer)
{
    for (size_t i = 0; i < COUNT_OF(operators); i++) {
        const struct operator_row *row = &operators[i];

        if (!is_at(lexer, lexer->at, row->text))
            continue;
        if (!row->text[1])
            TRY(balance(lexer, row->text[0]));
        struct token *token = add_token(lexer, TOKEN_OPERATOR, lexer->at);

        token->op = row->op;
        token->value = value_string(row->text, strlen(row->text));
        lexer->at += strlen(row->text);
        return OK;
    }
    size_t n;

    text_decode(lexer->text + lexer->at, &n);
    return lex_fail(lexer, lexer->at, "unexpected character \"%.*s\"", (int)n,
                    lexer->text + lexer->at);
}

static int hex_digit(char c)
{
    if (is_digit(c))
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Digits of a base, with single underscores between; returns how many bytes. */
static size_t span_digits(const char *p, size_t size, int base)
{
    size_t n = 0;

    while (n < size) {
        size_t digit = n + (n > 0 && p[n] == '_');

        if (digit >= size || hex_digit(p[digit]) < 0 || hex_digit(p[digit]) >= base)
            break;
        n = digit + 1;
    }
    return n;
}

/* The length of a float at p, 0 if there is none: "1.5", "1e5", "1.5e-5", not "1." */
static size_t span_float(const char *p, size_t size)
{
    size_t n = span_digits(p, size, 10), fraction = 0, exponent = 0;

    if (n < size && p[n] == '.')
        fraction = span_digits(p + n + 1, size - n - 1, 10);
    if (fraction)
        n += 1 + fraction;
    if (n < size && (p[n] | 0x20) == 'e') {
        size_t sign = n + 1 < size && (p[n + 1] == '-' || p[n + 1] == '+');

        exponent = span_digits(p + n + 1 + sign, size - n - 1 - sign, 10);
        if (exponent)
            n += 1 + sign + exponent;
    }
    return fraction || exponent ? n : 0;
}

static enum status lex_number(struct lexer *lexer)
{
    const char *p = lexer->text + lexer->at;
    bool after_dot = lexer->at > 0 && p[-1] == '.'; /* x.1.0 is x[1][0] */
    size_t size = lexer->size - lexer->at, skip = 0, digits = 0;
    size_t n = after_dot ? 0 : span_float(p, size);
    int base = 10;
    char plain[64];
    bool is_float = n > 0;

    if (!is_float) {
        if (p[0] == '0' && size > 2 && strchr("xXoObB", p[1])) {
            base = (p[1] | 0x20) == 'x' ? 16 : (p[1] | 0x20) == 'o' ? 8 : 2;
            skip = 2;
        }
        n = skip + span_digits(p + skip, size - skip, base);
    }
    for (size_t i = skip; i < n; i++)
        if (p[i] != '_' && digits < sizeof plain)
            plain[digits++] = p[i];
    if (digits == 0 || digits == sizeof plain)
        return lex_fail(lexer, lexer->at, "a number of %zu digits", digits);
    plain[digits] = '\0';

    errno = 0;
    struct value v =
        is_float ? value_float(strtod(plain, NULL)) : value_int(strtoll(plain, NULL, base));
    if (!is_float && errno)
        return lex_fail(lexer, lexer->at, "%s does not fit into 64 bits", plain);
    add_token(lexer, TOKEN_LITERAL, lexer->at)->value = v;
    lexer->at += n;
    return OK;
}

/* One escape at *p, which stands behind the backslash, into `out`; moves *p. */
static enum status unescape(struct lexer *lexer, const char **p, const char *end, struct bytes *out)
{
    static const char simple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = *(*p)++, utf8[4];
    int num_digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    int64_t code_point = 0;

    if (c == '\n')
        return OK;
    for (const char *row = simple; *row; row += 2)
        if (*row == c) {
            bytes_append(out, row + 1, 1);
            return OK;
        }
    if (num_digits) {
        for (int i = 0; i < num_digits; i++, (*p)++) {
            int digit = *p < end ? hex_digit(**p) : -1;

            if (digit < 0)
                return lex_fail(lexer, lexer->at, "\\%c needs %d hexadecimal digits", c,
                                num_digits);
            code_point = code_point * 16 + digit;
        }
    } else if (c >= '0' && c <= '7') {
        code_point = c - '0';
        for (int i = 0; i < 2 && *p < end && **p >= '0' && **p <= '7'; i++)
            code_point = code_point * 8 + *(*p)++ - '0';
    } else if (c == 'N') {
        return lex_fail(lexer, lexer->at, "\\N{...} in a string is not supported");
    } else {
        bytes_append(out, "\\", 1); /* as Python: unknown escapes stay */
        (*p)--;
        return OK;
    }
    if (code_point > 0x10ffff || (code_point >= 0xd800 && code_point < 0xe000))
        return lex_fail(lexer, lexer->at, "U+%04llX is not a character", (long long)code_point);
    bytes_append(out, utf8, text_encode((int32_t)code_point, utf8));
    return OK;
}

static enum status lex_string(struct lexer *lexer)
{
    const char *start = lexer->text + lexer->at + 1, *end = lexer->text + lexer->size, *p = start;
    AUTO_CLOSE(bytes) struct bytes text = {0};
    char quote = start[-1];

    while (p < end && *p != quote) {
        if (*p != '\\') {
            bytes_append(&text, p++, 1);
        } else if (++p < end) {
            TRY(unescape(lexer, &p, end, &text));
        }
    }
    if (p >= end)
        return lex_fail(lexer, lexer->at, "this string has no end");
    const char *copy = arena_strndup(lexer->arena, bytes_text(&text), text.size);

    add_token(lexer, TOKEN_LITERAL, lexer->at)->value = value_string(copy, text.size);
    lexer->at = (size_t)(p - lexer->text) + 1;
    return OK;
}

static void lex_name(struct lexer *lexer)
{
    size_t start = lexer->at;

    while (is_letter(peek(lexer, lexer->at)) || is_digit(peek(lexer, lexer->at)))
        lexer->at++;
    add_token(lexer, TOKEN_NAME, start)->value =
        value_string(lexer->text + start, lexer->at - start);
}

static enum status lex_tag(struct lexer *lexer, size_t start)
{
    bool is_print = lexer->text[start + 1] == '{';
    char sign = peek(lexer, start + 2);

    add_token(lexer, is_print ? TOKEN_PRINT_BEGIN : TOKEN_BLOCK_BEGIN, start);
    lexer->num_brackets = 0;
    lexer->at = start + 2 + (sign == '-' || sign == '+');
    for (;;) {
        size_t end;
        char c;

        lexer->at = skip_space(lexer, lexer->at);
        if (lexer->at >= lexer->size)
            return lex_fail(lexer, start, "this tag has no end \"%s\"", is_print ? "}}" : "%}");
        end = lexer->num_brackets ? 0 : end_of_tag(lexer, lexer->at, is_print ? "}}" : "%}");
        if (end) {
            add_token(lexer, is_print ? TOKEN_PRINT_END : TOKEN_BLOCK_END, lexer->at);
            move_to(lexer, end);
            return OK;
        }
        c = lexer->text[lexer->at];
        if (is_letter(c))
            lex_name(lexer);
        else if (is_digit(c))
            TRY(lex_number(lexer));
        else if (c == '\'' || c == '"')
            TRY(lex_string(lexer));
        else
            TRY(lex_operator(lexer));
    }
}

/* ---- the whole ------------------------------------------------------------------------------ */

static size_t next_tag(const struct lexer *lexer)
{
    for (size_t place = lexer->at; place + 1 < lexer->size; place++)
        if (lexer->text[place] == '{' && strchr("{%#", lexer->text[place + 1]) &&
            lexer->text[place + 1])
            return place;
    return lexer->size;
}

static enum status lex_all(struct lexer *lexer)
{
    while (lexer->at < lexer->size) {
        size_t tag = next_tag(lexer), raw;

        if (tag == lexer->size) {
            add_text(lexer, lexer->at, tag);
            break;
        }
        add_text(lexer, lexer->at, trimmed_end(lexer, lexer->at, tag));
        raw = lexer->text[tag + 1] == '%' ? word_tag(lexer, tag, "raw") : 0;
        if (raw && (is_at(lexer, raw, "%}") || is_at(lexer, raw, "-%}")))
            TRY(lex_raw(lexer, tag, raw));
        else if (lexer->text[tag + 1] == '#')
            TRY(lex_comment(lexer, tag));
        else
            TRY(lex_tag(lexer, tag));
    }
    add_token(lexer, TOKEN_EOF, lexer->size);
    return OK;
}

/* "\r\n" and "\r" become "\n", and one newline at the end goes, as in Jinja. */
static const char *normalize(const char *source, size_t *size, struct arena *arena)
{
    char *text = arena_alloc(arena, *size + 1);
    size_t n = 0;

    for (size_t i = 0; i < *size; i++) {
        text[n++] = source[i] == '\r' ? '\n' : source[i];
        i += source[i] == '\r' && i + 1 < *size && source[i + 1] == '\n';
    }
    *size = n > 0 && text[n - 1] == '\n' ? n - 1 : n;
    return text;
}

enum status template_lex(const char *source, size_t size, struct arena *arena,
                         struct token_array *out)
{
    if (size > MAX_SOURCE_BYTES)
        return fail(ERR_CORRUPT, "a template of %zu bytes, %d at most", size, MAX_SOURCE_BYTES);
    if (utf8_valid_bytes(source, size) < size)
        return fail(ERR_CORRUPT, "the template is not UTF-8 at byte %zu",
                    utf8_valid_bytes(source, size));

    struct lexer lexer = {.size = size, .arena = arena, .out = out, .line = 1, .line_begins = true};

    lexer.text = normalize(source, &lexer.size, arena);
    return lex_all(&lexer);
}
