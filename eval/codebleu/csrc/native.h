/* CodeBLEU's mode `reference` in C: what eval/codebleu's Python modules do, for texts one after the other.
 *
 * The Python modules say what is counted and why; this says it again for speed, function by function under the same
 * names. It knows of tree-sitter only the Python objects of the package `tree_sitter`, whose methods it calls without
 * the interpreter in between. What is rare is left to Python: reading says so, and the caller takes the other path.
 *
 *   memory.c  growing arrays, memory of one text, numbers for equal keys
 *   walk.c    tree -> numbers of subtrees, names of tokens, program       (tree.py)
 *   rules.c   what a node with a rule does to the program                 (program.py, instructions.py)
 *   order.c   the order in which a set lists names                        (name_order.py)
 *   flow.c    runs the program                                            (dataflow.py)
 *   edges.c   ... and finds the edges
 *   text.c    comments, n-grams, what two texts share                     (comments.py, ngrams.py)
 *   module.c  the Python types Reader and Reading                         (scorer.py)
 *
 * Nothing here calls itself, whatever the depth of a tree. A function that finds no memory or a Python error jumps to
 * `Reader.bail`; Python objects that are held at that moment are in `Reader.held`.
 */
#ifndef CODEBLEU_NATIVE_H
#define CODEBLEU_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <setjmp.h>
#include <stdint.h>

#define NATIVE_VERSION 1 /* of what native.py hands over; equal to its VERSION */

#define ERROR_KIND 0xFFFF
#define KINDS (ERROR_KIND + 1)
#define FIRST_NUMBER KINDS /* smaller numbers are kinds, without named children */
#define DEEPEST 992
#define LONGEST (1 << 28) /* bytes of text; offsets and numbers are int32_t */

/* Growing arrays. */
typedef struct { int32_t *at; int32_t n, room; } Ints;

typedef struct { int32_t op, arg; } Step;
typedef struct { Step *at; int32_t n, room; } Steps;

/* A step is a token (arg its number) or an instruction of instructions.py. Of these, ASSIGN, DEFINE and LOOP have their
 * operands in `Reader.operands`, from arg on:
 *   ASSIGN  target tokens from, to, source tokens from, to, relation, apart
 *   DEFINE  tokens from, to
 *   LOOP    tokens from, to, steps to skip (arg is -1 while the loop is open)
 * JOIN has "keep base" as arg, AGAIN, ONCE and SKIP a number of steps. */
enum { IDENTIFIER_TOKEN, OTHER_TOKEN, ASSIGN, DEFINE, FORK, SIDE, SIDE_END, JOIN, LOOP, LOOP_END, AGAIN, ONCE, SKIP, BROKEN };
enum { COMES_FROM, COMPUTED_FROM };

/* What a kind of node means to the walk, as in tree.py. */
enum { PLAIN, IDENTIFIER, NAMED, COMMENT, CHECKED_IDENTIFIER, RULE, ANONYMOUS };

/* What a node with a rule does, named as in program.py; SIDES, LISTED and NAMELESS are SideContext, Context and
 * AnonymousContext. */
enum {
    STRING_NODE, CLAUSES_FIRST, REPEATED, FOREACH, COUNTED, BRANCH, INCREMENT, ASSIGNMENT, TUPLE, CLAUSE, PATTERN_LOOP,
    DEFINITION, SIDES, LISTED, NAMELESS
};

/* Flags of a kind of node. */
enum { IS_ALTERNATIVE = 1, IS_ELSE = 2, IS_CLAUSE = 4, IS_COMMA = 8, IS_BLOCK = 16, IS_STRING = 32 };

/* A child: by position (from the end if negative) or by field (-1: no such field). */
typedef struct { int32_t by_field, number; } Selector;

typedef struct {
    int32_t opener;
    int32_t option;  /* DEFINITION: children; BRANCH: has_else; TUPLE: positional; COUNTED, FOREACH: a kind, or -1 */
    Selector name, value, body; /* FOREACH: target, source, body */
} Rule;

typedef struct Context Context;

typedef struct Child {
    struct Child *next;
    Context *inner;
    int32_t kind, field, token, step; /* field 0: none */
} Child;

struct Context {
    const Rule *rule;
    Child *first, *last;
    Context *parts_of;
    Step *raw;
    int32_t opener, kind, first_token, first_step, count, raw_count, end, start_byte, end_byte;
    char has_raw, lists, asks, has_else, beside, aside;
};

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

