#include "tests/cuda/emulated_parts.h"

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

static const uint32_t EVERY_LANE = 0xffffffff;

__thread struct uint3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- symbols: names of kernels, and where their __shared__ variables are --------------------- */

struct module {
    uintptr_t base;
    size_t bytes; /* of addresses; 0: not found */
    char *tls;    /* this thread's variables of it */
    const Elf64_Sym *symbols;
    size_t count;
    const char *names;
};

static void read_symbols(const char *path, struct module *out)
{
    int fd = open(*path ? path : "/proc/self/exe", O_RDONLY | O_CLOEXEC);
    struct stat st;
    const char *file = NULL;

    if (fd >= 0 && fstat(fd, &st) == 0)
        file = (const char *)mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (!file || file == MAP_FAILED)
        return;

    const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
    const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + header->e_shoff);

    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB)
            continue;
        out->symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        out->count = sections[i].sh_size / sizeof *out->symbols;
        out->names = file + sections[sections[i].sh_link].sh_offset;
    }
}

/* Where *user, an address, is in this module, the module goes there. */
static int read_module_of(struct dl_phdr_info *info, size_t info_bytes, void *user)
{
    struct module *out = (struct module *)user;
    struct module module = {info->dlpi_addr, 0, (char *)info->dlpi_tls_data, NULL, 0, NULL};

    (void)info_bytes;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD)
            module.bytes = max(module.bytes, info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
    if (out->base - module.base >= module.bytes)
        return 0;
    read_symbols(info->dlpi_name, &module); /* stays mapped */
    *out = module;
    return 1;
}

static struct module find_module(const void *address)
{
    struct module module = {};

    module.base = (uintptr_t)address;
    dl_iterate_phdr(read_module_of, &module);
    return module;
}

void emulated_print_kernel(const void *kernel)
{
    struct module module = find_module(kernel);

    for (size_t i = 0; i < module.count; i++) {
        const Elf64_Sym *s = &module.symbols[i];

        if (ELF64_ST_TYPE(s->st_info) == STT_FUNC && module.base + s->st_value == (uintptr_t)kernel) {
            char *name = abi::__cxa_demangle(module.names + s->st_name, NULL, NULL, NULL);

            fprintf(stderr, "%s", name ? name : module.names + s->st_name);
            return;
        }
    }
    fprintf(stderr, "kernel %p", kernel);
}

/* ---- the machine ----------------------------------------------------------------------------- */

struct fiber {
#ifdef __x86_64__
    void *sp; /* where it stopped */
#else
    ucontext_t context;
#endif
    char *stack; /* its lowest byte */
    size_t stack_bytes;
    void *fake_stack; /* ASan's */
    struct fiber *next_free;
};

struct copy { /* of cp_async_16 */
    void *to;
    const void *from;
    int group; /* commits before it */
};

enum { MAX_COPIES = 64 }; /* of a thread, on their way */

struct thread {
    struct fiber *fiber; /* NULL: it has not begun */
    int commits;
    int first_copy, num_copies; /* in the ring of its copies */
    uint32_t barriers, syncs;   /* that it is behind */
};

/* Sets of lanes; one that runs is in none of them. */
struct warp {
    uint32_t ready, yielded, at_word, at_barrier, returned;
    const char *word; /* that those at_word wait in */
    /* What lanes came with. They read it while others of them come to the next word, but for the one after it all
     * must have read. */
    uint64_t values[2][LANES];
    int turn;
};

struct shared { /* a __shared__ variable */
    char *begin;
    size_t bytes;
};

/* What runs the blocks of one thread of the host. */
struct machine {
    const struct emulated_launch *launch; /* NULL: none */
    int num_threads, current, warp;
    int num_at_barrier, num_returned;
    uint32_t ready_warps, yielded_warps;
    enum order order; /* of this block */
    uint64_t random;
    int64_t num_launches, num_blocks;
    char *slots, *shared, *shared_end;
    struct fiber home, *running, *free;
    int num_fibers;
    struct module module;   /* of the last kernel */
    struct shared *shareds; /* of the module */
    int num_shareds;
    char *shareds_begin, *shareds_end; /* where they all are */
    struct warp warps[MAX_WARPS];
    struct thread threads[MAX_THREADS];
    struct copy copies[MAX_THREADS][MAX_COPIES];
    struct fiber fibers[MAX_THREADS];
};

