#include "proto/base/memory.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static void *or_abort(void *p, size_t bytes)
{
    ASSERT(p != NULL, "out of memory: %zu bytes wanted", bytes);
    return p;
}

void *mem_alloc(size_t bytes)
{
    return or_abort(calloc(1, bytes ? bytes : 1), bytes);
}

void *mem_array(size_t count, size_t size)
{
    size_t bytes;

    ASSERT(!mul_overflows(count, size, &bytes), "%zu items of %zu bytes", count, size);
    return mem_alloc(bytes);
}

void *mem_resize(void *p, size_t bytes)
{
    return or_abort(realloc(p, bytes ? bytes : 1), bytes);
}

char *mem_strdup(const char *s)
{
    return mem_strndup(s, strlen(s));
}

char *mem_strndup(const char *s, size_t n)
{
    char *copy = mem_alloc(n + 1);

    memcpy(copy, s, n);
    return copy;
}

char *mem_printf(const char *format, ...)
{
    va_list args;
    char *text = NULL;
    int n;

    va_start(args, format);
    n = vasprintf(&text, format, args);
    va_end(args);
    ASSERT(n >= 0);
    return text;
}

/* ---- pages -------------------------------------------------------------------------------- */

enum status mem_map(size_t bytes, const char *what, void **out)
{
    size_t align = bytes >= MEM_BIG_PAGE ? MEM_BIG_PAGE : 4096, padded;

    if (add_overflows(bytes, align, &padded))
        return fail(ERR_NO_MEMORY, "%s needs %zu bytes, which no machine has", what, bytes);

    char *base = mmap(NULL, padded, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (base == MAP_FAILED)
        return fail(ERR_NO_MEMORY, "the system refuses %.1f MiB for %s: %m",
                    (double)bytes / (1 << 20), what);

    /* Cut the aligned middle out, so that mem_unmap needs the size alone. */
    size_t page_bytes = (bytes + 4095) & ~(size_t)4095;
    char *aligned = (char *)(((uintptr_t)base + align - 1) & ~(uintptr_t)(align - 1));

    if (page_bytes == 0)
        page_bytes = 4096;
    if (aligned > base)
        munmap(base, (size_t)(aligned - base));
    char *base_end = base + ((padded + 4095) & ~(size_t)4095);
    if (base_end > aligned + page_bytes)
        munmap(aligned + page_bytes, (size_t)(base_end - aligned - page_bytes));
    *out = aligned;
    return OK;
}

void mem_expect_full(void *p, size_t bytes)
{
    if (bytes >= MEM_BIG_PAGE)
        madvise(p, bytes & ~(size_t)4095, MADV_HUGEPAGE);
}

bool mem_touch(void *p, size_t bytes)
{
#if !defined(MADV_POPULATE_WRITE)
    enum { MADV_POPULATE_WRITE = 23 };
#endif
    size_t into_page = (uintptr_t)p & 4095;

    return madvise((char *)p - into_page, bytes + into_page, MADV_POPULATE_WRITE) == 0;
}

/* Atomic, as another may write there now; not for a sanitizer to see, for whom it is a race all the same. */
__attribute__((no_sanitize("thread"))) static void touch(uint8_t *p)
{
#if defined(__x86_64__)
    __asm__ volatile("lock orb $0, %0" : "+m"(*p));
#else
    __atomic_fetch_or(p, 0, __ATOMIC_RELAXED);
#endif
}

void mem_touch_each(void *p, size_t bytes)
{
    uint8_t *first = p, *end = first + bytes;

    if (bytes == 0)
        return;
    touch(first);
    for (uint8_t *page = first + (4096 - (uintptr_t)first % 4096); page < end; page += 4096)
        touch(page);
}

void mem_unmap(void *p, size_t bytes)
{
    size_t page_bytes = (bytes + 4095) & ~(size_t)4095;

    if (p)
        munmap(p, page_bytes ? page_bytes : 4096);
}

/* ---- arena -------------------------------------------------------------------------------- */

struct arena_chunk {
    struct arena_chunk *next;
    size_t capacity;
    _Alignas(16) unsigned char data[];
};

enum { ARENA_FIRST_CHUNK = 4096 };

void *arena_alloc(struct arena *arena, size_t bytes)
{
    size_t rounded = (bytes + 15) & ~(size_t)15;

    ASSERT(rounded >= bytes);
    if (!arena->chunks || arena->chunks->capacity - arena->used < rounded) {
        size_t capacity = arena->chunks ? arena->chunks->capacity * 2 : ARENA_FIRST_CHUNK;
        struct arena_chunk *chunk;

        if (capacity < rounded)
            capacity = rounded;
        chunk = or_abort(malloc(sizeof *chunk + capacity), capacity);
        chunk->capacity = capacity;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
        arena->used = 0;
    }
    void *p = arena->chunks->data + arena->used;
    arena->used += rounded;
    return p;
}

void *arena_array(struct arena *arena, size_t count, size_t size)
{
    size_t bytes;

    ASSERT(!mul_overflows(count, size, &bytes), "%zu items of %zu bytes", count, size);
    return memset(arena_alloc(arena, bytes), 0, bytes);
}

char *arena_strndup(struct arena *arena, const char *s, size_t n)
{
    char *copy = arena_alloc(arena, n + 1);

    memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

static void free_chunks(struct arena_chunk *chunk)
{
    while (chunk) {
        struct arena_chunk *next = chunk->next;

        free(chunk);
        chunk = next;
    }
}

void arena_reset(struct arena *arena)
{
    if (arena->chunks) {
        free_chunks(arena->chunks->next);    /* chunks double: the newest is the largest */
        arena->chunks->next = NULL;
    }
    arena->used = 0;
}

void arena_close(struct arena *arena)
{
    free_chunks(arena->chunks);
    *arena = (struct arena){0};
}

/* ---- bytes -------------------------------------------------------------------------------- */

void *bytes_reserve(struct bytes *bytes, size_t size)
{
    size_t wanted;

    ASSERT(!add_overflows(bytes->size, size, &wanted));
    if (wanted > bytes->capacity || !bytes->data) { /* never NULL: callers add to it */
        size_t capacity = bytes->capacity ? bytes->capacity : 64;

        while (capacity < wanted)
            capacity *= 2;
        bytes->data = mem_resize(bytes->data, capacity);
        bytes->capacity = capacity;
    }
    return bytes->data + bytes->size;
}

void bytes_append(struct bytes *bytes, const void *data, size_t size)
{
    if (size == 0)
        return;
    memcpy(bytes_reserve(bytes, size), data, size);
    bytes->size += size;
}

void bytes_printf(struct bytes *bytes, const char *format, ...)
{
    char *end = (char *)bytes_reserve(bytes, 64);
    size_t room = bytes->capacity - bytes->size;
    va_list args, again;
    int n;

    ASSERT(format);
    va_start(args, format);
    va_copy(again, args);
    n = vsnprintf(end, room, format, args);
    va_end(args);
    ASSERT(n >= 0);
    if ((size_t)n >= room)
        vsnprintf((char *)bytes_reserve(bytes, (size_t)n + 1), (size_t)n + 1, format, again);
    va_end(again);
    bytes->size += (size_t)n;
}

const char *bytes_text(struct bytes *bytes)
{
    *(char *)bytes_reserve(bytes, 1) = '\0';
    return (const char *)bytes->data;
}

void bytes_close(struct bytes *bytes)
{
    free(bytes->data);
    *bytes = (struct bytes){0};
}
