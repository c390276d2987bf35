/*
 * build_id: which build of tandem this process runs.
 *
 * It is the GNU build id that the linker put into the program: two programs of
 * one source and one compiler agree, anything else differs. The engine and its
 * ranks must agree.
 *
 * Thread: any.
 */
#ifndef PROTO_BASE_BUILD_ID_H
#define PROTO_BASE_BUILD_ID_H

#include <stdint.h>

/* 40 hexadecimal digits; "unknown" in a program linked without a build id. */
const char *build_id_text(void);
/* The first 8 bytes of the same, for a message header; 0 when unknown. */
uint64_t build_id_hash(void);

#endif
