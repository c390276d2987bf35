#include "engine/grammar/tvm_ffi.h"

#include "engine/grammar/words.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

/* What else of the interface is read. */
struct ffi_error {
    struct ffi_object head;
    struct ffi_bytes kind, message, backtrace;
};

struct ffi_method_info {
    struct ffi_bytes name, doc, metadata;
    int64_t flags;
    struct ffi_any method; /* the table's own reference */
};

struct ffi_type_info {
    int32_t index, depth;
    struct ffi_bytes key;
    const struct ffi_type_info **ancestors;
    uint64_t key_hash;
    int32_t num_fields, num_methods;
    const void *fields;
    const struct ffi_method_info *methods;
    const void *metadata;
};

_Static_assert(sizeof(struct ffi_any) == 16, "TVM-FFI's Any");
_Static_assert(sizeof(struct ffi_object) == 24, "TVM-FFI's object");
_Static_assert(sizeof(struct ffi_tensor) == 48, "DLPack's tensor");

static struct {
    void (*get_version)(uint32_t version[3]);
    int (*release)(void *object);
    int (*type_of_key)(const struct ffi_bytes *key, int32_t *type);
    const struct ffi_type_info *(*type_info)(int32_t type);
    int (*get_global)(const struct ffi_bytes *name, void **function);
    int (*call)(void *function, const struct ffi_any *args, int32_t num_args, struct ffi_any *ret);
    void (*take_error)(void **error);
    int (*make_string)(const struct ffi_bytes *bytes, struct ffi_any *out);
    bool is_open;
} ffi;

static const struct {
    const char *name;
    void *at;
} symbols[] = {
    {"TVMFFIGetVersion", &ffi.get_version},         {"TVMFFIObjectDecRef", &ffi.release},
    {"TVMFFITypeKeyToIndex", &ffi.type_of_key},     {"TVMFFIGetTypeInfo", &ffi.type_info},
    {"TVMFFIFunctionGetGlobal", &ffi.get_global},   {"TVMFFIFunctionCall", &ffi.call},
    {"TVMFFIErrorMoveFromRaised", &ffi.take_error}, {"TVMFFIStringFromByteArray", &ffi.make_string},
};

/* ---- opening --------------------------------------------------------------------------------- */

static enum status load(const char *folder, const char *name, void **out)
{
    AUTO_MEM char *path = mem_printf("%s/%s", folder, name);

    if (access(path, R_OK) != 0)
        return fail(ERR_NOT_FOUND, "there is no %s (deploy/fetch-grammars brings it)", path);
    *out = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    return *out ? OK : fail(ERR_UNSUPPORTED, "%s", dlerror());
}

static enum status open_once(const char *folder, const char *library)
{
    uint32_t version[3];
    void *handle;

    /* First, since the other one names it without a path: the loader is content with a library of
     * that name that is there already. */
    TRY(load(folder, "libtvm_ffi.so", &handle));
    for (size_t i = 0; i < COUNT_OF(symbols); i++) {
        void *symbol = dlsym(handle, symbols[i].name);

        if (!symbol)
            return fail(ERR_UNSUPPORTED, "%s/libtvm_ffi.so lacks %s", folder, symbols[i].name);
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    ffi.get_version(version);
    if (version[0] != 0 || version[1] != 1) /* a change of the second one breaks the interface */
        return fail(ERR_UNSUPPORTED, "%s/libtvm_ffi.so is of version %u.%u.%u, 0.1 is spoken here",
                    folder, version[0], version[1], version[2]);
    TRY(load(folder, library, &handle));
    ffi.is_open = true;
    return OK;
}

enum status tvm_ffi_open(const char *folder, const char *library)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    enum status status;

    pthread_mutex_lock(&lock);
    status = ffi.is_open ? OK : open_once(folder, library);
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- calls ----------------------------------------------------------------------------------- */

/* XGrammar's words start with "[HH:MM:SS] /some/file.cc:123: ", of no use to a client. */
static struct ffi_bytes without_origin(struct ffi_bytes words)
{
    const char *end = words.data + words.size, *p;

    if (!words.data || words.size == 0 || *words.data != '[')
        return words;
    p = memmem(words.data, words.size, ".cc:", 4);
    if (!p)
        p = memmem(words.data, words.size, ".h:", 3);
    if (!p)
        return words;
    p = (const char *)memchr(p, ':', (size_t)(end - p)) + 1;
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    if (end - p < 2 || p[0] != ':' || p[1] != ' ')
        return words;
    return (struct ffi_bytes){p + 2, (size_t)(end - p - 2)};
}

static bool has_part(struct ffi_bytes words, const char *part)
{
    return memmem(words.data, words.size, part, strlen(part)) != NULL;
}

static enum status fail_with_its_words(enum status refusal)
{
    const struct ffi_error *error;
    void *taken = NULL;
    struct ffi_bytes words;
    enum status status;

