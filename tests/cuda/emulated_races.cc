/*
 * emulated_races: what threads of a kernel do to the same memory, without anything between that puts one before the
 * other. A module whose kernels are compiled with -fsanitize=thread calls the functions below, which are here in the
 * place of that sanitizer's own, at each access; and links this file.
 *
 * Two accesses of two threads of a block are in order where a __syncthreads lies between, or, of a warp, a
 * __syncwarp: no other word says anything about memory, whatever order lanes really run in. Two blocks of a launch are
 * in none. What cp_async_16 brings is not there, for anybody, until who asked for it has waited.
 *
 * Atomics may meet each other, and be read by who says volatile. What is remembered of a word of 4 bytes is who wrote
 * to it last, and who read it since; of memory that is not shared there is only so much room. So a race may go unseen.
 */
#include "tests/cuda/emulated_parts.h"

#include <sys/mman.h>

enum { NOBODY = -1, MANY = -2 };

/* Of one kind of access to a word of 4 bytes. */
struct touch {
    int16_t thread, warp; /* MANY: several, of that warp or not */
    uint8_t bytes;        /* which of them, a bit each */
    uint32_t barriers, syncs;
    int32_t block;
    const void *line;
};

struct cell {
    uintptr_t word;
    struct touch read, write;      /* the last ones */
    int32_t launch;                /* of shared memory, block: what it is of; else there is nothing in it yet */
    bool is_atomic, is_on_its_way; /* what was written */
};

static const struct touch nothing = {NOBODY, NOBODY, 0, 0, 0, 0, NULL};
static const size_t num_cells[NUM_SPACES] = {1 << 16, 1 << 16, 1 << 18};

/* Of a stream: they end with its thread. */
static thread_local struct memory {
    struct cell *cells[NUM_SPACES];

    ~memory()
    {
        for (int i = 0; i < NUM_SPACES; i++)
            if (cells[i])
                munmap(cells[i], num_cells[i] * sizeof(struct cell));
    }
} memory;

static struct cell *cell_of(const struct toucher &by, uintptr_t word)
{
    size_t count = num_cells[by.space];
    int32_t launch = by.space == GLOBAL ? by.launch : by.block;

