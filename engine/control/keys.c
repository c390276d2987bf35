#include "engine/control/keys.h"

#include "proto/base/file_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- lines of words -------------------------------------------------------------------------- */

enum { MAX_WORDS = 4 };

struct words {
    const char *name; /* of the file */
    int32_t line;     /* from 1 */
    const char *words[MAX_WORDS];
    int32_t num_words; /* MAX_WORDS: or more */
};

#define fail_line(words, ...) fail_at((words)->name, (words)->line, mem_printf(__VA_ARGS__))

static enum status fail_at(const char *name, int32_t line, char *why)
{
    AUTO_MEM char *sentence = why;

    return fail(ERR_INVALID, "%s, line %d: %s", name, line, sentence);
}

typedef enum status take_words(void *user, const struct words *words);

static enum status take_line(struct words *words, char *line, take_words *take, void *user)
{
    char *rest = NULL;

    words->num_words = 0;
    for (char *word = strtok_r(line, " \t\r", &rest); word && words->num_words < MAX_WORDS;
         word = strtok_r(NULL, " \t\r", &rest)) {
        if (strcmp(word, "#") == 0)
            break;
        words->words[words->num_words++] = word;
    }
    return words->num_words ? take(user, words) : OK;
}

/* Every line that has words, in order, until one is refused. */
static enum status each_line(const char *name, const char *text, size_t size, take_words *take,
                             void *user)
{
    struct words words = {.name = name, .line = 1};

    if (size > CONTROL_MAX_KEYS_BYTES)
        return fail(ERR_INVALID, "%s has %zu bytes, the limit is %d", name, size,
                    CONTROL_MAX_KEYS_BYTES);
    for (const char *at = text, *end = text + size; at < end; words.line++) {
        const char *line_end = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((line_end ? line_end : end) - at);
        AUTO_MEM char *line = mem_strndup(at, length);

        enum status status = strlen(line) == length
                                 ? take_line(&words, line, take, user)
                                 : fail_line(&words, "a NUL byte; keys are text");

        explicit_bzero(line, length); /* it may be a secret */
        TRY(status);
        at += length + 1;
    }
    return OK;
}

static enum status check_key(const struct words *words, const char *key)
{
    if (!curve_key_is_valid(key))
        return fail_line(words, "'%.48s' is no key: %d characters of Z85 are", key,
                         CURVE_KEY_CHARS);
    return OK;
}

/* ---- the list -------------------------------------------------------------------------------- */

static enum status parse_role(const struct words *words, const char *word, enum control_role *out)
{
    for (int role = ROLE_READ; role < NUM_CONTROL_ROLES; role++)
        if (strcmp(word, control_role_name((enum control_role)role)) == 0) {
            *out = (enum control_role)role;
            return OK;
        }
    return fail_line(words, "'%.32s' is no role; the roles are read, operate and admin", word);
}

/* It stands in the log beside what was done. */
static enum status check_name(const struct words *words, const char *name)
{
    if (strlen(name) > CONTROL_MAX_KEY_NAME)
        return fail_line(words, "a name of %zu bytes, the limit is %d", strlen(name),
                         CONTROL_MAX_KEY_NAME);
    for (const char *c = name; *c; c++)
        if (*c <= ' ' || *c > '~')
            return fail_line(words, "a name has letters, digits and signs of ASCII only");
    return OK;
}

static enum status take_key(void *user, const struct words *words)
{
    struct control_keys *keys = user;
    const char *name = words->num_words > 2 ? words->words[2] : NULL;
    struct control_key *key;
    enum control_role role;

    if (words->num_words < 2 || words->num_words > 3)
        return fail_line(words, "PUBLIC_KEY ROLE [NAME] is expected, %s%d words are there",
                         words->num_words == MAX_WORDS ? "at least " : "", words->num_words);
    TRY(check_key(words, words->words[0]));
    TRY(parse_role(words, words->words[1], &role));
    if (name)
        TRY(check_name(words, name));
    if (control_keys_find(keys, words->words[0]))
        return fail_line(words, "this key stands in the list before");
    if (keys->num_keys == CONTROL_MAX_KEYS)
        return fail_line(words, "more than %d keys", CONTROL_MAX_KEYS);

    key = &keys->keys[keys->num_keys++];
    memcpy(key->public_key, words->words[0], sizeof key->public_key);
    key->role = role;
    snprintf(key->name, sizeof key->name, name ? "%s" : "key %.8s", name ? name : words->words[0]);
    return OK;
}

