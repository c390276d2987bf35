/*
 * amx: a unit that multiplies matrices of bytes, AMX of x86, as matmul.c drives it.
 *
 * It has eight tiles of up to 16 rows of 64 bytes. Here tiles 0 to 3 are results, 4 and 5 rows of activations, and 6 and 7
 * columns of weights, whose rows have four elements of k for each of 16 columns. A result is 16 columns of 32 bits:
 *   result[row][column] += sum over k of activations[row][k] * weights[column][k]
 * of signed activations, and signed or unsigned weights.
 * Tiles are named by literals, which is how instructions name them, so that these are macros. VEC_EMUAMX does the same in
 * plain C, for tests on machines that have no such unit.
 *
 * Thread: each has tiles of its own. Between amx_begin and amx_end they keep their contents.
 */
#ifndef KERNELS_CPU_AMX_H
#define KERNELS_CPU_AMX_H

#include <stdint.h>
#include <string.h>

enum { AMX_ROWS = 16, AMX_COLUMNS = 16, AMX_ROW_BYTES = 64, AMX_TILES = 8 };

/* What LDTILECFG reads. */
struct amx_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
_Static_assert(sizeof(struct amx_shapes) == 64, "64 bytes");

/* For products of so many rows with columns of k elements: at most 16, and 64 in steps of four. */
static inline struct amx_shapes amx_shapes(int32_t rows, int32_t k)
{
    struct amx_shapes shapes = {.palette = 1};

    for (int i = 0; i < AMX_TILES; i++) {
        shapes.rows[i] = (uint8_t)(i < 6 ? rows : k / 4);
        shapes.row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? k : AMX_ROW_BYTES);
    }
    return shapes;
}

#if defined(VEC_AMX)

/* The compiler's own functions do not tell it that memory is read and written. */
static inline void amx_begin(int32_t rows, int32_t k)
{
    struct amx_shapes shapes = amx_shapes(rows, k);

    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

/* Also spares the kernel to save the tiles. */
static inline void amx_end(void)
{
    __asm__ volatile("tilerelease");
}

#define amx_zero(tile)   __asm__ volatile("tilezero %%tmm" #tile : :)
#define amx_load(tile, from, stride)                                                               \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define amx_store(tile, to, stride)                                                                \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define amx_multiply_signed(result, activations, weights)                                          \
    __asm__ volatile("tdpbssd %%tmm" #weights ", %%tmm" #activations ", %%tmm" #result : :)
#define amx_multiply_unsigned(result, activations, weights)                                        \
    __asm__ volatile("tdpbsud %%tmm" #weights ", %%tmm" #activations ", %%tmm" #result : :)

#else

static __thread struct {
    struct amx_shapes shapes;
    union {
        int8_t bytes[AMX_ROW_BYTES];
        int32_t results[AMX_COLUMNS];
    } rows[AMX_TILES][AMX_ROWS];
} amx_emulated;

static inline void amx_begin(int32_t rows, int32_t k)
{
    amx_emulated.shapes = amx_shapes(rows, k);
}

static inline void amx_end(void)
{
    memset(&amx_emulated, 0, sizeof(amx_emulated));
}

static inline void amx_zero(int tile)
{
    memset(amx_emulated.rows[tile], 0, sizeof(amx_emulated.rows[tile]));
}

static inline void amx_load(int tile, const void *from, int64_t stride)
{
    for (int i = 0; i < amx_emulated.shapes.rows[tile]; i++)
        memcpy(amx_emulated.rows[tile][i].bytes, (const char *)from + i * stride, amx_emulated.shapes.row_bytes[tile]);
}

static inline void amx_store(int tile, void *to, int64_t stride)
{
    for (int i = 0; i < amx_emulated.shapes.rows[tile]; i++)
        memcpy((char *)to + i * stride, amx_emulated.rows[tile][i].bytes, amx_emulated.shapes.row_bytes[tile]);
}

static inline void amx_multiply(int result, int activations, int weights, int unsigned_mask)
{
    for (int r = 0; r < amx_emulated.shapes.rows[result]; r++)
        for (int i = 0; i < amx_emulated.shapes.row_bytes[activations]; i++)
            for (int c = 0; c < AMX_COLUMNS; c++) {
                int weight = amx_emulated.rows[weights][i / 4].bytes[4 * c + i % 4];

                amx_emulated.rows[result][r].results[c] += amx_emulated.rows[activations][r].bytes[i] * (weight & unsigned_mask);
            }
}

static inline void amx_multiply_signed(int result, int activations, int weights)
{
    amx_multiply(result, activations, weights, -1);
}

static inline void amx_multiply_unsigned(int result, int activations, int weights)
{
    amx_multiply(result, activations, weights, 0xff);
}

#endif
#endif
