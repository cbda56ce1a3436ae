#include "memory.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK_SIZE 32768

void no_memory(Reader *reader) {
    PyErr_NoMemory();
    bail_out(reader);
}

/* Makes room for `wanted` elements; grows by at least one half. */
void grow(Reader *reader, void **at, int32_t *room, int32_t wanted, size_t size) {
    int64_t next = (int64_t)*room + *room / 2 + 16;
    if (wanted < 0) no_memory(reader);
    if (next < wanted) next = wanted;
    if (next > INT32_MAX) next = INT32_MAX;
    void *moved = realloc(*at, (size_t)next * size);
    if (moved == NULL) no_memory(reader);
    *at = moved;
    *room = (int32_t)next;
}

void push_many(Reader *reader, Ints *ints, const int32_t *values, int32_t count) {
    if (count == 0) return;
    reserve(reader, ints, ints->n + count);
    memcpy(ints->at + ints->n, values, (size_t)count * sizeof *values);
    ints->n += count;
}

/* `more` must not be part of `steps`. */
void push_steps(Reader *reader, Steps *steps, const Step *more, int32_t count) {
    if (count == 0) return;
    int32_t wanted = steps->n + count;
    if (steps->room < wanted) grow(reader, (void **)&steps->at, &steps->room, wanted, sizeof *steps->at);
    memcpy(steps->at + steps->n, more, (size_t)count * sizeof *more);
    steps->n = wanted;
}

struct Chunk {
    Chunk *before;
    size_t size;
    /* the memory follows */
};

void *arena_allocate(Reader *reader, Arena *arena, size_t size) {
    size = (size + 15) & ~(size_t)15;
    if (arena->chunk == NULL || arena->used + size > arena->chunk->size) {
        size_t room = size > CHUNK_SIZE ? size : CHUNK_SIZE;
        Chunk *chunk = malloc(sizeof(Chunk) + room);
        if (chunk == NULL) no_memory(reader);
        chunk->before = arena->chunk;
        chunk->size = room;
        arena->chunk = chunk;
        arena->used = 0;
    }
    void *taken = (char *)(arena->chunk + 1) + arena->used;
    arena->used += size;
    return taken;
}

/* Releases all but one small chunk. */
void arena_reset(Arena *arena) {
    while (arena->chunk && (arena->chunk->before || arena->chunk->size > CHUNK_SIZE)) {
        Chunk *chunk = arena->chunk;
        arena->chunk = chunk->before;
        free(chunk);
    }
    arena->used = 0;
}

void arena_free(Arena *arena) {
    arena_reset(arena);
    free(arena->chunk);
    arena->chunk = NULL;
}

static uint32_t hash_key(const unsigned char *key, int32_t length, int32_t tag) {
    uint64_t hash = ((uint64_t)(uint32_t)length << 8) + (uint32_t)tag + 0x9E3779B97F4A7C15u, word;
    for (; length >= 8; key += 8, length -= 8) {
        memcpy(&word, key, 8);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    if (length) {
        word = 0;
        memcpy(&word, key, (size_t)length);
        hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
        hash ^= hash >> 32;
    }
    hash *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(hash >> 32);
}

static void more_slots(Reader *reader, Interner *interner) {
    uint32_t mask = interner->slots ? interner->mask * 2 + 1 : 255;
    Slot *slots = calloc((size_t)mask + 1, sizeof *slots);
    if (slots == NULL) no_memory(reader);
    if (interner->slots)
        for (uint32_t i = 0; i <= interner->mask; i++)
            if (interner->slots[i].entry) {
                uint32_t place = interner->slots[i].hash & mask;
                while (slots[place].entry) place = (place + 1) & mask;
                slots[place] = interner->slots[i];
            }
    free(interner->slots);
    interner->slots = slots;
    interner->mask = mask;
}

/* The number of a key; the next number if the key is new. */
int32_t intern(Reader *reader, Interner *interner, const void *key, int32_t length, int32_t tag) {
    if (interner->slots == NULL || (uint32_t)interner->n * 2 > interner->mask) more_slots(reader, interner);
    uint32_t hash = hash_key(key, length, tag), place = hash & interner->mask;
    for (; interner->slots[place].entry; place = (place + 1) & interner->mask) {
        if (interner->slots[place].hash != hash) continue;
        const Entry *entry = &interner->entries[interner->slots[place].entry - 1];
        if (entry->length == length && entry->tag == tag &&
            (length == 0 || memcmp(interner->bytes + entry->start, key, (size_t)length) == 0))
            return interner->slots[place].entry - 1;
    }
    if (interner->n == interner->room)
        grow(reader, (void **)&interner->entries, &interner->room, interner->n + 1, sizeof *interner->entries);
    if (interner->used + length > interner->bytes_room) {
        int64_t room = interner->bytes_room + interner->bytes_room / 2 + length + 4096;
        unsigned char *moved = realloc(interner->bytes, (size_t)room);
        if (moved == NULL) no_memory(reader);
        interner->bytes = moved;
        interner->bytes_room = room;
    }
    Entry *entry = &interner->entries[interner->n];
    entry->start = interner->used;
    entry->length = length;
    entry->tag = tag;
    if (length) memcpy(interner->bytes + interner->used, key, (size_t)length);
    interner->used += length;
    interner->slots[place].hash = hash;
    interner->slots[place].entry = ++interner->n;
    return interner->n - 1;
}

/* Forgets all keys. Large tables are freed, small ones are kept for the next keys. */
void interner_clear(Interner *interner) {
    if (interner->n == 0) return;
    if (interner->mask > 8191) {
        interner_free(interner);
        return;
    }
    memset(interner->slots, 0, ((size_t)interner->mask + 1) * sizeof *interner->slots);
    interner->n = 0;
    interner->used = 0;
}

void interner_free(Interner *interner) {
    free(interner->slots);
    free(interner->entries);
    free(interner->bytes);
    memset(interner, 0, sizeof *interner);
}
