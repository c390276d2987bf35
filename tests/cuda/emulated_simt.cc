#include "tests/cuda/emulated_simt.h"

#include <cxxabi.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes)   ((void)(p), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)(p), (void)(bytes))
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

enum { LANES = 32, MAX_WARPS = 32, MAX_THREADS = LANES * MAX_WARPS, MAX_DEVICES = 16 };
enum { PAGE = 4096, SHARED_BYTES = 48 << 10, MAX_SHARED_BYTES = 163 << 10 };
static const uint32_t EVERY_LANE = 0xffffffff;
static const size_t PEERS_BYTES = (size_t)64 << 30; /* of addresses, for what other processes lend */
static const int JUNK = 0xff;                       /* floats: NaN; indices: -1 */

__thread struct uint3 threadIdx, blockIdx, blockDim, gridDim;

/* ---- what the environment says --------------------------------------------------------------- */

enum fault { NO_FAULT, NO_DEVICE, NO_DRIVER, OLD_DRIVER, NO_MEMORY, LAUNCH };
enum order { FORWARD, BACKWARD, RANDOM, IN_TURN };

static struct {
    enum fault fault;
    int64_t fault_number;
    enum order order;
    uint64_t seed;
    int num_devices;
    size_t memory_bytes; /* of a device */
    bool open;           /* the host may touch it */
} settings;

static int64_t number_from(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);

    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

void emulated_cuda_order(const char *order)
{
    settings.seed = order ? strtoull(order, NULL, 10) : 0;
    settings.order = !order || !*order            ? IN_TURN
                     : !strcmp(order, "forward")  ? FORWARD
                     : !strcmp(order, "backward") ? BACKWARD
                                                  : RANDOM;
}