static __thread struct machine *machine;

/* Memory of a block: 0, what it shares; from 1 on, stacks. Each lies between unreadable pages. */
enum { NUM_SLOTS = MAX_THREADS + 2, SLOT_BYTES = 256 << 10, STEP_BYTES = SLOT_BYTES + PAGE };

static char *open_slot(struct machine *m, int index)
{
    char *slot = m->slots + (size_t)index * STEP_BYTES + PAGE;

    if (mprotect(slot, SLOT_BYTES, PROT_READ | PROT_WRITE)) {
        perror("emulated_cuda: memory of a block");
        abort();
    }
    return slot;
}

/* The machine ends with the thread. */
static thread_local struct machine_owner {
    struct machine *owned;

    ~machine_owner()
    {
        if (!owned)
            return;
        munmap(owned->slots, (size_t)NUM_SLOTS * STEP_BYTES);
        free(owned->shareds);
        free(owned);
    }
} owner;

static void make_machine()
{
    machine = owner.owned = (struct machine *)calloc(1, sizeof *machine);
    machine->slots = (char *)mmap(NULL, (size_t)NUM_SLOTS * STEP_BYTES, PROT_NONE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    machine->shared_end = open_slot(machine, 0) + SLOT_BYTES;
#ifdef __SANITIZE_ADDRESS__
    pthread_attr_t attributes;
    void *stack;

    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &stack, &machine->home.stack_bytes);
    pthread_attr_destroy(&attributes);
    machine->home.stack = (char *)stack;
#endif
}

void (*emulated_watch)(enum access access, const void *p, size_t bytes, const void *line);

static void watch(enum access access, const void *p, size_t bytes)
{
    if (emulated_watch)
        emulated_watch(access, p, bytes, __builtin_return_address(0));
}

bool emulated_find_toucher(const void *p, struct toucher *out)
{
    const struct machine *m = machine;
    char *at = (char *)p;
    int i = 0;

    if (!m || !m->launch)
        return false;
    if (at >= m->shared && at < m->shared_end) {
        out->space = DYNAMIC;
    } else if (emulated_is_device_address(p)) {
        out->space = GLOBAL;
    } else {
        if (at < m->shareds_begin || at >= m->shareds_end)
            return false;
        while (i < m->num_shareds && (size_t)(at - m->shareds[i].begin) >= m->shareds[i].bytes)
            i++;
        if (i == m->num_shareds)
            return false;
        out->space = STATIC;
    }
    out->thread = m->current;
    out->barriers = m->threads[m->current].barriers;
    out->syncs = m->threads[m->current].syncs;
    out->launch = (int32_t)m->num_launches;
    out->block = (int32_t)m->num_blocks;
    return true;
}

void emulated_die(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "emulated_cuda: ");
    if (machine && machine->launch) {
        emulated_print_kernel(machine->launch->kernel);
        fprintf(stderr, ", block (%u, %u, %u), thread %d: ", blockIdx.x, blockIdx.y, blockIdx.z, machine->current);
    }
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    abort();
}

/* No thread can go on. */
__attribute__((noreturn)) static void die_of_waiting(const struct machine *m)
{
    for (int w = 0; w < MAX_WARPS; w++) {
        const struct warp *warp = &m->warps[w];

        if (warp->at_word | warp->at_barrier)
            fprintf(stderr, "emulated_cuda: warp %d: lanes %08x in %s, %08x in __syncthreads, %08x have returned\n",
                    w, warp->at_word, warp->at_word ? warp->word : "no word", warp->at_barrier, warp->returned);
    }
    emulated_die("of %d threads those above wait for others that do not come", m->num_threads);
}

/* ---- fibers ---------------------------------------------------------------------------------- */

#ifdef __x86_64__
extern "C" void emulated_switch(void **sp_out, void *sp);

asm(".text\n"
    ".p2align 4\n"
    ".type emulated_switch, @function\n"
    "emulated_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emulated_switch, . - emulated_switch\n");
#endif

