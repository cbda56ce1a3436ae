/* Comments, words, and what two texts share. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

#define ORDERS 4
#define KEYWORD_WEIGHT 5 /* in fifths; any other word weighs 1 */

/* Whitespace of str.split and str.isspace, in ASCII. */
static int is_space(unsigned char c) { return c == ' ' || (c >= 9 && c <= 13) || (c >= 28 && c <= 31); }

/* Copies text without blank lines, possibly in place; returns the length. */
static Py_ssize_t drop_blank_lines(char *to, const char *text, Py_ssize_t size) {
    Py_ssize_t length = 0;
    for (Py_ssize_t start = 0; start < size;) {
        const char *newline = memchr(text + start, '\n', (size_t)(size - start));
        Py_ssize_t end = newline ? newline - text : size, first = start;
        while (first < end && is_space((unsigned char)text[first])) first++;
        if (first < end) {
            if (length) to[length++] = '\n';
            memmove(to + length, text + start, (size_t)(end - start));
            length += end - start;
        }
        start = end + 1;
    }
    return length;
}

/* The end of the literal that opens at `start`, or 0 if it is not closed. */
static Py_ssize_t close_literal(const char *text, Py_ssize_t start, Py_ssize_t size) {
    char quote = text[start];
    for (Py_ssize_t i = start + 1; i < size; i++) {
        if (text[i] == '\\') i++;
        else if (text[i] == quote) return i + 1;
    }
    return 0;
}

/* Replaces comments in ASCII text with one space; skips quoted literals. */
PyObject *strip_c_like(PyObject *code) {
    Py_ssize_t size = PyUnicode_GET_LENGTH(code), length = 0, start = 0, last_close = -1;
    const char *text = PyUnicode_DATA(code);
    char unclosed[2] = {0, 0}; /* once a quote is not closed, no later one of its kind is */
    char *copy = PyMem_Malloc((size_t)size + 1);
    if (copy == NULL) return PyErr_NoMemory();
    for (Py_ssize_t i = size - 2; i >= 0 && last_close < 0; i--)
        if (text[i] == '*' && text[i + 1] == '/') last_close = i;
    while (start < size) {
        char c = text[start], next = start + 1 < size ? text[start + 1] : 0;
        if (c == '/' && next == '/') {
            const char *end = memchr(text + start, '\n', (size_t)(size - start));
            start = end ? end - text : size;
            copy[length++] = ' ';
        } else if (c == '/' && next == '*' && last_close >= start + 2) {
            for (start += 2; text[start] != '*' || text[start + 1] != '/';) start++;
            start += 2;
            copy[length++] = ' ';
        } else if ((c == '"' || c == '\'') && !unclosed[c == '"']) {
            Py_ssize_t end = close_literal(text, start, size);
            unclosed[c == '"'] = end == 0;
            if (end == 0) end = start + 1;
            memcpy(copy + length, text + start, (size_t)(end - start));
            length += end - start;
            start = end;
        } else {
            copy[length++] = c;
            start++;
        }
    }
    length = drop_blank_lines(copy, copy, length);
    PyObject *stripped = PyUnicode_New(length, 127);
    if (stripped) memcpy(PyUnicode_DATA(stripped), copy, (size_t)length);
    PyMem_Free(copy);
    return stripped;
}

