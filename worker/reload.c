#include "worker/reload.h"

#include "worker/layers/linear.h"

#include "proto/base/clock.h"
#include "proto/base/trace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NICENESS = 10 };

struct reload {
    struct reload_options options;
    char *path;
    struct mailbox *over;
    struct mail mail;
    pthread_t thread;
    _Atomic bool is_given_up;
    _Atomic int32_t per_mille;

    /* the thread's until it is over */
    struct reloaded loaded;
    enum status status;
    char text[1024];
};

/* ---- does it fit? ----------------------------------------------------------------------------- */

/* What the KV cache, the exchanges of the ranks and the engine are made for. Constants of the arithmetic, as
 * the base of RoPE, are the other model's own. */
static const struct {
    const char *name;
    size_t place;
} dimensions[] = {
#define DIMENSION(member) {#member, offsetof(struct model_config, member)}
    DIMENSION(num_layers),   DIMENSION(hidden_size), DIMENSION(intermediate_size),
    DIMENSION(num_heads),    DIMENSION(num_kv_heads), DIMENSION(head_dim),
    DIMENSION(vocab_size),   DIMENSION(max_position), DIMENSION(sliding_window),
    DIMENSION(sliding_pattern),
#undef DIMENSION
};

static int32_t number_at(const void *base, size_t place)
{
    return *(const int32_t *)((const char *)base + place);
}

enum status reload_check_fit(const struct model_file *running, const struct model_file *other)
{
    const struct model_config *a = model_file_config(running), *b = model_file_config(other);

    if (model_file_is_simulated(running) || model_file_is_simulated(other))
        return fail(ERR_UNSUPPORTED, "a simulated device has no weights to load");
    if (strcmp(a->architecture, b->architecture) != 0)
        return fail(ERR_MISMATCH, "the architecture is %s here, %s there", a->architecture,
                    b->architecture);
    for (size_t i = 0; i < COUNT_OF(dimensions); i++) {
        int32_t ours = number_at(a, dimensions[i].place),
                theirs = number_at(b, dimensions[i].place);

        if (ours != theirs)
            return fail(ERR_MISMATCH, "%s is %d here, %d there", dimensions[i].name, ours, theirs);
    }
    return OK;
}

/* ---- the thread ------------------------------------------------------------------------------- */

static void note_progress(void *user, double fraction)
{
    struct reload *reload = user;

    atomic_store_explicit(&reload->per_mille, (int32_t)(fraction * 1000), memory_order_relaxed);
}

/* Codes of 8 bits that do not stay what they are become 16. */
static int64_t bytes_in_memory(const struct device *dev, const struct model_file *file)
{
    int64_t bytes = model_file_bytes(file);

    for (int32_t i = 0; i < model_file_num_tensors(file); i++) {
        const struct tensor *tensor = model_file_tensor_at(file, i);

        if (tensor->type == TYPE_F8_E4M3 && !linear_keeps_codes(dev, tensor))
            bytes += tensor->num_rows * tensor->num_columns;
    }
    return bytes;
}

/* Memory is only found wanting when it is touched, and then something of the machine's choice is killed. */
static enum status check_memory(const struct reload *reload, const struct device *dev,
                                const struct model_file *file)
{
    int64_t wanted = bytes_in_memory(dev, file) / reload->options.model.world;
    int64_t available = device_memory(dev).available_bytes;

    if (available < wanted)
        return fail(ERR_NO_MEMORY, "%lld MiB are wanted beside the weights in use, %lld MiB are free",
                    (long long)(wanted >> 20), (long long)(available >> 20));
    return OK;
}

static enum status load(struct reload *reload, struct device *dev)
{
    struct reloaded *loaded = &reload->loaded;
    struct model_options options = reload->options.model;

    TRY(reload_check_fit(reload->options.running, loaded->file));
    TRY(check_memory(reload, dev, loaded->file));
    options.work = NULL; /* the device thread's to add to */
    options.is_given_up = &reload->is_given_up;
    options.progress = note_progress;
    options.user = reload;
    TRY(model_load(dev, loaded->file, &options, &loaded->model));
    loaded->fingerprint = model_file_fingerprint(loaded->file);
    model_file_drop_pages(loaded->file, 0, model_file_bytes(loaded->file));
    return OK;
}

static enum status open_and_load(struct reload *reload)
{
    struct device *dev;
    enum status status;

    /* Its sentence has the path. */
    TRY(model_file_open_parts(reload->path, MODEL_WITHOUT_WORDS, &reload->loaded.file));
    TRY(device_open(&(struct device_options){
                        .name = device_has_own_memory(reload->options.device) ? "cuda" : "cpu",
                        .isa = reload->options.isa,
                        .num_threads = 1,
                        .ordinal = reload->options.ordinal,
                        .module = reload->options.cuda_module,
                        .cublaslt_rows = reload->options.cublaslt_rows,
                        .cublaslt = reload->options.cublaslt},
                    &dev));
    status = load(reload, dev);
    if (status == OK)
        model_adopt(reload->loaded.model, reload->options.device, reload->options.model.work);
    device_close(dev);
    return fail_in(reload->path, status);
}

static void *run(void *user)
{
    struct reload *reload = user;
    int64_t start_ns = clock_now_ns();

    trace_name_thread("reload");
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICENESS);
    reload->status = open_and_load(reload);
    if (reload->status != OK)
        snprintf(reload->text, sizeof reload->text, "%s", fail_text());
    reload->loaded.load_ms = clock_ms(clock_now_ns() - start_ns);
    if (mailbox_push(reload->over, &reload->mail) != OK)
        ASSERT(false, "%s", fail_text()); /* it has room for it */
    return NULL;
}

/* ---- life ------------------------------------------------------------------------------------- */

void reload_free(struct reload *reload)
{
    model_free(reload->loaded.model);
    model_file_free(reload->loaded.file);
    mem_free(reload->path);
    mem_free(reload);
}

enum status reload_start(const struct reload_options *options, struct mailbox *over,
                         struct reload **out)
{
    struct reload *reload = mem_new(struct reload);
    int error;

    reload->options = *options;
    reload->path = mem_strdup(options->path);
    reload->over = over;
    error = pthread_create(&reload->thread, NULL, run, reload);
    if (error) {
        reload_free(reload);
        return fail(ERR_IO, "no thread to load weights: %s", strerror(error));
    }
    *out = reload;
    return OK;
}

struct mail *reload_mail(struct reload *reload)
{
    return &reload->mail;
}

double reload_fraction(const struct reload *reload)
{
    return atomic_load_explicit(&reload->per_mille, memory_order_relaxed) / 1e3;
}

enum status reload_end(struct reload *reload, struct reloaded *out)
{
    enum status status;

    pthread_join(reload->thread, NULL);
    status = reload->status == OK ? OK : fail(reload->status, "%s", reload->text);
    if (status == OK) {
        *out = reload->loaded;
        reload->loaded = (struct reloaded){0};
    }
    reload_free(reload);
    return status;
}

void reload_stop(struct reload *reload)
{
    atomic_store(&reload->is_given_up, true);
    pthread_join(reload->thread, NULL);
}