static void switch_to(struct machine *m, struct fiber *to)
{
    struct fiber *from = m->running;

    m->running = to;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
#ifdef __x86_64__
    emulated_switch(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

static void run_threads();

/* One that will begin with the current thread. */
static struct fiber *take_fiber(struct machine *m)
{
    struct fiber *fiber = m->free;

    if (fiber) {
        m->free = fiber->next_free;
        return fiber;
    }

    int index = m->num_fibers++;

    fiber = &m->fibers[index];
    fiber->stack = open_slot(m, 1 + index);
    fiber->stack_bytes = SLOT_BYTES;
#ifdef __x86_64__
    /* Stacks begin in different lines of a page, or they would evict each other from the cache. */
    void **top = (void **)(fiber->stack + SLOT_BYTES - index % 61 * 64);

    *--top = NULL; /* where a backtrace ends */
    *--top = (void *)run_threads;
    fiber->sp = top - 6; /* emulated_switch's registers */
#else
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = SLOT_BYTES;
    makecontext(&fiber->context, run_threads, 0);
#endif
    return fiber;
}

/* ---- whose turn it is ------------------------------------------------------------------------ */

static uint64_t next_random(struct machine *m)
{
    m->random ^= m->random << 13;
    m->random ^= m->random >> 7;
    m->random ^= m->random << 17;
    return m->random;
}

static int choose(struct machine *m, uint32_t set)
{
    if (m->order == FORWARD)
        return __builtin_ctz(set);
    if (m->order == BACKWARD)
        return 31 - __builtin_clz(set);

    int turn = (int)(next_random(m) >> 40 & 31);

    return (__builtin_ctz(set >> turn | set << (-turn & 31)) + turn) & 31;
}

static void make_ready(struct machine *m, int w, uint32_t lanes)
{
    m->warps[w].ready |= lanes;
    m->ready_warps |= 1u << w;
}

static void end_yields(struct machine *m)
{
    for (; m->yielded_warps; m->yielded_warps &= m->yielded_warps - 1) {
        int w = __builtin_ctz(m->yielded_warps);

        make_ready(m, w, m->warps[w].yielded);
        m->warps[w].yielded = 0;
    }
    sched_yield(); /* what they wait for is another thread's */
}

/* Makes another thread the current one. False: all have returned. */
static bool choose_thread(struct machine *m)
{
    if (m->num_returned == m->num_threads)
        return false;
    if (!m->ready_warps && m->yielded_warps)
        end_yields(m);
    if (!m->ready_warps)
        die_of_waiting(m);
    if (m->order == RANDOM || !(m->ready_warps >> m->warp & 1)) /* else a warp goes on as far as it can */
        m->warp = choose(m, m->ready_warps);

    struct warp *warp = &m->warps[m->warp];
    int lane = choose(m, warp->ready);

    warp->ready &= ~(1u << lane);
    if (!warp->ready)
        m->ready_warps &= ~(1u << m->warp);
    m->current = m->warp * LANES + lane;
    threadIdx.x = (unsigned)m->current;
    return true;
}

/* Others run, until it is this thread's turn again. */
static void wait_for_turn(struct machine *m)
{
    struct fiber *self = m->running, *next;

    choose_thread(m);
    next = m->threads[m->current].fiber;
    if (next != self)
        switch_to(m, next ? next : take_fiber(m));
}

static struct warp *current_warp(struct machine *m)
{
    return &m->warps[m->current / LANES];
}

static uint32_t current_lane(struct machine *m)
{
    return 1u << m->current % LANES;
}

static void end_barrier(struct machine *m)
{
    if (m->num_at_barrier == 0 || m->num_at_barrier + m->num_returned < m->num_threads)
        return;
    for (int w = 0; w * LANES < m->num_threads; w++) {
        if (m->warps[w].at_barrier)
            make_ready(m, w, m->warps[w].at_barrier);
        m->warps[w].at_barrier = 0;
    }
    m->num_at_barrier = 0;
}

/* A fiber: runs the current thread and, where that returns without having waited, those after it. */
static void run_threads()
{
    struct machine *m = machine;
    struct fiber *self = m->running;

#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    for (;;) {
        m->threads[m->current].fiber = self;
        m->launch->call(m->launch->closure);

        current_warp(m)->returned |= current_lane(m);
        m->num_returned++;
        end_barrier(m);

        struct fiber *next = choose_thread(m) ? m->threads[m->current].fiber : &m->home;

        if (next) {
            self->next_free = m->free;
            m->free = self;
            switch_to(m, next); /* comes back when another thread is to begin here */
        }
    }
}

/* ---- threads that meet ----------------------------------------------------------------------- */

/* Returns what all lanes of the warp came with, which `combine` (or NULL) has seen. */
static const uint64_t *meet(const char *word, uint32_t mask, uint64_t value, void (*combine)(uint64_t *values))
{
    struct machine *m = machine;
    struct warp *warp = current_warp(m);
    uint64_t *values = warp->values[warp->turn];

    if (mask != EVERY_LANE)
        emulated_die("%s of lanes %08x", word, mask);
    if (warp->at_word && warp->word != word && strcmp(warp->word, word) != 0)
        emulated_die("%s, where lanes %08x of its warp are in %s", word, warp->at_word, warp->word);
    warp->word = word;
    warp->at_word |= current_lane(m);
    values[m->current % LANES] = value;
    if (warp->at_word == EVERY_LANE) {
        if (combine)
            combine(values);
        warp->at_word = 0;
        warp->turn ^= 1;
        make_ready(m, m->current / LANES, EVERY_LANE);
    }
    wait_for_turn(m);
    return values;
}

int emulated_lane()
{
    return machine->current % LANES;
}

const uint64_t *emulated_shuffle(const char *word, unsigned mask, uint64_t value)
{
    return meet(word, mask, value, NULL);
}

void __syncwarp(unsigned mask)
{
    meet("__syncwarp", mask, 0, NULL);
    machine->threads[machine->current].syncs++;
}

static void count_votes(uint64_t *values)
{
    uint64_t votes = 0;

    for (int lane = 0; lane < LANES; lane++)
        votes |= values[lane] << lane;
    values[0] = votes;
}

unsigned __ballot_sync(unsigned mask, int predicate)
{
    return (unsigned)meet("__ballot_sync", mask, predicate != 0, count_votes)[0];
}

void __syncthreads()
{
    struct machine *m = machine;

    current_warp(m)->at_barrier |= current_lane(m);
    m->num_at_barrier++;
    end_barrier(m);
    wait_for_turn(m);
    m->threads[m->current].barriers++;
}

struct fragments {
    int32_t *d;
    const uint32_t *a, *b;
};

/* As simt.h has it. */
template <int K> static void multiply(uint64_t *values)
{
    uint32_t words[24][K / 4]; /* rows of a, then columns of b */
    int16_t wide[24][K];

    for (int lane = 0; lane < LANES; lane++) {
        const struct fragments *f = (const struct fragments *)values[lane];

        for (int part = 0; part < K / 16; part++) {
            int at = 4 * part + lane % 4;

            words[lane / 4][at] = f->a[2 * part];
            words[lane / 4 + 8][at] = f->a[2 * part + 1];
            words[lane / 4 + 16][at] = f->b[part];
        }
    }
    for (int i = 0; i < 24 * K; i++)
        wide[i / K][i % K] = ((const int8_t *)words)[i];
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            int32_t sum = 0, *d = ((const struct fragments *)values[row % 8 * 4 + column / 2])->d;

            for (int k = 0; k < K; k++)
                sum += wide[row][k] * wide[16 + column][k];
            d[row / 8 * 2 + column % 2] = (int32_t)((uint32_t)d[row / 8 * 2 + column % 2] + (uint32_t)sum);
        }
}

