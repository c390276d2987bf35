#include "proto/base/build_id.h"

#include "proto/base/memory.h"

#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char text[2 * 32 + 1] = "unknown";
static uint64_t hash;

static void remember(const uint8_t *id, size_t size)
{
    size = MIN(size, (size_t)32);
    memcpy(&hash, id, MIN(size, sizeof hash));
    for (size_t i = 0; i < size; i++)
        snprintf(text + 2 * i, 3, "%02x", id[i]);
}

static size_t padded(size_t size)
{
    return (size + 3) & ~(size_t)3;
}

/* A note segment is a row of headers, each followed by its name and its descriptor. */
static bool search_notes(const uint8_t *at, const uint8_t *end)
{
    while ((size_t)(end - at) >= sizeof(ElfW(Nhdr))) {
        ElfW(Nhdr) note;

        memcpy(&note, at, sizeof note);
        const uint8_t *name = at + sizeof note, *id = name + padded(note.n_namesz);

        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(name, "GNU", 4) == 0) {
            remember(id, note.n_descsz);
            return true;
        }
        at = id + padded(note.n_descsz);
        if (at > end)
            return false;
    }
    return false;
}

/* The first object that the dynamic linker lists is the program itself. */
static int search_program(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        const uint8_t *notes = (const uint8_t *)info->dlpi_addr + segment->p_vaddr;

        if (segment->p_type == PT_NOTE && search_notes(notes, notes + segment->p_memsz))
            break;
    }
    return 1;
}

static void find(void)
{
    dl_iterate_phdr(search_program, NULL);
}

const char *build_id_text(void)
{
    pthread_once(&once, find);
    return text;
}

uint64_t build_id_hash(void)
{
    pthread_once(&once, find);
    return hash;
}
