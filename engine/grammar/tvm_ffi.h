/*
 * tvm_ffi: the smallest client of TVM-FFI's C interface (0.1.x), which XGrammar speaks.
 *
 * What is used of the interface is written out here, so that building needs none of it. A value is
 * a struct ffi_any. Arguments are views: a callee takes no reference. What a call returns is the
 * caller's, until tvm_ffi_drop.
 *
 * Thread: any, once tvm_ffi_open has returned.
 */
#ifndef ENGINE_GRAMMAR_TVM_FFI_H
#define ENGINE_GRAMMAR_TVM_FFI_H

#include "proto/base/memory.h"

enum ffi_type {
    FFI_NONE = 0,
    FFI_INT = 1,
    FFI_BOOL = 2, /* in .i */
    FFI_TENSOR = 7,
    FFI_BYTES_VIEW = 9,    /* a struct ffi_bytes */
    FFI_FIRST_OBJECT = 64, /* from here on: a counted reference */
};

struct ffi_bytes {
    const char *data;
    size_t size;
};

struct ffi_object { /* the head of each */
    uint64_t references;
    int32_t type;
    uint32_t pad;
    void (*deleter)(void *self, int flags);
};

struct ffi_any {
    int32_t type; /* enum ffi_type, or the type of the object */
    uint32_t small_size;
    union {
        int64_t i;
        void *p;
        struct ffi_object *object;
    };
};

/* DLPack's DLTensor, on the CPU. */
struct ffi_tensor {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t num_dims;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } element;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

/* A method of a type that a library registers. */
struct ffi_method {
    const char *type, *name;
    int num_args; /* `self` included */
};

/* Loads FOLDER/libtvm_ffi.so, then FOLDER/`library`, which registers its types; neither is ever
 * unloaded. ERR_NOT_FOUND: one is not there; ERR_UNSUPPORTED: it is not of the version that is
 * spoken here. */
MUST_USE enum status tvm_ffi_open(const char *folder, const char *library);

/* Looks each method up. ERR_UNSUPPORTED: it is not there, or takes another number of arguments:
 * they change between patch releases, and a call with the wrong ones would be refused only when it
 * is made. */
MUST_USE enum status tvm_ffi_find(const struct ffi_method *methods, int num_methods,
                                  void **functions_out);

/* Calls a function; *ret is none if it fails. Its own words become the sentence. ERR_FULL: it was
 * out of memory; `refusal` otherwise. */
MUST_USE enum status tvm_ffi_call(void *function, const struct ffi_any *args, int num_args,
                                  enum status refusal, struct ffi_any *ret);
/* Calls a function of the global table. */
MUST_USE enum status tvm_ffi_call_global(const char *name, const struct ffi_any *args, int num_args,
                                         struct ffi_any *ret);
/* A string of any bytes. */
MUST_USE enum status tvm_ffi_string(const char *data, size_t size, struct ffi_any *out);

/* Releases what a value holds and makes it none. */
void tvm_ffi_drop(struct ffi_any *any);

static inline struct ffi_any ffi_none(void)
{
    return (struct ffi_any){.type = FFI_NONE};
}

static inline struct ffi_any ffi_int(int64_t i)
{
    return (struct ffi_any){.type = FFI_INT, .i = i};
}

static inline struct ffi_any ffi_bool(bool b)
{
    return (struct ffi_any){.type = FFI_BOOL, .i = b};
}

#define AUTO_DROP __attribute__((cleanup(tvm_ffi_drop)))

#endif
