/* The state of a running dataflow program: edges.c sets it up and collects the edges, flow.c runs it.
 *
 * A definition is what may have given a variable its value: a token, or -2 - n for set number n; NONE is no definition.
 * Branches and loops nest, so what they change is kept in stacks: the innermost one's is on top.
 */
#ifndef CODEBLEU_FLOW_H
#define CODEBLEU_FLOW_H

#include "native.h"

#define NONE -1

enum { UNREAD, NEW, USED };

typedef struct { int32_t from, count; char joined, marked; } Set; /* parts in Flow.parts */
typedef struct { int32_t name, before, outer; } Change;           /* outer: the last journal that had the name */
typedef struct { int32_t key, outer; Names sources; } Found;      /* key 2 * token + relation; outer: as in `place` */
typedef struct { int32_t journal, journal_from, sides_from, sides, main_from; } Fork;
typedef struct { int32_t step, found_from, round, memory; } Loop; /* memory: where to store its outcome, or -1 */
typedef struct { int32_t key_from, names, next, after_from, found_count; Found *found; } Memory;
typedef struct { int32_t name, definitions, next; } Value; /* next: of the same variable */

typedef struct Flow {
    int32_t *states, *journal_of, *seen, *group; /* by name: definition, last journal, last mark, ... */
    int32_t *place;                              /* by key: where in `found`, or NONE */
    char *read, *marked;                         /* by token */
    int32_t journal, journals, journal_from, mark; /* the open journal (0: none), and where it begins */
    Interner sets;
    Set *set_list;
    Change *changes;
    Value *values;
    Found *found;
    Fork *forks;
    Loop *loops;
    Memory *memories;
    int32_t set_room, changes_n, changes_room, values_n, values_room, found_n, found_room, forks_n, forks_room;
    int32_t loops_n, loops_room, memories_n, memories_room;
    Ints parts, stack, union_of, memory_at, memory_keys; /* memory_at: step -> first memory + 1 */
} Flow;

/* Runs the program; returns 0 if a node lacks a part that its rule needs. */
int run_program(Reader *reader, Flow *flow);

#endif