static void read_settings()
{
    static const char *const names[] = {"", "no_device", "no_driver", "old_driver", "no_memory", "launch"};
    const char *fault = getenv("EMULATED_CUDA_FAULT");

    for (int i = 1; fault && i <= LAUNCH; i++) {
        size_t length = strlen(names[i]);

        if (strncmp(fault, names[i], length) == 0 && (fault[length] == ':' || !fault[length])) {
            settings.fault = (enum fault)i;
            settings.fault_number = fault[length] ? strtoll(fault + length + 1, NULL, 10) : 0;
        }
    }
    emulated_cuda_order(getenv("EMULATED_CUDA_ORDER"));
    settings.num_devices = min((int)number_from("EMULATED_CUDA_DEVICES", 2), (int)MAX_DEVICES);
    settings.memory_bytes = (size_t)number_from("EMULATED_CUDA_MEMORY", 1 << 30);
    if (settings.fault == NO_MEMORY)
        settings.memory_bytes = (size_t)settings.fault_number;
    settings.open = number_from("EMULATED_CUDA_OPEN_MEMORY", 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum kind { OF_DEVICE, OF_PEER, PAGE_LOCKED, REGISTERED };

struct range {
    char *begin;
    size_t bytes;
    enum kind kind;
    int device;
    int fd;             /* what is behind it, where other processes were lent it; else -1 */
    struct range *next; /* at a higher address */
};

static struct {
    char *begin; /* devices side by side, then what peers lend */
    size_t bytes;
    size_t device_bytes; /* of addresses */
    int users;           /* launches and copies that are on their way: 0, nobody may touch it */
    struct range *ranges;
} memory;

static struct {
    size_t used;
    cudaError_t broken; /* by a kernel, for good */
    bool reaches[MAX_DEVICES];
} devices[MAX_DEVICES];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static pid_t process;
static int64_t num_launches;
static __thread int current_device;
static __thread cudaError_t last_error;

/* In a scope, memory's and devices' fields are this thread's. */
struct lock {
    lock()
    {
        pthread_mutex_lock(&mutex);
    }

    ~lock()
    {
        pthread_mutex_unlock(&mutex);
    }
};

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Puts a file, or with -1 pages of zeroes, behind these addresses. In huge pages, for access to them changes with
 * every launch. */
static bool map_pages(char *at, size_t bytes, int fd)
{
    int access = memory.users || settings.open ? PROT_READ | PROT_WRITE : PROT_NONE;
    int type = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

    bytes = round_up(bytes, PAGE);
    if (mmap(at, bytes, access, type | MAP_NORESERVE | MAP_FIXED, fd, 0) == MAP_FAILED)
        return false;
    madvise(at, bytes, MADV_HUGEPAGE);
    return true;
}

static void start()
{
    process = getpid();
    read_settings();
    memory.device_bytes = round_up(2 * settings.memory_bytes, PAGE) + ((size_t)1 << 30);
    memory.bytes = (size_t)settings.num_devices * memory.device_bytes + PEERS_BYTES;
    memory.begin = (char *)mmap(NULL, memory.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory.begin == MAP_FAILED || !map_pages(memory.begin, memory.bytes, -1)) {
        perror("emulated_cuda: device memory");
        abort();
    }
}

/* Between the two, this thread may touch device memory. */
static void open_memory()
{
    struct lock lock;

    if (memory.users++ == 0 && !settings.open)
        mprotect(memory.begin, memory.bytes, PROT_READ | PROT_WRITE);
}

static void close_memory()
{
    struct lock lock;

    if (--memory.users == 0 && !settings.open)
        mprotect(memory.begin, memory.bytes, PROT_NONE);
}

static bool is_device_address(const void *p)
{
    return (uintptr_t)p - (uintptr_t)memory.begin < memory.bytes;
}

/* The range that `bytes` from p on lie in, or NULL. Of no bytes: p may be its end. */
static struct range *find_range(const void *p, size_t bytes)
{
    struct lock lock;

    for (struct range *r = memory.ranges; r; r = r->next) {
        size_t offset = (size_t)((const char *)p - r->begin);

        if ((const char *)p >= r->begin && offset <= r->bytes && bytes <= r->bytes - offset)
            return r;
    }
    return NULL;
}

static void add_range(void *begin, size_t bytes, enum kind kind)
{
    struct lock lock;
    struct range **at = &memory.ranges, *r = (struct range *)malloc(sizeof *r);

    while (*at && (*at)->begin < begin)
        at = &(*at)->next;
    *r = {(char *)begin, bytes, kind, current_device, -1, *at};
    *at = r;
}

/* False: none of the kind begins here. Device memory goes back. */
static bool remove_range(void *begin, enum kind kind)
{
    struct lock lock;

    for (struct range **at = &memory.ranges; *at; at = &(*at)->next) {
        struct range *r = *at;

        if (r->begin != begin || r->kind != kind)
            continue;
        if (kind == OF_DEVICE)
            devices[r->device].used -= r->bytes;
        if (kind == OF_DEVICE || kind == OF_PEER) {
            map_pages(r->begin, r->bytes, -1);
            ASAN_POISON_MEMORY_REGION(r->begin, r->bytes);
        }
        if (r->fd >= 0)
            close(r->fd);
        *at = r->next;
        free(r);
        return true;
    }
    return false;
}

/* Pages that it takes, and one more that nothing is in. */
static size_t space_of(size_t bytes)
{
    return round_up(bytes, PAGE) + PAGE;
}

/* The first gap for `bytes` in `size` addresses from `begin` on; NULL: there is none. */
static char *find_gap(char *begin, size_t size, size_t bytes)
{
    char *end = begin + size;

    for (struct range *r = memory.ranges; r; r = r->next) {
        if (r->begin < begin || r->begin >= end)
            continue;
        if ((size_t)(r->begin - begin) >= space_of(bytes))
            break;
        size -= (size_t)(r->begin + space_of(r->bytes) - begin);
        begin = r->begin + space_of(r->bytes);
    }
    return (size_t)(end - begin) >= space_of(bytes) ? begin : NULL;
}

/* ---- errors ---------------------------------------------------------------------------------- */

static cudaError_t note(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

/* Before anything that concerns a device. */
static cudaError_t enter()
{
    pthread_once(&once, start);
    if (getpid() != process)
        return note(cudaErrorInitializationError); /* a fork of one that used CUDA */
    if (settings.fault == NO_DRIVER || settings.fault == OLD_DRIVER)
        return note(cudaErrorInsufficientDriver);
    if (settings.fault == NO_DEVICE || settings.num_devices < 1)
        return note(cudaErrorNoDevice);
    return note(devices[current_device].broken);
}

#define ENTER()                                                                                                    \
    do {                                                                                                           \
        cudaError_t error_ = enter();                                                                              \
        if (error_ != cudaSuccess)                                                                                 \
            return error_;                                                                                         \
    } while (0)

#define REFUSE_IF(condition, error)                                                                                \
    do {                                                                                                           \
        if (condition)                                                                                             \
            return note(error);                                                                                    \
    } while (0)

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

static void print_kernel(const void *kernel)
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
    int64_t num_launches;
    char *slots, *shared, *shared_end;
    struct fiber home, *running, *free;
    int num_fibers;
    struct module module;   /* of the last kernel */
    struct shared *shareds; /* of the module */
    int num_shareds;
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

/* The end, with a sentence on who did what. */
__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "emulated_cuda: ");
    if (machine && machine->launch) {
        print_kernel(machine->launch->kernel);
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
    die("of %d threads those above wait for others that do not come", m->num_threads);
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
        die("%s of lanes %08x", word, mask);
    if (warp->at_word && warp->word != word && strcmp(warp->word, word) != 0)
        die("%s, where lanes %08x of its warp are in %s", word, warp->at_word, warp->word);
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
        die("cp_async_16 to %p from %p, which want 16-byte alignment", shared, global);
    if (is_device_address(shared) || !(is_device_address(global) || find_range(global, 16)))
        die("cp_async_16 to %p from %p: not from global to shared memory", shared, global);
    if (thread->num_copies == MAX_COPIES)
        die("more than %d cp_async_16 are on their way", (int)MAX_COPIES);
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

static int64_t time_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

uint64_t global_timer()
{
    return (uint64_t)time_of(CLOCK_REALTIME);
}

float float_of_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;

    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f;

        return sign ? -magnitude : magnitude;
    }
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13);
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

/* ---- launches -------------------------------------------------------------------------------- */

/* An address of the host's, and not a number that looks like one: it is high and mapped. */
static bool is_host_address(uint64_t word)
{
    unsigned char resident;

#if !__has_builtin(__builtin_clear_padding)
    if ((uint32_t)word >> 16 == 0)
        return false; /* a small number, and what its padding held */
#endif
    /* Below lie small numbers side by side, and what looks like one of them to ASan. */
    return word >> 48 == 0 && word >= 0x10007fff8000 && mincore((void *)(word / PAGE * PAGE), 1, &resident) == 0;
}

void emulated_check_argument(const void *kernel, int index, const void *argument, size_t bytes)
{
    const char *wrong = NULL;

    if (enter() != cudaSuccess)
        return;
    for (size_t at = 0; at + 8 <= bytes && !wrong; at += 8) {
        uint64_t word;

        memcpy(&word, (const char *)argument + at, 8);

        struct lock lock;
        const struct range *r = find_range((const void *)word, 0);

        if (!r && is_device_address((const void *)word))
            wrong = "device memory that is free";
        else if (r && r->kind == OF_DEVICE && r->device != current_device &&
                 !devices[current_device].reaches[r->device])
            wrong = "memory of a device that it cannot reach";
        else if (!r && is_host_address(word))
            wrong = "memory of the host";
        if (wrong) {
            fprintf(stderr, "emulated_cuda: ");
            print_kernel(kernel);
            fprintf(stderr, ", argument %d, byte %zu: %p is %s\n", index, at, (void *)word, wrong);
            abort();
        }
    }
}

enum { MAX_OPTED_IN = 256 };

/* Kernels that may have more shared memory than the usual. */
static struct {
    const void *kernel;
    int device, bytes;
} opted_in[MAX_OPTED_IN];
static int num_opted_in;

static int shared_of(const void *kernel)
{
    struct lock lock;
    int bytes = SHARED_BYTES;

    for (int i = 0; i < num_opted_in; i++)
        if (opted_in[i].kernel == kernel && opted_in[i].device == current_device)
            bytes = opted_in[i].bytes;
    return bytes;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    struct lock lock;
    int i = 0;

    ENTER();
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    while (i < num_opted_in && (opted_in[i].kernel != kernel || opted_in[i].device != current_device))
        i++;
    REFUSE_IF(value < 0 || value > MAX_SHARED_BYTES || i == MAX_OPTED_IN, cudaErrorInvalidValue);
    opted_in[i].kernel = kernel;
    opted_in[i].device = current_device;
    opted_in[i].bytes = value;
    num_opted_in = max(num_opted_in, i + 1);
    return cudaSuccess;
}

/* Those of the kernel's module: variables that are a function's and a thread's. */
static void find_static_shared(struct machine *m)
{
    m->module = find_module(m->launch->kernel);
    m->shareds = (struct shared *)realloc(m->shareds, (m->module.count + 1) * sizeof *m->shareds);
    m->num_shareds = 0;
    for (size_t i = 0; m->module.tls && i < m->module.count; i++) {
        const Elf64_Sym *s = &m->module.symbols[i];

        if (ELF64_ST_TYPE(s->st_info) == STT_TLS && strncmp(m->module.names + s->st_name, "_ZZ", 3) == 0)
            m->shareds[m->num_shareds++] = {m->module.tls + s->st_value, s->st_size};
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
    }
    m->num_at_barrier = m->num_returned = 0;
    memset(m->shared, JUNK, m->launch->shared_bytes);
    m->running = &m->home;
    choose_thread(m);
    switch_to(m, take_fiber(m));
}

static cudaError_t check_launch(const struct emulated_launch *launch, cudaStream_t stream);

void emulated_run(const struct emulated_launch *launch, cudaStream_t stream)
{
    if (enter() != cudaSuccess || note(check_launch(launch, stream)) != cudaSuccess)
        return;
    if (__atomic_add_fetch(&num_launches, 1, __ATOMIC_RELAXED) == settings.fault_number &&
        settings.fault == LAUNCH) {
        devices[current_device].broken = cudaErrorIllegalAddress; /* told by the next call: it takes time */
        return;
    }
    if (!machine)
        make_machine();

    struct machine *m = machine;
    int64_t block = m->num_launches++;

    m->launch = launch;
    m->num_threads = (int)launch->block.x;
    m->shared = m->shared_end - round_up(launch->shared_bytes, 16);
    m->random = (settings.seed + (uint64_t)m->num_launches) * 0x9e3779b97f4a7c15 | 1;
    blockDim = {launch->block.x, 1, 1};
    gridDim = {launch->grid.x, launch->grid.y, launch->grid.z};
    open_memory();
    if ((uintptr_t)launch->kernel - m->module.base >= m->module.bytes)
        find_static_shared(m);
    for (int i = 0; i < m->num_shareds; i++)
        memset(m->shareds[i].begin, JUNK, m->shareds[i].bytes);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                m->order = settings.order == IN_TURN ? (enum order)(block++ % IN_TURN) : settings.order;
                run_block(m);
            }
    close_memory();
    m->launch = NULL;
}

