/* Growing arrays, memory of one text, numbers for equal keys. A function that runs out of memory bails out. */
#ifndef CODEBLEU_MEMORY_H
#define CODEBLEU_MEMORY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

typedef struct Reader Reader;

/* Ends the reading of a text with a Python exception, which is set; see module.c. */
void bail_out(Reader *reader) __attribute__((noreturn));
void no_memory(Reader *reader) __attribute__((noreturn));

/* Growing arrays. */
typedef struct { int32_t *at; int32_t n, room; } Ints;

typedef struct { int32_t op, arg; } Step;
typedef struct { Step *at; int32_t n, room; } Steps;

void grow(Reader *reader, void **at, int32_t *room, int32_t wanted, size_t size);
void push_many(Reader *reader, Ints *ints, const int32_t *values, int32_t count);
void push_steps(Reader *reader, Steps *steps, const Step *more, int32_t count);

static inline void push(Reader *reader, Ints *ints, int32_t value) {
    if (ints->n == ints->room) grow(reader, (void **)&ints->at, &ints->room, ints->n + 1, sizeof *ints->at);
    ints->at[ints->n++] = value;
}

static inline void push_step(Reader *reader, Steps *steps, int32_t op, int32_t arg) {
    if (steps->n == steps->room) grow(reader, (void **)&steps->at, &steps->room, steps->n + 1, sizeof *steps->at);
    steps->at[steps->n].op = op;
    steps->at[steps->n++].arg = arg;
}

static inline void reserve(Reader *reader, Ints *ints, int32_t wanted) {
    if (ints->room < wanted) grow(reader, (void **)&ints->at, &ints->room, wanted, sizeof *ints->at);
}

/* Memory that is released all at once. */
typedef struct Chunk Chunk;
typedef struct { Chunk *chunk; size_t used; } Arena;

void *arena_allocate(Reader *reader, Arena *arena, size_t size);
void arena_reset(Arena *arena);
void arena_free(Arena *arena);

/* Numbers for equal keys, in order of first sight: slots lead to entries, entries to bytes. */
typedef struct { uint32_t hash; int32_t entry; } Slot; /* entry + 1; 0: free */
typedef struct { int64_t start; int32_t length, tag; } Entry;
typedef struct {
    Slot *slots;
    Entry *entries;
    unsigned char *bytes;
    int64_t used, bytes_room;
    int32_t n, room;
    uint32_t mask;
} Interner;

int32_t intern(Reader *reader, Interner *interner, const void *key, int32_t length, int32_t tag);
void interner_clear(Interner *interner);
void interner_free(Interner *interner);

#endif