/* Appends the numbers of the words between whitespace; returns their mass, in fifths. Keywords have the first numbers. */
int32_t split_words(Reader *reader, PyObject *text, Ints *words) {
    int32_t first = words->n, mass = 0;
    if (PyUnicode_IS_ASCII(text)) {
        const char *data = PyUnicode_DATA(text);
        Py_ssize_t size = PyUnicode_GET_LENGTH(text), start = 0;
        for (;;) {
            while (start < size && is_space((unsigned char)data[start])) start++;
            if (start == size) break;
            Py_ssize_t end = start + 1;
            while (end < size && !is_space((unsigned char)data[end])) end++;
            push(reader, words, intern(reader, &reader->words, data + start, (int32_t)(end - start), PyUnicode_1BYTE_KIND));
            start = end;
        }
    } else {
        PyObject *parts = PyUnicode_Split(text, NULL, -1);
        if (parts == NULL) bail_out(reader);
        Py_XSETREF(reader->held[3], parts);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parts); i++) {
            PyObject *part = PyList_GET_ITEM(parts, i);
            int32_t width = PyUnicode_KIND(part);
            int32_t length = (int32_t)PyUnicode_GET_LENGTH(part) * width;
            push(reader, words, intern(reader, &reader->words, PyUnicode_DATA(part), length, width));
        }
    }
    for (int32_t i = first; i < words->n; i++) mass += words->at[i] < reader->keyword_count ? KEYWORD_WEIGHT : 1;
    return mass;
}

/* N-grams of the hypothesis are numbered; an n-gram is identified by the one without its last word, and that word. */
struct Gram { uint64_t key; uint32_t round; int32_t number; };

static struct Gram *find_gram(Reader *reader, int32_t shorter, int32_t word) {
    uint64_t key = (uint64_t)(uint32_t)shorter << 32 | (uint32_t)word, hash = key * 0x9E3779B97F4A7C15u;
    uint32_t place = (uint32_t)(hash >> 32) & reader->gram_mask;
    while (reader->grams[place].round == reader->gram_round && reader->grams[place].key != key)
        place = (place + 1) & reader->gram_mask;
    struct Gram *gram = &reader->grams[place];
    if (gram->round != reader->gram_round) {
        gram->key = key;
        gram->number = -1;
    }
    return gram;
}

static void zero(Reader *reader, Ints *ints, int32_t count) {
    reserve(reader, ints, count);
    memset(ints->at, 0, (size_t)count * sizeof *ints->at);
    ints->n = count;
}

/* Numbers the n-grams of the hypothesis: gram_orders has their order minus 1, gram_said how often they occur. */
static void number_grams(Reader *reader, const int32_t *words, int32_t count) {
    uint32_t wanted = 64;
    if (count > MAX_BYTES / 16) no_memory(reader);
    while (wanted < (uint32_t)count * 2 * ORDERS) wanted *= 2;
    if (reader->grams == NULL || reader->gram_mask + 1 < wanted) {
        free(reader->grams);
        reader->gram_mask = wanted - 1;
        reader->gram_round = 0;
        reader->grams = calloc(wanted, sizeof *reader->grams);
        if (reader->grams == NULL) no_memory(reader);
    }
    if (++reader->gram_round == 0) {
        memset(reader->grams, 0, ((size_t)reader->gram_mask + 1) * sizeof *reader->grams);
        reader->gram_round = 1;
    }
    reader->gram_orders.n = reader->gram_said.n = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t number = -1;
        for (int32_t order = 0; order < ORDERS && i + order < count; order++) {
            struct Gram *gram = find_gram(reader, number, words[i + order]);
            if (gram->number < 0) {
                gram->round = reader->gram_round;
                gram->number = reader->gram_orders.n;
                push(reader, &reader->gram_orders, order);
                push(reader, &reader->gram_said, 0);
            }
            number = gram->number;
            reader->gram_said.at[number]++;
        }
    }
}

/* Adds to `matches` the sizes of the multiset intersections with a reference, order by order, and to `mass` that of the
 * unigrams, in fifths; raises gram_most to the counts of the reference. */