/* ---- the runtime: devices -------------------------------------------------------------------- */

struct emulated_stream {
    int device;
};

struct emulated_event {
    int device;
    int64_t ns; /* 0: not recorded */
};

static cudaError_t check_launch(const struct emulated_launch *launch, cudaStream_t stream)
{
    const struct dim3 *grid = &launch->grid;

    if (stream && stream->device != current_device)
        return cudaErrorInvalidResourceHandle;
    if (grid->x < 1 || grid->x > 0x7fffffff || grid->y < 1 || grid->y > 65535 || grid->z < 1 || grid->z > 65535)
        return cudaErrorInvalidConfiguration;
    if (launch->block.x < 1 || launch->block.x > MAX_THREADS || launch->block.y != 1 || launch->block.z != 1)
        return cudaErrorInvalidConfiguration;
    return launch->shared_bytes > (size_t)shared_of(launch->kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

#define EMULATED_ERROR_CASE(name, number, text)                                                                    \
    case name:                                                                                                     \
        return WANTED(name, text);

const char *cudaGetErrorName(cudaError_t error)
{
#define WANTED(name, text) #name
    switch (error) {
        EMULATED_ERRORS(EMULATED_ERROR_CASE)
    }
#undef WANTED
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
#define WANTED(name, text) text
    switch (error) {
        EMULATED_ERRORS(EMULATED_ERROR_CASE)
    }
#undef WANTED
    return "unrecognized error code";
}

cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

cudaError_t cudaGetLastError()
{
    cudaError_t error = last_error;

    if (error != devices[current_device].broken)
        last_error = cudaSuccess;
    return error;
}

cudaError_t cudaRuntimeGetVersion(int *out)
{
    *out = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *out)
{
    pthread_once(&once, start);
    *out = settings.fault == NO_DRIVER ? 0 : settings.fault == OLD_DRIVER ? 11040 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *out)
{
    *out = 0;
    ENTER();
    *out = settings.num_devices;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int ordinal)
{
    enter();
    REFUSE_IF(ordinal < 0 || ordinal >= settings.num_devices, cudaErrorInvalidDevice);
    current_device = ordinal;
    return enter();
}

cudaError_t cudaGetDevice(int *out)
{
    ENTER();
    *out = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *out, int ordinal)
{
    ENTER();
    REFUSE_IF(ordinal < 0 || ordinal >= settings.num_devices, cudaErrorInvalidDevice);
    memset(out, 0, sizeof *out);
    strcpy(out->name, "emulated");
    out->totalGlobalMem = settings.memory_bytes;
    out->sharedMemPerBlock = SHARED_BYTES;
    out->sharedMemPerBlockOptin = MAX_SHARED_BYTES;
    out->sharedMemPerMultiprocessor = MAX_SHARED_BYTES + 1024;
    out->major = 8;
    out->multiProcessorCount = 4;
    out->warpSize = LANES;
    out->maxThreadsPerBlock = MAX_THREADS;
    out->maxThreadsPerMultiProcessor = 2048;
    out->regsPerBlock = 65536;
    out->l2CacheSize = 1 << 20;
    out->memoryBusWidth = 256;
    out->unifiedAddressing = 1;
    out->pciBusID = ordinal + 1;
    return cudaSuccess;
}

#define EMULATED_ATTRIBUTE_CASE(name, number, member)                                                              \
    case name:                                                                                                     \
        *out = (int)p.member;                                                                                      \
        return cudaSuccess;

cudaError_t cudaDeviceGetAttribute(int *out, enum cudaDeviceAttr attribute, int ordinal)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, ordinal);

    if (error != cudaSuccess)
        return error;
    switch (attribute) {
        EMULATED_ATTRIBUTES(EMULATED_ATTRIBUTE_CASE)
    }
    return note(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    ENTER();
    REFUSE_IF(peer < 0 || peer >= settings.num_devices || peer == current_device, cudaErrorInvalidDevice);
    REFUSE_IF(devices[current_device].reaches[peer], cudaErrorPeerAccessAlreadyEnabled);
    devices[current_device].reaches[peer] = true;
    return cudaSuccess;
}

/* ---- the runtime: memory --------------------------------------------------------------------- */

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out)
{
    struct lock lock;

    ENTER();
    *total_out = settings.memory_bytes;
    *free_out = settings.memory_bytes - devices[current_device].used;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    enum { SPOILT_BYTES = 8 << 20 };
    struct lock lock;
    char *p = NULL;

    ENTER();
    *out = NULL;
    if (bytes == 0)
        return cudaSuccess;
    if (bytes <= settings.memory_bytes - devices[current_device].used)
        p = find_gap(memory.begin + (size_t)current_device * memory.device_bytes, memory.device_bytes, bytes);
    REFUSE_IF(!p, cudaErrorMemoryAllocation);
    add_range(p, bytes, OF_DEVICE);
    devices[current_device].used += bytes;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    ASAN_POISON_MEMORY_REGION(p + bytes, space_of(bytes) - bytes);
    open_memory();
    memset(p, JUNK, min(bytes, (size_t)SPOILT_BYTES));
    close_memory();
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    ENTER();
    REFUSE_IF(p && !remove_range(p, OF_DEVICE), cudaErrorInvalidValue);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **out, size_t bytes)
{
    ENTER();
    *out = NULL;
    if (bytes == 0)
        return cudaSuccess;
    REFUSE_IF(posix_memalign(out, PAGE, bytes) != 0, cudaErrorMemoryAllocation);
    memset(*out, JUNK, bytes);
    add_range(*out, bytes, PAGE_LOCKED);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    return cudaMallocHost(out, bytes);
}