    ffi.take_error(&taken);
    error = taken;
    if (!error || !error->message.data) {
        if (taken)
            ffi.release(taken);
        return fail(ERR_INTERNAL, "the grammar library failed without a word");
    }
    words = without_origin(error->message);
    if (has_part(words, "bad_alloc") || has_part(words, "length_error"))
        status = fail(ERR_FULL, "the grammar needs more memory than it may take");
    else
        status = fail_in_words(refusal, words.data, words.size);
    ffi.release(taken);
    return status;
}

enum status tvm_ffi_call(void *function, const struct ffi_any *args, int num_args,
                         enum status refusal, struct ffi_any *ret)
{
    *ret = ffi_none(); /* the callee releases what it finds there */
    if (ffi.call(function, args, num_args, ret) == 0)
        return OK;
    *ret = ffi_none();
    return fail_with_its_words(refusal);
}

enum status tvm_ffi_call_global(const char *name, const struct ffi_any *args, int num_args,
                                struct ffi_any *ret)
{
    void *function = NULL;
    enum status status;

    *ret = ffi_none();
    if (ffi.get_global(&(struct ffi_bytes){name, strlen(name)}, &function) != 0)
        return fail_with_its_words(ERR_INTERNAL);
    if (!function)
        return fail(ERR_UNSUPPORTED, "libtvm_ffi.so has no function %s", name);
    status = tvm_ffi_call(function, args, num_args, ERR_INTERNAL, ret);
    ffi.release(function);
    return status;
}

enum status tvm_ffi_string(const char *data, size_t size, struct ffi_any *out)
{
    *out = ffi_none();
    return ffi.make_string(&(struct ffi_bytes){data, size}, out) == 0
               ? OK
               : fail_with_its_words(ERR_INTERNAL);
}

void tvm_ffi_drop(struct ffi_any *any)
{
    if (any->type >= FFI_FIRST_OBJECT)
        ffi.release(any->object);
    *any = ffi_none();
}

/* ---- methods --------------------------------------------------------------------------------- */

/* A method's metadata holds ... args\":[RESULT,ARG,...] ..., where each may be an object with lists
 * of its own. -1: it says nothing. */
static int count_args(struct ffi_bytes metadata)
{
    static const char mark[] = "args\\\":[";
    const char *end = metadata.data + metadata.size, *p;
    int depth = 0, count = -1; /* the result is not one */

    p = memmem(metadata.data, metadata.size, mark, sizeof mark - 1);
    if (!p)
        return -1;
    for (p += sizeof mark - 2; p < end; p++) {
        if (*p == '[' || *p == '{')
            count += ++depth == 2;
        else if ((*p == ']' || *p == '}') && --depth == 0)
            break;
    }
    return count;
}

static const struct ffi_method_info *find_method(const struct ffi_method *method)
{
    const struct ffi_type_info *info;
    int32_t type;

    if (ffi.type_of_key(&(struct ffi_bytes){method->type, strlen(method->type)}, &type) != 0) {
        (void)!fail_with_its_words(ERR_UNSUPPORTED);
        return NULL;
    }
    info = ffi.type_info(type);
    for (int32_t i = 0; info && i < info->num_methods; i++) {
        struct ffi_bytes name = info->methods[i].name;

        if (name.size == strlen(method->name) && memcmp(name.data, method->name, name.size) == 0)
            return &info->methods[i];
    }
    return NULL;
}

enum status tvm_ffi_find(const struct ffi_method *methods, int num_methods, void **functions_out)
{
    for (int i = 0; i < num_methods; i++) {
        const struct ffi_method_info *info = find_method(&methods[i]);
        int num_args;

        if (!info)
            return fail(ERR_UNSUPPORTED, "the library has no method %s.%s", methods[i].type,
                        methods[i].name);
        num_args = count_args(info->metadata);
        if (num_args != methods[i].num_args)
            return fail(ERR_UNSUPPORTED,
                        "the library's %s.%s takes %d arguments, %d are given here: it is of"
                        " another version",
                        methods[i].type, methods[i].name, num_args, methods[i].num_args);
        functions_out[i] = info->method.object;
    }
    return OK;
}
