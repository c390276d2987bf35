/*
 * reload: the weights of another file, loaded beside those in use.
 *
 * On a thread of its own, of low priority, with a device of its own: steps go on meanwhile. The other model
 * is a whole one, so it may be of other tensor types; what the engine, the KV cache and the other ranks know of the
 * shape of the running one must be the same. Whether its words are, the engine has seen.
 *
 * Thread: one, the wire thread; the model that comes out is the device thread's.
 */
#ifndef WORKER_RELOAD_H
#define WORKER_RELOAD_H

#include "proto/base/mailbox.h"
#include "worker/models/model.h"

struct reload_options {
    const char *path;
    const struct model_file *running; /* borrowed until the end */
    struct model_options model; /* without callbacks; work: what it adds to once it runs */
    const char *isa, *cuda_module, *cublaslt; /* as of worker_options */
    int32_t ordinal, cublaslt_rows; /* as of device_options: the weights are packed for it */
    struct device *device;      /* that is to run it */
};

/* A model without a KV cache, and the file that it comes from. */
struct reloaded {
    struct model *model;
    struct model_file *file;
    uint64_t fingerprint;
    double load_ms;
};

struct reload;

/* When it is over, reload_mail lies in `over`; then reload_end. ERR_IO: there is no thread for it. */
MUST_USE enum status reload_start(const struct reload_options *options, struct mailbox *over,
                                  struct reload **out);
struct mail *reload_mail(struct reload *reload);
/* Of the weights, so far: 0..1. */
double reload_fraction(const struct reload *reload);
/* Waits for the end and frees `reload`. The failure is the loading's: the file is not there, does not hold together,
 * does not fit, or there is no memory for it; nothing has changed. */
MUST_USE enum status reload_end(struct reload *reload, struct reloaded *out);
/* Gives it up and waits: then its mail lies in `over`, and with that taken out, reload_free. */
void reload_stop(struct reload *reload);
void reload_free(struct reload *reload);

/* ERR_MISMATCH: the first thing that differs, with both values. */
MUST_USE enum status reload_check_fit(const struct model_file *running,
                                      const struct model_file *other);

#endif