enum status control_keys_parse(const char *name, const char *text, size_t size,
                               struct control_keys *out)
{
    AUTO_CLOSE(control_keys)
    struct control_keys keys = {.keys = mem_new_array(struct control_key, CONTROL_MAX_KEYS)};

    TRY(each_line(name, text, size, take_key, &keys));
    if (!keys.num_keys)
        return fail(ERR_INVALID, "%s has no key: nobody could come in", name);
    *out = keys;
    keys = (struct control_keys){0};
    return OK;
}

static enum status read_text(const char *path, struct bytes *out)
{
    enum status status = file_read(path, CONTROL_MAX_KEYS_BYTES, out);

    return status == ERR_FULL ? fail(ERR_INVALID, "%s: a file of keys has at most %d bytes", path,
                                     CONTROL_MAX_KEYS_BYTES)
                              : status;
}

enum status control_keys_read(const char *path, struct control_keys *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};

    TRY(read_text(path, &text));
    return control_keys_parse(path, bytes_text(&text), text.size, out);
}

void control_keys_close(struct control_keys *keys)
{
    mem_free(keys->keys);
    *keys = (struct control_keys){0};
}

const struct control_key *control_keys_find(const struct control_keys *keys, const char *public_key)
{
    for (size_t i = 0; i < keys->num_keys; i++)
        if (strcmp(keys->keys[i].public_key, public_key) == 0)
            return &keys->keys[i];
    return NULL;
}

/* ---- a key file ------------------------------------------------------------------------------ */

static enum status take_key_line(void *user, const struct words *words)
{
    struct control_key_file *file = user;
    const struct {
        const char *name;
        char *place;
    } rows[] = {
        {"public", file->pair.public_key},
        {"secret", file->pair.secret_key},
        {"server", file->server},
    };

    if (words->num_words != 2)
        return fail_line(words, "a name and one key are expected");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (strcmp(words->words[0], rows[i].name) != 0)
            continue;
        if (*rows[i].place)
            return fail_line(words, "%s stands here again", rows[i].name);
        if (!curve_key_is_valid(words->words[1])) /* it may be a secret: it is not told */
            return fail_line(words, "%s is no key: %d characters of Z85 are", rows[i].name,
                             CURVE_KEY_CHARS);
        memcpy(rows[i].place, words->words[1], CURVE_KEY_CHARS + 1);
        return OK;
    }
    return fail_line(words, "the names are public, secret and server");
}

static enum status check_mode(const char *path)
{
    struct stat info;

    if (stat(path, &info) != 0)
        return fail(errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "%s: %m", path);
    if (info.st_mode & 077)
        return fail(ERR_INVALID, "%s has mode %04o, so others may read its secret; chmod 600", path,
                    info.st_mode & 07777);
    return OK;
}

enum status control_key_file_read(const char *path, struct control_key_file *out)
{
    AUTO_CLOSE(bytes) struct bytes text = {0};
    struct control_key_file file = {0};
    enum status status;

    TRY(check_mode(path));
    TRY(read_text(path, &text));
    status = each_line(path, bytes_text(&text), text.size, take_key_line, &file);
    explicit_bzero(text.data, text.size);
    if (status == OK && (!*file.pair.public_key || !*file.pair.secret_key))
        status = fail(ERR_INVALID, "%s: %s is missing", path,
                      *file.pair.public_key ? "secret" : "public");
    if (status == OK)
        *out = file;
    explicit_bzero(&file, sizeof file);
    return status;
}

enum status control_key_file_create(const char *path, const char *server,
                                    struct control_key_file *out)
{
    struct control_key_file file = {0};
    FILE *stream;
    int fd;

    if (server && !curve_key_is_valid(server))
        return fail(ERR_INVALID, "the server's key is no key: %d characters of Z85 are",
                    CURVE_KEY_CHARS);
    TRY(curve_pair_new(&file.pair));
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST)
        return fail(ERR_INVALID, "%s is there already: remove it first, if nobody uses it any more",
                    path);
    stream = fd < 0 ? NULL : fdopen(fd, "w");
    if (!stream)
        return fail(ERR_IO, "%s cannot be made: %m", path);
    fprintf(stream, "public %s\nsecret %s\n", file.pair.public_key, file.pair.secret_key);
    if (server) {
        memcpy(file.server, server, sizeof file.server);
        fprintf(stream, "server %s\n", server);
    }
    bool failed = ferror(stream);
    if (fclose(stream) != 0 || failed) {
        enum status status = fail(ERR_IO, "%s cannot be written: %m", path);

        unlink(path);
        return status;
    }
    *out = file;
    explicit_bzero(&file, sizeof file);
    return OK;
}