cudaError_t cudaFreeHost(void *p)
{
    ENTER();
    REFUSE_IF(p && !remove_range(p, PAGE_LOCKED), cudaErrorInvalidValue);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    ENTER();
    REFUSE_IF(!p || bytes == 0, cudaErrorInvalidValue);
    REFUSE_IF(find_range(p, 1), cudaErrorHostMemoryAlreadyRegistered);
    add_range(p, bytes, REGISTERED);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *p)
{
    ENTER();
    REFUSE_IF(!remove_range(p, REGISTERED), cudaErrorHostMemoryNotRegistered);
    return cudaSuccess;
}

/* Memory of a device, all of it allocated; or of the host. */
static bool fits(const void *p, size_t bytes, bool of_device)
{
    return is_device_address(p) == of_device && (!of_device || find_range(p, bytes));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    ENTER();
    if (bytes == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = (enum cudaMemcpyKind)(is_device_address(to) + 2 * is_device_address(from));
    REFUSE_IF(!fits(to, bytes, kind & 1) || !fits(from, bytes, kind & 2), cudaErrorInvalidValue);
    open_memory();
    memmove(to, from, bytes);
    close_memory();
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t)
{
    return cudaMemcpy(to, from, bytes, kind);
}

/* All of a range, of many pages: zeroes take no memory until they are written. */
static bool forget(void *p, size_t bytes)
{
    const struct range *r = find_range(p, bytes);

    return bytes > 1 << 20 && r->begin == p && r->bytes == bytes && r->kind == OF_DEVICE && r->fd < 0 &&
           madvise(p, bytes, MADV_DONTNEED) == 0;
}

cudaError_t cudaMemset(void *p, int byte, size_t bytes)
{
    ENTER();
    if (bytes == 0)
        return cudaSuccess;
    REFUSE_IF(!fits(p, bytes, true), cudaErrorInvalidValue);
    if (byte == 0 && forget(p, bytes))
        return cudaSuccess;
    open_memory();
    memset(p, byte, bytes);
    close_memory();
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t)
{
    return cudaMemset(p, byte, bytes);
}

/* What a cudaIpcMemHandle_t holds. */
struct lent {
    pid_t process;
    int fd;
    size_t bytes;
};

/* Moves what is in a range to a file, which others can open. */
static bool make_lendable(struct range *r)
{
    int fd = memfd_create("emulated_cuda", MFD_CLOEXEC);
    size_t done = 0;

    open_memory();
    for (ssize_t n; done < r->bytes && (n = write(fd, r->begin + done, r->bytes - done)) > 0;)
        done += (size_t)n;
    close_memory();
    if (done < r->bytes || ftruncate(fd, (off_t)round_up(r->bytes, PAGE)) || !map_pages(r->begin, r->bytes, fd)) {
        close(fd);
        return false;
    }
    r->fd = fd;
    return true;
}

cudaError_t cudaIpcGetMemHandle(struct cudaIpcMemHandle_t *out, void *p)
{
    struct lock lock;
    struct range *r = find_range(p, 1);

    ENTER();
    REFUSE_IF(!r || r->kind != OF_DEVICE || r->begin != p, cudaErrorInvalidValue);
    REFUSE_IF(r->fd < 0 && !make_lendable(r), cudaErrorMemoryAllocation);

    struct lent lent = {process, r->fd, r->bytes};

    static_assert(sizeof lent <= sizeof *out, "");
    memset(out, 0, sizeof *out);
    memcpy(out, &lent, sizeof lent);
    return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void **out, struct cudaIpcMemHandle_t handle, unsigned flags)
{
    struct lock lock;
    struct lent lent;
    char path[64], *p;
    int fd;

    ENTER();
    memcpy(&lent, &handle, sizeof lent);
    REFUSE_IF(flags != cudaIpcMemLazyEnablePeerAccess, cudaErrorInvalidValue);
    REFUSE_IF(lent.process == process, cudaErrorDeviceUninitialized);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", lent.process, lent.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    REFUSE_IF(fd < 0, cudaErrorInvalidResourceHandle);
    p = find_gap(memory.begin + memory.bytes - PEERS_BYTES, PEERS_BYTES, lent.bytes);
    if (p && !map_pages(p, lent.bytes, fd))
        p = NULL;
    close(fd);
    REFUSE_IF(!p, cudaErrorMemoryAllocation);
    add_range(p, lent.bytes, OF_PEER);
    ASAN_UNPOISON_MEMORY_REGION(p, lent.bytes);
    ASAN_POISON_MEMORY_REGION(p + lent.bytes, space_of(lent.bytes) - lent.bytes);
    *out = p;
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *p)
{
    ENTER();
    REFUSE_IF(!remove_range(p, OF_PEER), cudaErrorInvalidValue);
    return cudaSuccess;
}

/* ---- the runtime: streams and events; all has run when a call returns ------------------------ */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    ENTER();
    *out = (cudaStream_t)malloc(sizeof **out);
    (*out)->device = current_device;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    free(stream);
    return enter();
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned)
{
    ENTER();
    *out = (cudaEvent_t)calloc(1, sizeof **out);
    (*out)->device = current_device;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    ENTER();
    REFUSE_IF(stream && stream->device != event->device, cudaErrorInvalidResourceHandle);
    event->ns = time_of(CLOCK_MONOTONIC);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t start, cudaEvent_t end)
{
    ENTER();
    REFUSE_IF(!start->ns || !end->ns, cudaErrorInvalidResourceHandle);
    *ms_out = (float)(end->ns - start->ns) * 1e-6f;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return enter();
}