void mma_s8_k32(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    struct fragments f = {d, a, b};

    meet("mma_s8_k32", EVERY_LANE, (uintptr_t)&f, multiply<32>);
}

void mma_s8_k16(int32_t d[4], const uint32_t a[2], uint32_t b)
{
    struct fragments f = {d, a, &b};

    meet("mma_s8_k16", EVERY_LANE, (uintptr_t)&f, multiply<16>);
}

struct float_fragments {
    float *d;
    const uint32_t *a, *b;
};

/* Most of what a test of a model on emulated GPUs does is below, in arrays of its own. */
#define UNSANITIZED __attribute__((no_sanitize("address", "undefined")))

/* c + a · b, of COUNT products: at most 8. */
template <int COUNT> UNSANITIZED static float add_products(float c, const double *a, const double *b)
{
    enum { KEPT_BITS = 26 };
    double terms[COUNT + 1], largest = fabs((double)c), sum = c;
    int64_t cut = 0;
    int exponent;

    for (int i = 0; i < COUNT; i++) {
        double size = fabs(terms[i] = a[i] * b[i]);

        largest = size > largest ? size : largest; /* fmax is a call; NaN shows in the sum */
        sum += terms[i];
    }
    terms[COUNT] = c;
    if (largest == 0 || !(fabs(sum) <= (double)INFINITY) || largest == (double)INFINITY)
        return (float)sum;
    exponent = (int)(emulated_bits<uint64_t>(largest) >> 52) - 1023;

    double unit = emulated_bits<double>((uint64_t)(1023 + exponent + 1 - KEPT_BITS) << 52);
    double units = emulated_bits<double>((uint64_t)(1023 - exponent - 1 + KEPT_BITS) << 52);

    for (int i = 0; i <= COUNT; i++)
        cut += (int64_t)(terms[i] * units);
    sum = (double)cut * unit;
    return (float)emulated_bits<double>(emulated_bits<uint64_t>(sum) >> 29 << 29); /* 24 bits, cut off too */
}

