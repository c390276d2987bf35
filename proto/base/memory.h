/*
 * memory: allocation that cannot fail, arenas, a growing byte buffer, scopes that close.
 *
 * Memory whose size we chose ourselves aborts the process when the system has
 * none. A size that comes from outside is checked against its limit by the
 * caller before it gets here; big pools (weights, KV cache) use mem_map, which
 * reports ERR_NO_MEMORY instead.
 *
 * Thread: any for the calls; an arena or a buffer belongs to one thread.
 */
#ifndef PROTO_BASE_MEMORY_H
#define PROTO_BASE_MEMORY_H

#include "proto/base/status.h"

#include <stdint.h>
#include <stdlib.h>

/* ---- heap: zeroed, aborts when the system has none -------------------------------------- */

void *mem_alloc(size_t bytes);
/* Zeroed `count` * `size` bytes; aborts on overflow too. */
void *mem_array(size_t count, size_t size);
/* Like realloc; new bytes are not zeroed. */
void *mem_resize(void *p, size_t bytes);
char *mem_strdup(const char *s);
char *mem_strndup(const char *s, size_t n);
char *mem_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define mem_new(type)          ((type *)mem_alloc(sizeof(type)))
#define mem_new_array(type, n) ((type *)mem_array((n), sizeof(type)))
#define mem_free(p)            free(p)

/* ---- pages: zeroed, 2 MiB aligned when large; untouched ones cost nothing ------------------ */

enum { MEM_BIG_PAGE = 2 << 20 };

/* ERR_NO_MEMORY names `what` and the size. Freed by mem_unmap with the same size. */
MUST_USE enum status mem_map(size_t bytes, const char *what, void **out);
void mem_unmap(void *p, size_t bytes);
/* All of it is about to be written: big pages pay. (Where only parts ever are, they waste.) */
void mem_expect_full(void *p, size_t bytes);
/* Has the system give the pages that [p, p + bytes) lies in, as the first write to each would: for the rest nothing
 * changes, and others may use them meanwhile. false: it can't; it is Linux before 5.14, or has no memory. */
bool mem_touch(void *p, size_t bytes);
/* The same by an access to each page, slower where pages are small. Who maps or unmaps other memory meanwhile, or waits
 * for one who does, need not wait for it (Linux 6.4): for a thread that may not run for a while. */
void mem_touch_each(void *p, size_t bytes);

/* ---- arena: many small allocations, freed together ---------------------------------------- */

struct arena_chunk;
struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used;                /* bytes handed out of the newest chunk */
};

/* 16-byte aligned, not zeroed; valid until the next reset. A zeroed struct arena is empty. */
void *arena_alloc(struct arena *arena, size_t bytes);
/* Zeroed `count` * `size` bytes; aborts on overflow too. */
void *arena_array(struct arena *arena, size_t count, size_t size);
char *arena_strndup(struct arena *arena, const char *s, size_t n);
/* Takes everything back; keeps the largest chunk, so a steady state allocates nothing. */
void arena_reset(struct arena *arena);
void arena_close(struct arena *arena);

#define arena_new_array(arena, type, n) ((type *)arena_array((arena), (n), sizeof(type)))

/* ---- bytes: a growing buffer ---------------------------------------------------------------- */

struct bytes {
    uint8_t *data;
    size_t size;
    size_t capacity;
};

void bytes_append(struct bytes *bytes, const void *data, size_t size);
void bytes_printf(struct bytes *bytes, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Room for `size` more bytes; returns where they go. The caller raises bytes->size. */
void *bytes_reserve(struct bytes *bytes, size_t size);
/* The buffer as a C string: a NUL is kept behind the last byte, not counted in size. */
const char *bytes_text(struct bytes *bytes);
void bytes_close(struct bytes *bytes);

/* ---- scopes that close ------------------------------------------------------------------------ */

/* AUTO_FREE(block_pool) struct block_pool *pool = …;  calls block_pool_free(pool) when the
 * scope ends, on every path; `return give(pool)` or `*out = give(pool)` hands it to the caller.
 * The type's header says DEFINE_AUTO_FREE(block_pool). */
#define AUTO_FREE(name) __attribute__((cleanup(name##_auto_free_)))
#define DEFINE_AUTO_FREE(name)                                                                     \
    __attribute__((unused)) static inline void name##_auto_free_(struct name **p_)                 \
    {                                                                                              \
        name##_free(*p_);                                                                          \
    }
/* AUTO_CLOSE(bytes) struct bytes out = {0};  calls bytes_close(&out). */
#define AUTO_CLOSE(name) __attribute__((cleanup(name##_close)))
/* AUTO_MEM char *text = mem_strdup(…);  frees plain memory. */
#define AUTO_MEM __attribute__((cleanup(mem_auto_free_)))

static inline void mem_auto_free_(void *p)
{
    free(*(void **)p);
}

#define give(p)                                                                                    \
    ({                                                                                             \
        typeof(p) given_ = (p);                                                                    \
        (p) = NULL;                                                                                \
        given_;                                                                                    \
    })

/* ---- arithmetic on sizes from outside ------------------------------------------------------- */

/* true: the product or sum does not fit. */
#define mul_overflows(a, b, out) __builtin_mul_overflow((a), (b), (out))
#define add_overflows(a, b, out) __builtin_add_overflow((a), (b), (out))

#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))
#define MIN(a, b)                                                                                  \
    ({                                                                                             \
        typeof(a) min_a_ = (a);                                                                    \
        typeof(b) min_b_ = (b);                                                                    \
        min_a_ < min_b_ ? min_a_ : min_b_;                                                         \
    })
#define MAX(a, b)                                                                                  \
    ({                                                                                             \
        typeof(a) max_a_ = (a);                                                                    \
        typeof(b) max_b_ = (b);                                                                    \
        max_a_ > max_b_ ? max_a_ : max_b_;                                                         \
    })
#define CONTAINER_OF(pointer, type, member)                                                        \
    ((type *)((char *)(pointer) - offsetof(type, member)))

#endif