static void match_grams(Reader *reader, const int32_t *words, int32_t count, int64_t *matches, int64_t *mass) {
    Ints *meant = &reader->gram_meant;
    zero(reader, meant, reader->gram_orders.n);
    for (int32_t i = 0; i < count; i++) {
        int32_t number = -1;
        for (int32_t order = 0; order < ORDERS && i + order < count; order++) {
            number = find_gram(reader, number, words[i + order])->number;
            if (number < 0) break;
            if (++meant->at[number] > reader->gram_said.at[number]) continue;
            matches[order]++;
            if (order == 0) *mass += words[i] < reader->keyword_count ? KEYWORD_WEIGHT : 1;
        }
    }
    for (int32_t i = 0; i < meant->n; i++)
        if (meant->at[i] > reader->gram_most.at[i]) reader->gram_most.at[i] = meant->at[i];
}

/* How many of `wanted` are in `found`; each element of `found` matches only one if `clipped`. */
static int64_t count_matches(Reader *reader, const int32_t *wanted, int32_t wants, const int32_t *found, int32_t finds,
                             int clipped) {
    int32_t *tally = reader->tally.at;
    int64_t matches = 0;
    for (int32_t i = 0; i < finds; i++) tally[found[i]]++;
    for (int32_t i = 0; i < wants; i++)
        if (tally[wanted[i]] > 0) {
            matches++;
            tally[wanted[i]] -= clipped;
        }
    for (int32_t i = 0; i < finds; i++) tally[found[i]] = 0;
    return matches;
}

/* The counts of a hypothesis against its references, in the order of counts.py. */
PyObject *count_shared(Reader *reader, Reading *const *references, Py_ssize_t count, const Reading *hypothesis) {
    int64_t found[23] = {0}, matches[ORDERS] = {0}, mass = 0;
    int32_t said = hypothesis->words, known = FIRST_NUMBER + reader->shapes.n;
    const int32_t *words = hypothesis->numbers + hypothesis->subtrees + hypothesis->edges;
    if (reader->tally.n < known) {
        reserve(reader, &reader->tally, known);
        memset(reader->tally.at + reader->tally.n, 0, (size_t)(known - reader->tally.n) * sizeof(int32_t));
        reader->tally.n = known;
    }
    number_grams(reader, words, said);
    zero(reader, &reader->gram_most, reader->gram_orders.n);
    int64_t closest = INT64_MAX, nearest = INT64_MAX;
    for (Py_ssize_t i = 0; i < count; i++) {
        const Reading *reference = references[i];
        const int32_t *numbers = reference->numbers;
        int64_t length = reference->words, distance = length > said ? length - said : said - length;
        if (distance < nearest || (distance == nearest && length < closest)) {
            nearest = distance;
            closest = length;
        }
        match_grams(reader, numbers + reference->subtrees + reference->edges, reference->words, matches, &mass);
        for (int order = 0; order < ORDERS; order++) {
            int64_t total = order ? length - order : reference->mass, least = order ? 1 : KEYWORD_WEIGHT;
            found[15 + order] += total > least ? total : least;
        }
        found[19] += count_matches(reader, numbers, reference->subtrees, hypothesis->numbers, hypothesis->subtrees, 0);
        found[20] += reference->subtrees;
        found[21] += count_matches(reader, numbers + reference->subtrees, reference->edges,
                                   hypothesis->numbers + hypothesis->subtrees, hypothesis->edges, 1);
        found[22] += reference->edges;
    }
    found[0] = said;
    found[1] = closest;
    found[2] = 2; /* published: the length of a pair of tokens and weights */
    for (int32_t i = 0; i < reader->gram_orders.n; i++) {
        int32_t most = reader->gram_most.at[i], here = reader->gram_said.at[i];
        found[3 + reader->gram_orders.at[i]] += most < here ? most : here;
    }
    for (int order = 0; order < ORDERS; order++) {
        found[7 + order] = said - order > 1 ? said - order : 1;
        found[11 + order] = order ? matches[order] : mass;
    }
    PyObject *counts = PyTuple_New(23);
    for (int i = 0; counts && i < 23; i++) {
        PyObject *number = PyLong_FromLongLong(found[i]);
        if (number == NULL) Py_CLEAR(counts);
        else PyTuple_SET_ITEM(counts, i, number);
    }
    return counts;
}