    if (!memory.cells[by.space]) {
        void *pages = mmap(NULL, count * sizeof(struct cell), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

        if (pages == MAP_FAILED) {
            perror("emulated_races");
            abort();
        }
        memory.cells[by.space] = (struct cell *)pages;
    }

    struct cell *cell = &memory.cells[by.space][word % count];

    if (cell->word != word || cell->launch != launch)
        *cell = {word, nothing, nothing, launch, false, false};
    return cell;
}

static bool is_before(const struct touch &touch, uint8_t bytes, const struct toucher &by)
{
    if (!(touch.bytes & bytes) || (touch.block == by.block && touch.thread == by.thread))
        return true;
    if (touch.block != by.block)
        return false;
    return touch.barriers < by.barriers || (touch.warp == by.thread / LANES && touch.syncs < by.syncs);
}

static void print_line(const void *line)
{
    Dl_info info;

    if (line && dladdr(line, &info))
        fprintf(stderr, " (%s+0x%zx)", strrchr(info.dli_fname, '/') ? strrchr(info.dli_fname, '/') + 1 : info.dli_fname,
                (size_t)((const char *)line - (const char *)info.dli_fbase));
}

__attribute__((noreturn)) static void die_of_race(const struct touch &touch, const char *had, const char *does,
                                                  const struct toucher &by, const void *p, const void *line)
{
    fprintf(stderr, "emulated_races: first");
    print_line(touch.line);
    fprintf(stderr, ", then");
    print_line(line);
    fprintf(stderr, "\n");
    if (touch.thread == MANY)
        emulated_die("%s %s memory at %p, which several threads have %s: nothing puts one before the other", does,
                     by.space == GLOBAL ? "global" : "shared", p, had);
    emulated_die("%s %s memory at %p, which thread %d%s has %s: nothing puts one before the other", does,
                 by.space == GLOBAL ? "global" : "shared", p, touch.thread,
                 touch.block == by.block ? "" : " of another block", had);
}

static void set(struct touch *touch, uint8_t bytes, const struct toucher &by, const void *line)
{
    *touch = {(int16_t)by.thread, (int16_t)(by.thread / LANES), bytes, by.barriers, by.syncs, by.block, line};
}

/* Of reads that are in no order all are remembered. */
static void add_read(struct touch *read, uint8_t bytes, const struct toucher &by, const void *line)
{
    if (is_before(*read, 15, by)) {
        set(read, bytes, by, line);
        return;
    }
    if (read->block != by.block)
        read->block = read->warp = MANY;
    else if (read->warp != by.thread / LANES)
        read->warp = MANY;
    read->thread = MANY;
    read->bytes |= bytes;
}

/* bytes: of the word, a bit each. */
static void touch_word(enum access access, uintptr_t word, uint8_t bytes, const struct toucher &by, const void *line)
{
    struct cell *cell = cell_of(by, word);
    const void *p = (const void *)(word * 4);
    bool reads = access == READ || access == CAREFUL;

    if (access == ARRIVE) {
        set(&cell->write, bytes, by, line);
        cell->is_on_its_way = false;
        return;
    }
    if (cell->is_on_its_way)
        die_of_race(cell->write, "asked for and not waited for", reads ? "reads" : "writes", by, p, line);
    if (!is_before(cell->write, bytes, by) && !(cell->is_atomic && (access == ATOMIC || access == CAREFUL)))
        die_of_race(cell->write, "written", reads ? "reads" : "writes", by, p, line);
    if (reads) {
        if (access == READ) /* of the others nobody has to be afraid: they ask again */
            add_read(&cell->read, bytes, by, line);
        return;
    }
    if (!is_before(cell->read, bytes, by))
        die_of_race(cell->read, "read", "writes", by, p, line);
    set(&cell->write, bytes, by, line);
    cell->is_atomic = access == ATOMIC;
    cell->is_on_its_way = access == FETCH;
}

static void touch(enum access access, const void *p, size_t bytes, const void *line)
{
    uintptr_t at = (uintptr_t)p, end = at + bytes;
    struct toucher by;

    if (bytes == 0 || !emulated_find_toucher(p, &by))
        return;
    for (uintptr_t word = at / 4; word * 4 < end; word++) {
        uint8_t some = 15;

        if (word * 4 < at)
            some &= (uint8_t)(15 << at % 4);
        if (word * 4 + 4 > end)
            some &= (uint8_t)(15 >> (4 - end % 4));
        touch_word(access, word, some, by, line);
    }
}

__attribute__((constructor)) static void begin()
{
    emulated_watch = touch;
}

/* ---- what the compiler calls ----------------------------------------------------------------- */

#define LINE __builtin_return_address(0)

#define OF_SIZE(n)                                                                                                 \
    void __tsan_read##n(void *p)                                                                                   \
    {                                                                                                              \
        touch(READ, p, n, LINE);                                                                                   \
    }                                                                                                              \
    void __tsan_write##n(void *p)                                                                                  \
    {                                                                                                              \
        touch(WRITE, p, n, LINE);                                                                                  \
    }                                                                                                              \
    void __tsan_volatile_read##n(void *p)                                                                          \
    {                                                                                                              \
        touch(CAREFUL, p, n, LINE);                                                                                \
    }                                                                                                              \
    void __tsan_volatile_write##n(void *p)                                                                         \
    {                                                                                                              \
        touch(WRITE, p, n, LINE);                                                                                  \
    }

#define ATOMICS(bits)                                                                                              \
    uint##bits##_t __tsan_atomic##bits##_load(const uint##bits##_t *p, int)                                        \
    {                                                                                                              \
        touch(CAREFUL, p, bits / 8, LINE);                                                                         \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                               \
    }                                                                                                              \
    void __tsan_atomic##bits##_store(uint##bits##_t *p, uint##bits##_t x, int)                                     \
    {                                                                                                              \
        touch(ATOMIC, p, bits / 8, LINE);                                                                          \
        __atomic_store_n(p, x, __ATOMIC_SEQ_CST);                                                                  \
    }                                                                                                              \
    bool __tsan_atomic##bits##_compare_exchange_weak(uint##bits##_t *p, uint##bits##_t *old, uint##bits##_t x,     \
                                                     int, int)                                                     \
    {                                                                                                              \
        touch(ATOMIC, p, bits / 8, LINE);                                                                          \
        return __atomic_compare_exchange_n(p, old, x, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                   \
    }

extern "C" {
OF_SIZE(1)
OF_SIZE(2)
OF_SIZE(4)
OF_SIZE(8)
OF_SIZE(16)
ATOMICS(8)
ATOMICS(32)
ATOMICS(64)

void __tsan_init()
{
}

void __tsan_atomic_thread_fence(int)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void __tsan_read_range(void *p, unsigned long bytes)
{
    touch(READ, p, bytes, LINE);
}

void __tsan_write_range(void *p, unsigned long bytes)
{
    touch(WRITE, p, bytes, LINE);
}

/* Copies that the compiler leaves to the library. */
void *emulated_memcpy(void *to, const void *from, size_t bytes)
{
    touch(READ, from, bytes, LINE);
    touch(WRITE, to, bytes, LINE);
    return memcpy(to, from, bytes);
}
}
