/* The order in which a CPython set lists names under PYTHONHASHSEED=0.
 *
 * The set is simulated slot by slot, as CPython 3.11 to 3.13 fills one from a list; when the module is loaded,
 * native.py compares the outcome with real sets.
 */
#include "native.h"

#include <string.h>

#define LINEAR_PROBES 9
#define PERTURB_SHIFT 5
#define MAX_STEPS 4000000 /* adding more names than this one by one takes too long */

static uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

static void sip_round(uint64_t *v) {
    v[0] += v[1];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[0] = rotate(v[0], 32);
    v[2] += v[3];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 with the zero key (Aumasson and Bernstein 2012). */
uint64_t siphash13(const unsigned char *data, size_t length) {
    uint64_t v[4] = {0x736F6D6570736575u, 0x646F72616E646F6Du, 0x6C7967656E657261u, 0x7465646279746573u};
    uint64_t last = (uint64_t)length << 56;
    size_t whole = length & ~(size_t)7;
    for (size_t i = 0; i < whole; i += 8) {
        uint64_t word = 0;
        for (int k = 0; k < 8; k++) word |= (uint64_t)data[i + k] << (8 * k);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    for (size_t k = whole; k < length; k++) last |= (uint64_t)data[k] << (8 * (k - whole));
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xFF;
    for (int k = 0; k < 3; k++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* hash() of the name's text, computed when first needed. */
static uint64_t hash_of(Reader *reader, int32_t name) {
    while (reader->hash_count <= name) {
        const Entry *entry = &reader->names.entries[reader->hash_count];
        uint64_t hash = entry->length ? siphash13(reader->names.bytes + entry->start, (size_t)entry->length) : 0;
        if (reader->hash_count == reader->hash_room)
            grow(reader, (void **)&reader->hashes, &reader->hash_room, name + 1, sizeof *reader->hashes);
        reader->hashes[reader->hash_count++] = hash == UINT64_MAX ? (uint64_t)-2 : hash;
    }
    return reader->hashes[name];
}

/* Puts a name in its slot; returns whether it is new. */
static int put(int32_t *table, uint32_t mask, uint64_t hash, int32_t name) {
    uint64_t perturb = hash, place = hash & mask;
    for (;;) {
        uint64_t end = place + LINEAR_PROBES <= mask ? place + LINEAR_PROBES : place;
        for (uint64_t i = place; i <= end; i++) {
            if (table[i] == name) return 0;
            if (table[i] < 0) {
                table[i] = name;
                return 1;
            }
        }
        perturb >>= PERTURB_SHIFT;
        place = (place * 5 + 1 + perturb) & mask;
    }
}

static int32_t *clear_table(Reader *reader, Ints *table, uint32_t mask) {
    reserve(reader, table, (int32_t)mask + 1);
    memset(table->at, 0xFF, ((size_t)mask + 1) * sizeof(int32_t));
    return table->at;
}

/* Lists set(left + right) in `list`; returns whether no names collided, so that each is in the slot of its hash. */
static int list_set(Reader *reader, Names left, Names right, Ints *list) {
    uint32_t mask = 7, used = 0;
    int32_t *table = clear_table(reader, &reader->set_table, mask);
    for (int32_t i = 0; i < left.n + right.n; i++) {
        int32_t name = i < left.n ? left.at[i] : right.at[i - left.n];
        if (!put(table, mask, hash_of(reader, name), name)) continue;
        used++;
        if ((uint64_t)used * 5 < (uint64_t)mask * 3) continue;
        uint32_t least = used > 50000 ? used * 2 : used * 4, slots = 8, old_mask = mask;
        while (slots <= least) slots *= 2;
        Ints *old = &reader->set_list;
        old->n = 0;
        push_many(reader, old, table, (int32_t)old_mask + 1);
        mask = slots - 1;
        table = clear_table(reader, &reader->set_table, mask);
        for (int32_t k = 0; k < old->n; k++)
            if (old->at[k] >= 0) put(table, mask, hash_of(reader, old->at[k]), old->at[k]);
    }
    int all_at_home = 1;
    list->n = 0;
    for (uint32_t i = 0; i <= mask; i++) {
        if (table[i] < 0) continue;
        push(reader, list, table[i]);
        all_at_home &= (hash_of(reader, table[i]) & mask) == i;
    }
    return all_at_home;
}

/* A copy that lasts until the text is read. */
static Names keep_names(Reader *reader, const Ints *list) {
    int32_t *copy = arena_take(reader, (size_t)list->n * sizeof *copy);
    memcpy(copy, list->at, (size_t)list->n * sizeof *copy);
    return (Names){copy, list->n};
}

/* Whether all names are the same, so that no order is needed. */
static int is_single(Names left, Names right, Names *single) {
    const int32_t *first = left.n ? left.at : right.at;
    for (int32_t i = 0; i < left.n; i++)
        if (left.at[i] != *first) return 0;
    for (int32_t i = 0; i < right.n; i++)
        if (right.at[i] != *first) return 0;
    *single = (Names){first, left.n + right.n ? 1 : 0};
    return 1;
}

/* tuple(set(left + right)) */
Names join_names(Reader *reader, Names left, Names right) {
    Names single;
    if (is_single(left, right, &single)) return single;
    list_set(reader, left, right, &reader->order[0]);
    return keep_names(reader, &reader->order[0]);
}

/* Joins `more` to `before` one by one; without `before` the first one stands as it is. */
Names extend_names(Reader *reader, const Names *before, Names more) {
    Names known = before ? *before : (Names){more.at, 0}, single;
    Ints *order = reader->order;
    int which = 0;
    if (is_single(known, more, &single)) return single;
    if (list_set(reader, known, more, &order[0])) /* without collisions only the last step counts */
        return keep_names(reader, &order[0]);
    if (before == NULL) {
        known.n = 1;
        more = (Names){more.at + 1, more.n - 1};
    }
    if ((int64_t)more.n * ((int64_t)more.n + known.n) > MAX_STEPS) {
        list_set(reader, known, more, &order[0]);
        return keep_names(reader, &order[0]);
    }
    for (int32_t i = 0; i < more.n; i++, which ^= 1) {
        list_set(reader, known, (Names){more.at + i, 1}, &order[which]);
        known = (Names){order[which].at, order[which].n};
    }
    return keep_names(reader, &order[which ^ 1]);
}
