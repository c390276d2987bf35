/*
 * gcc_tiles: for the build of llama.cpp. gcc 12 believes that _tile_loadconfig reads 8 of its 64 bytes and _tile_loadd no
 * memory at all, and leaves out what was stored to the rest: on processors with AMX programs end at their first tile.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#undef _tile_loadconfig
#define _tile_loadconfig(config)                                                                   \
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)) : "memory")
#undef _tile_loadd
#define _tile_loadd(tile, base, stride) tile_load_from(tile, base, stride)
#define tile_load_from(tile, base, stride)                                                         \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                            \
                     : : "r"((const void *)(base)), "r"((long)(stride)) : "memory")
#endif