/* Number i of a lane's fragment, whose words have one tf32, or two of 16 bits. */
static double bf16_at(const uint32_t *words, int i)
{
    return float_of_bf16((uint16_t)(words[i / 2] >> 16 * (i % 2)));
}

static double half_at(const uint32_t *words, int i)
{
    return float_of_half((uint16_t)(words[i / 2] >> 16 * (i % 2)));
}

static double tf32_at(const uint32_t *words, int i)
{
    return __uint_as_float(words[i] & 0xffffe000);
}

/* K: of them STEP at a time. */
template <int K, int STEP, double (*at)(const uint32_t *, int)>
UNSANITIZED static void multiply_floats(uint64_t *values)
{
    const int in_word = K / 8; /* numbers */
    double a[16][K], b[8][K];

    for (int lane = 0; lane < LANES; lane++) {
        const struct float_fragments *f = (const struct float_fragments *)values[lane];
        int g = lane / 4, t = lane % 4;

        for (int part = 0; part < 2; part++)
            for (int i = 0; i < in_word; i++) {
                int k = part * (K / 2) + in_word * t + i;

                a[g][k] = at(&f->a[2 * part], i);
                a[g + 8][k] = at(&f->a[2 * part + 1], i);
                b[g][k] = at(&f->b[part], i);
            }
    }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            const struct float_fragments *f = (const struct float_fragments *)values[row % 8 * 4 + column / 2];
            float *d = &f->d[row / 8 * 2 + column % 2];

            for (int k = 0; k < K; k += STEP)
                *d = add_products<STEP>(*d, &a[row][k], &b[column][k]);
        }
}

void mma_bf16_k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    struct float_fragments f = {d, a, b};

    meet("mma_bf16_k16", EVERY_LANE, (uintptr_t)&f, multiply_floats<16, 8, bf16_at>);
}

void mma_f16_k16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    struct float_fragments f = {d, a, b};

    meet("mma_f16_k16", EVERY_LANE, (uintptr_t)&f, multiply_floats<16, 8, half_at>);
}

void mma_tf32_k8(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    struct float_fragments f = {d, a, b};

    meet("mma_tf32_k8", EVERY_LANE, (uintptr_t)&f, multiply_floats<8, 4, tf32_at>);
}

struct matrix_rows {
    uint32_t *words;
    const char *row;
};

static void load_matrices(uint64_t *values)
{
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            memcpy(&((const struct matrix_rows *)values[lane])->words[i],
                   ((const struct matrix_rows *)values[8 * i + lane / 4])->row + lane % 4 * 4, 4);
}