/* Tags of keys in Reader.shapes. */
enum { SUBTREE, EDGE, SOURCES_OF_EDGE, PRINTED };

/* Memory that is given back all at once. */
typedef struct Chunk Chunk;
typedef struct { Chunk *chunk; size_t used; } Arena;

/* A part of the text: what CPython stores for the same str, `width` bytes a character. */
typedef struct { const void *data; int32_t length, width; } Slice;

typedef struct {
    PyObject_HEAD
    /* The language; all but the last line is indexed by kind. */
    PyObject *spec;
    const uint8_t *fast, *broken, *careful, *flags;
    const uint8_t *rule_of;
    const int32_t *same_name; /* the first kind with the same name */
    PyObject *kind_names;
    Rule *rules;
    int32_t left, right, update, sticky, base_survives, foreach_apart, comments;
    /* Callables: see native.py. */
    PyObject *parse, *strip, *padded, *count_missing, *is_printable, *print_leaf;
    /* Shared by all texts since the last reset. */
    PyObject *keywords;
    Interner shapes, words;
    int32_t keyword_count;
    Ints tally; /* number -> how often, all zero between two calls */
    int64_t era; /* number of resets: readings of different eras have nothing to do with each other */
    /* Of the text that is read. */
    Arena arena;
    Interner names;
    Ints shape; /* of all open nodes: kind and numbers of the children; a field is a negative number before its child */
    Ints subtrees, tokens, operands, empty, edges; /* tokens: number of the name; empty: token, place, ... */
    Ints same; /* token -> the one that stands for it; no elements if each stands for itself */
    struct Frame *frames;
    int32_t frames_n, frames_room, too_deep;
    Steps program, scratch;
    const char *source; /* UTF-8 */
    int32_t source_length;
    PyObject *pad;     /* borrowed; NULL, or the padded text where it is not ASCII */
    PyObject *held[8]; /* what is given back when the text is read or reading fails */
    Ints found_words;
    /* text.c, order.c and flow.c */
    struct Gram *grams;
    uint32_t gram_mask, gram_round;
    Ints gram_orders, gram_said, gram_meant, gram_most;
    Ints set_table, set_list, order[2];
    uint64_t *hashes; /* of the first hash_count names */
    int32_t hash_count, hash_room;
    struct Flow *flow;
    jmp_buf bail;
    int busy;
} Reader;

typedef struct {
    PyObject_HEAD
    int64_t era;
    PyObject *code; /* the text without comments */
    int32_t *numbers; /* subtrees, then edges, then words */
    int32_t subtrees, edges, words;
    int32_t mass;  /* of the words, in fifths */
    int32_t odd; /* left to Python */
} Reading;

/* memory.c */
void bail_out(Reader *reader) __attribute__((noreturn));
void no_memory(Reader *reader) __attribute__((noreturn));
void grow(Reader *reader, void **at, int32_t *room, int32_t wanted, size_t size);
void *arena_take(Reader *reader, size_t size);
void arena_reset(Arena *arena);
void arena_free(Arena *arena);
int32_t intern(Reader *reader, Interner *interner, const void *key, int32_t length, int32_t tag);
void interner_clear(Interner *interner);
void interner_free(Interner *interner);
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

/* walk.c */
int find_cursor_methods(PyObject *tree_sitter);
int read_tree(Reader *reader, PyObject *tree);

/* rules.c */
Context *begin_child(Reader *reader, Context *context, int32_t kind, int32_t field, int32_t token);
Context *open_context(Reader *reader, int32_t opener, const Rule *rule, int32_t kind, int32_t token);
void add_child(Reader *reader, Context *context, int32_t kind, int32_t field, int32_t token, Context *inner);
void close_context(Reader *reader, Context *context, int32_t token);

/* order.c */
uint64_t siphash13(const unsigned char *data, size_t length);
typedef struct { const int32_t *at; int32_t n; } Names;
Names join_names(Reader *reader, Names left, Names right);
Names extend_names(Reader *reader, const Names *before, Names more);

/* edges.c */
void find_edges(Reader *reader);
void flow_free(Reader *reader);

/* text.c */
PyObject *strip_c_like(PyObject *text);
int32_t split_words(Reader *reader, PyObject *text, Ints *words);
PyObject *count_shared(Reader *reader, Reading *const *references, Py_ssize_t count, const Reading *hypothesis);

#endif
