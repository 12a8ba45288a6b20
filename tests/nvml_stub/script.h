/* The scripted machine: lines of tab-separated key=value, re-read whenever the file is replaced.
 *
 *   system   driver=570.1  [init=9] [error=999] [epoch=2] [clock=<ns>]
 *   gpu      uuid=GPU-...  name=NVIDIA H100 80GB HBM3  power=...
 *   mig      gpu=GPU-...   uuid=MIG-...  slot=0  gi=7  ci=0 ...
 *   process  gpu=GPU-...   pid=42  memory=1048576  [gi=7 ci=0] [mps=1] [sm=30]
 *
 * A value !N is the NVML error N; a key that is not there is NVML_ERROR_NOT_SUPPORTED.
 */
#ifndef STUB_SCRIPT_H
#define STUB_SCRIPT_H

#include <stddef.h>

enum {
    OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15
};

typedef struct {
    const char *kind;
    int count;
    const char *keys[64], *values[64];
} line_t;

/* Held while a function works on lines; lines are gone when it is let go of. */
void script_lock(void);
void script_unlock(void);
/* The n-th line of a kind whose key has that value (key NULL: of any), or NULL. */
const line_t *script_find(const char *kind, const char *key, const char *value, int n);
/* A value as text, or NULL with *error set. */
const char *line_text(const line_t *line, const char *key, int *error);
/* A value as a number; *error says what NVML would answer. */
double line_number(const line_t *line, const char *key, int *error);
/* A copy of the text that is never freed, the same pointer for the same text: what handles are. */
const char *interned(const char *text);
/* Epoch nanoseconds, or what the script says they are. */
double now_ns(void);

#endif