#define HAS_PASSED(name, ...)                                                                                      \
    cudaError_t name(__VA_ARGS__)                                                                                  \
    {                                                                                                              \
        return enter();                                                                                            \
    }

HAS_PASSED(cudaDeviceSynchronize, void)
HAS_PASSED(cudaStreamSynchronize, cudaStream_t)
HAS_PASSED(cudaStreamQuery, cudaStream_t)
HAS_PASSED(cudaStreamWaitEvent, cudaStream_t, cudaEvent_t, unsigned)
HAS_PASSED(cudaEventQuery, cudaEvent_t)
HAS_PASSED(cudaEventSynchronize, cudaEvent_t)

#define NOT_SUPPORTED(name, ...)                                                                                   \
    cudaError_t name(__VA_ARGS__)                                                                                  \
    {                                                                                                              \
        return note(cudaErrorNotSupported);                                                                        \
    }

NOT_SUPPORTED(cudaStreamBeginCapture, cudaStream_t, enum cudaStreamCaptureMode)
NOT_SUPPORTED(cudaStreamEndCapture, cudaStream_t, cudaGraph_t *)
NOT_SUPPORTED(cudaGraphInstantiate, cudaGraphExec_t *, cudaGraph_t, unsigned long long)
NOT_SUPPORTED(cudaGraphLaunch, cudaGraphExec_t, cudaStream_t)
NOT_SUPPORTED(cudaGraphExecDestroy, cudaGraphExec_t)
NOT_SUPPORTED(cudaGraphDestroy, cudaGraph_t)