static void load_turned_matrices(uint64_t *values)
{
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            uint16_t halves[2];

            for (int part = 0; part < 2; part++)
                memcpy(&halves[part],
                       ((const struct matrix_rows *)values[8 * i + lane % 4 * 2 + part])->row + lane / 4 * 2, 2);
            memcpy(&((const struct matrix_rows *)values[lane])->words[i], halves, 4);
        }
}

static void load(const char *word, uint32_t words[4], const void *row, void (*combine)(uint64_t *values))
{
    struct matrix_rows rows = {words, (const char *)row};

    if ((uintptr_t)row % 16 || emulated_is_device_address(row))
        emulated_die("%s from %p: not shared memory with 16-byte alignment", word, row);
    watch(READ, row, 16);
    meet(word, EVERY_LANE, (uintptr_t)&rows, combine);
}

void ldmatrix_x4(uint32_t words[4], const void *row)
{
    load("ldmatrix_x4", words, row, load_matrices);
}

void ldmatrix_x4_trans(uint32_t words[4], const void *row)
{
    load("ldmatrix_x4_trans", words, row, load_turned_matrices);
}

/* ---- memory, as kernels see it --------------------------------------------------------------- */

char *dynamic_shared()
{
    return machine->shared;
}

void cp_async_16(void *shared, const void *global)
{
    struct machine *m = machine;
    struct thread *thread = &m->threads[m->current];

    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16)
        emulated_die("cp_async_16 to %p from %p, which want 16-byte alignment", shared, global);
    if (emulated_is_device_address(shared) || !emulated_is_reachable(global, 16))
        emulated_die("cp_async_16 to %p from %p: not from global to shared memory", shared, global);
    if (thread->num_copies == MAX_COPIES)
        emulated_die("more than %d cp_async_16 are on their way", (int)MAX_COPIES);
    watch(READ, global, 16);
    watch(FETCH, shared, 16);
    m->copies[m->current][(thread->first_copy + thread->num_copies++) % MAX_COPIES] = {shared, global,
                                                                                       thread->commits};
}

void cp_async_commit()
{
    machine->threads[machine->current].commits++;
}

void emulated_cp_async_wait(int pending)
{
    struct machine *m = machine;
    struct thread *thread = &m->threads[m->current];

    for (; thread->num_copies > 0; thread->num_copies--, thread->first_copy++) {
        const struct copy *copy = &m->copies[m->current][thread->first_copy % MAX_COPIES];

        if (copy->group >= thread->commits - pending)
            return;
        watch(ARRIVE, copy->to, 16);
        memcpy(copy->to, copy->from, 16);
    }
}

