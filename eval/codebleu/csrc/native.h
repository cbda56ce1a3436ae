/* CodeBLEU's mode `reference` in C: the fast implementation of what eval/codebleu/reference specifies in Python.
 *
 * One walk over a syntax tree numbers its subtrees and writes a short program for its dataflow, which then runs without
 * recursion. During the walk, every token that dataflow treats as a variable adds a step to the program. When a node
 * with a rule ends, it rearranges what its children added: it drops the target of an assignment, puts a source before
 * its target, or wraps the program of a loop or branch. So the program is in the order of Python's visits.
 *
 * Of tree-sitter only the Python objects of the package `tree_sitter` are used; their methods are called without going
 * through the interpreter. Rare cases are left to Python: reading says so, and the caller takes the other path.
 *
 *   memory.c  growing arrays, memory of one text, numbers for equal keys
 *   walk.c    tree -> numbers of subtrees, names of tokens, program       (tree.py)
 *   rules.c   what a node with a rule does to the program                 (dataflow.py)
 *   flow.c    runs the program                                            (dataflow.py)
 *   edges.c   ... and finds the edges                                     (dataflow.py)
 *   order.c   the order in which a set lists names                        (name_order.py)
 *   text.c    comments, n-grams, what two texts share                     (comments.py, reader.py)
 *   module.c  the Python types Reader and Reading                         (../_native.pyi, native.py)
 *
 * No function is recursive, whatever the depth of a tree. A function that runs out of memory or meets a Python error
 * jumps to `Reader.bail`; Python objects held at that moment are in `Reader.held`.
 */
#ifndef CODEBLEU_NATIVE_H
#define CODEBLEU_NATIVE_H

#include "memory.h"

#include <setjmp.h>

#define NATIVE_VERSION 2 /* of the arguments from native.py; equal to its VERSION */

#define ERROR_KIND 0xFFFF
#define KINDS (ERROR_KIND + 1)
#define FIRST_NUMBER KINDS /* smaller numbers stand for kinds without named children */
#define MAX_DEPTH 992
#define MAX_BYTES (1 << 28) /* bytes of text; offsets and numbers are int32_t */

/* A step is a token (arg is its number) or an instruction:
 *   ASSIGN                      gives the target tokens the value of the source tokens
 *   DEFINE                      introduces names without a value
 *   FORK, SIDE, SIDE_END, JOIN  alternatives, each of which starts from the state at FORK
 *   LOOP, AGAIN, LOOP_END       a loop; AGAIN jumps back once
 *   ONCE, SKIP                  skip steps: ONCE in the second round of a loop, SKIP always
 *   BROKEN                      a node lacks a part that its rule needs
 * ASSIGN, DEFINE and LOOP have their operands in `Reader.operands`, from arg on:
 *   ASSIGN  target tokens from, to, source tokens from, to, relation, apart
 *   DEFINE  tokens from, to
 *   LOOP    tokens from, to, steps to skip (arg is -1 while the loop is open)
 * JOIN has "keep base" as arg, AGAIN, ONCE and SKIP a number of steps. */
enum {
    IDENTIFIER_TOKEN, OTHER_TOKEN, ASSIGN, DEFINE, FORK, SIDE, SIDE_END, JOIN, LOOP, LOOP_END, AGAIN, ONCE, SKIP, BROKEN
};
enum { COMES_FROM, COMPUTED_FROM };

/* What the walk does with a kind of node. PLAIN is an anonymous token whose text is the name of its kind. Missing nodes
 * and text that is not ASCII need the careful table, which has no PLAIN and IDENTIFIER. */
enum { PLAIN, IDENTIFIER, NAMED, COMMENT, CHECKED_IDENTIFIER, RULE, ANONYMOUS };

/* What a context does with the steps of its children: the rules of native.py; the SIDES of a tuple assignment,
 * whose parts are listed; a node whose children are only LISTED; an anonymous node with children. */
enum {
    STRING_NODE, CLAUSES_FIRST, REPEATED, FOREACH, COUNTED, BRANCH, INCREMENT, ASSIGNMENT, TUPLE, CLAUSE, PATTERN_LOOP,
    DEFINITION, SIDES, LISTED, NAMELESS
};

/* Flags of a kind. */
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

/* Tags of keys in Reader.shapes. */
enum { SUBTREE, EDGE, SOURCES_OF_EDGE, PRINTED };

/* A part of the text: what CPython stores for the same str, `width` bytes a character. */
typedef struct { const void *data; int32_t length, width; } Slice;

struct Reader {
    PyObject_HEAD
    /* The language; arrays are indexed by kind. */
    PyObject *spec;
    const uint8_t *fast, *careful, *flags;
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
    Ints tally; /* number -> count, all zero between calls */
    int64_t era; /* number of resets; readings of different eras cannot be compared */
    /* Of the text being read. */
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
    PyObject *held[8]; /* released when the text is read or reading fails */
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
};

static inline void *arena_take(Reader *reader, size_t size) { return arena_allocate(reader, &reader->arena, size); }

typedef struct {
    PyObject_HEAD
    int64_t era;
    PyObject *code; /* the text without comments */
    int32_t *numbers; /* subtrees, then edges, then words */
    int32_t subtrees, edges, words;
    int32_t mass;  /* of the words, in fifths */
    int32_t odd; /* left to Python */
} Reading;

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