void store_release_system(uint32_t *p, uint32_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

uint32_t load_acquire_system(const uint32_t *p)
{
    struct machine *m = machine;

    current_warp(m)->yielded |= current_lane(m);
    m->yielded_warps |= 1u << m->current / LANES;
    wait_for_turn(m);
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

uint64_t global_timer()
{
    static const char *const ppm = getenv("EMULATED_CUDA_CLOCK_PPM");
    static const int64_t first_ns = time_of(CLOCK_REALTIME);
    int64_t ns = time_of(CLOCK_REALTIME);

    return (uint64_t)(ns + (ppm ? (ns - first_ns) / 1000000 * strtoll(ppm, NULL, 10) : 0));
}

uint16_t half_of_float(float f)
{
    uint32_t bits = __float_as_uint(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;

    if (magnitude > 0x7f800000)
        return 0x7fff;           /* the device's one NaN */
    if (magnitude >= 0x477ff000) /* 65520 rounds to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) /* 2^-14: the least normal half; below, whole numbers of 2^-24 */
        return (uint16_t)(sign | (uint32_t)rintf(__uint_as_float(magnitude) * 0x1p24f));
    magnitude += 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (magnitude - (112 << 23)) >> 13);
}

static uint32_t bf16_of_float(float f)
{
    uint32_t bits = __float_as_uint(f);

    if (f != f)
        return 0x7fff; /* the device's one NaN */
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

uint32_t bf16_pair_of_floats(float low, float high)
{
    return bf16_of_float(low) | bf16_of_float(high) << 16;
}

uint32_t half_pair_of_floats(float low, float high)
{
    return half_of_float(low) | (uint32_t)half_of_float(high) << 16;
}

uint32_t half_pair_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t pair = 0;

    for (int shift = 0; shift < 32; shift += 16) {
        double x = float_of_half((uint16_t)(a >> shift)), y = float_of_half((uint16_t)(b >> shift));
        double sum = x * y + float_of_half((uint16_t)(c >> shift));
        uint16_t half = half_of_float((float)sum);

        if (sum == sum && float_of_half(half) != sum)
            emulated_die("half_pair_fma: %g * %g + %g is no half", x, y, sum - x * y);
        pair |= (uint32_t)half << shift;
    }
    return pair;
}

/* As far off as a GPU's may be, so that nothing relies on more. */
float exp2_approx(float x)
{
    float power = exp2f(x);

    return power < 0x1p-126f ? 0 : x == 0 ? 1 : power + power * 0x1p-22f;
}

uint32_t tf32_of_float(float f)
{
    uint32_t bits = __float_as_uint(f);

    if (f != f)
        return 0x7fffffff;
    return (bits + 0x1000) & 0xffffe000;
}

/* ---- launches -------------------------------------------------------------------------------- */

/* Those of the kernel's module: variables that are a function's and a thread's. */
static void find_static_shared(struct machine *m)
{
    m->module = find_module(m->launch->kernel);
    m->shareds = (struct shared *)realloc(m->shareds, (m->module.count + 1) * sizeof *m->shareds);
    m->num_shareds = 0;
    m->shareds_begin = (char *)UINTPTR_MAX;
    m->shareds_end = NULL;
    for (size_t i = 0; m->module.tls && i < m->module.count; i++) {
        const Elf64_Sym *s = &m->module.symbols[i];

        if (ELF64_ST_TYPE(s->st_info) != STT_TLS || strncmp(m->module.names + s->st_name, "_ZZ", 3) != 0)
            continue;

        struct shared shared = {m->module.tls + s->st_value, s->st_size};

        m->shareds[m->num_shareds++] = shared;
        m->shareds_begin = shared.begin < m->shareds_begin ? shared.begin : m->shareds_begin;
        m->shareds_end = shared.begin + shared.bytes > m->shareds_end ? shared.begin + shared.bytes : m->shareds_end;
    }
}

static void run_block(struct machine *m)
{
    for (int w = 0; w < MAX_WARPS; w++) {
        int lanes = m->num_threads - w * LANES;
        struct warp *warp = &m->warps[w];

        warp->ready = lanes >= LANES ? EVERY_LANE : lanes > 0 ? (1u << lanes) - 1 : 0;
        warp->at_word = warp->at_barrier = warp->yielded = warp->returned = 0;
        m->ready_warps |= (uint32_t)(warp->ready != 0) << w;
    }
    for (int t = 0; t < m->num_threads; t++) {
        struct thread *thread = &m->threads[t];

        thread->fiber = NULL;
        thread->commits = thread->first_copy = thread->num_copies = 0;
        thread->barriers = thread->syncs = 0;
    }
    m->num_blocks++;
    m->num_at_barrier = m->num_returned = 0;
    memset(m->shared, JUNK, m->launch->shared_bytes);
    m->running = &m->home;
    choose_thread(m);
    switch_to(m, take_fiber(m));
}

void emulated_run_blocks(const struct emulated_launch *launch, struct emulated_turns turns)
{
    if (!machine)
        make_machine();

    struct machine *m = machine;
    int64_t block = m->num_launches++;

    m->launch = launch;
    m->num_threads = (int)launch->block.x;
    m->shared = m->shared_end - round_up(launch->shared_bytes, 16);
    m->random = (turns.seed + (uint64_t)m->num_launches) * 0x9e3779b97f4a7c15 | 1;
    blockDim = {launch->block.x, 1, 1};
    gridDim = {launch->grid.x, launch->grid.y, launch->grid.z};
    if ((uintptr_t)launch->kernel - m->module.base >= m->module.bytes)
        find_static_shared(m);
    for (int i = 0; i < m->num_shareds; i++)
        memset(m->shareds[i].begin, JUNK, m->shareds[i].bytes);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                m->order = turns.order == IN_TURN ? (enum order)(block++ % IN_TURN) : turns.order;
                run_block(m);
            }
    m->launch = NULL;
}
