/* Runs the dataflow program of one text.
 *
 * It does what the visits of dataflow.py do without copying the state at every branch: a journal notes what a branch
 * changes, so joining alternatives costs what they changed. Large sets of definitions are joined lazily.
 */
#include "flow.h"

#include <stdlib.h>
#include <string.h>

#define MEMORY_DEPTH 2 /* the outcome of loops nested this deep is remembered */
#define MAX_JOINED 64  /* larger sets of definitions are joined lazily */

#define MORE(list, n, room) \
    if ((n) == (room)) grow(reader, (void **)&(list), &(room), (n) + 1, sizeof *(list))

static int compare_ints(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static void sort_distinct(Ints *ints) {
    int32_t kept = 0;
    if (ints->n > 1) qsort(ints->at, (size_t)ints->n, sizeof *ints->at, compare_ints);
    for (int32_t i = 0; i < ints->n; i++)
        if (i == 0 || ints->at[i] != ints->at[kept - 1]) ints->at[kept++] = ints->at[i];
    ints->n = kept;
}

static Set *set_of(Flow *flow, int32_t definition) { return &flow->set_list[-2 - definition]; }

/* The set of these parts, which are sorted; equal small sets are one set. */
static int32_t make_set(Reader *reader, Flow *flow, const Ints *parts, char joined) {
    int32_t number = flow->sets.n;
    if (joined) intern(reader, &flow->sets, &number, sizeof number, 1); /* a unique key */
    else number = intern(reader, &flow->sets, parts->at, parts->n * (int32_t)sizeof *parts->at, 0);
    if (number == flow->sets.n - 1) {
        MORE(flow->set_list, number, flow->set_room);
        flow->set_list[number] = (Set){flow->parts.n, parts->n, joined, 0};
        push_many(reader, &flow->parts, parts->at, parts->n);
    }
    return -2 - number;
}

/* Joins the definitions in flow->stack. */
static int32_t join_definitions(Reader *reader, Flow *flow) {
    Ints *distinct = &flow->stack, *whole = &flow->union_of;
    sort_distinct(distinct);
    if (distinct->n == 1) return distinct->at[0];
    whole->n = 0;
    for (int32_t i = 0; i < distinct->n; i++) {
        int32_t part = distinct->at[i];
        if (part >= 0) {
            push(reader, whole, part);
            continue;
        }
        if (set_of(flow, part)->joined) return make_set(reader, flow, distinct, 1);
        push_many(reader, whole, flow->parts.at + set_of(flow, part)->from, set_of(flow, part)->count);
    }
    sort_distinct(whole);
    return whole->n <= MAX_JOINED ? make_set(reader, flow, whole, 0) : make_set(reader, flow, distinct, 1);
}

static void mark_definitions(Reader *reader, Flow *flow, int32_t definitions) {
    Ints *stack = &flow->stack;
    stack->n = 0;
    push(reader, stack, definitions);
    while (stack->n) {
        int32_t part = stack->at[--stack->n];
        if (part >= 0) {
            flow->marked[part] = 1;
        } else if (!set_of(flow, part)->marked) {
            set_of(flow, part)->marked = 1;
            push_many(reader, stack, flow->parts.at + set_of(flow, part)->from, set_of(flow, part)->count);
        }
    }
}

static void open_journal(Flow *flow) {
    flow->journal = ++flow->journals;
    flow->journal_from = flow->changes_n;
}

static void set_state(Reader *reader, Flow *flow, int32_t name, int32_t definitions) {
    if (flow->journal && flow->journal_of[name] != flow->journal) {
        MORE(flow->changes, flow->changes_n, flow->changes_room);
        flow->changes[flow->changes_n++] = (Change){name, flow->states[name], flow->journal_of[name]};
        flow->journal_of[name] = flow->journal;
    }
    flow->states[name] = definitions;
}

/* Reverts what the open journal notes, and pushes the reverted values on flow->values. */
static void undo(Reader *reader, Flow *flow) {
    for (int32_t i = flow->journal_from; i < flow->changes_n; i++) {
        Change change = flow->changes[i];
        MORE(flow->values, flow->values_n, flow->values_room);
        flow->values[flow->values_n++] = (Value){change.name, flow->states[change.name], NONE};
        flow->states[change.name] = change.before;
        flow->journal_of[change.name] = change.outer;
    }
    flow->changes_n = flow->journal_from;
}

static void end_side(Reader *reader, Flow *flow) {
    Fork *fork = &flow->forks[flow->forks_n - 1];
    int32_t main_from = fork->main_from, main_end = flow->values_n;
    undo(reader, flow);
    open_journal(flow);
    for (int32_t i = main_from; i < main_end; i++)
        set_state(reader, flow, flow->values[i].name, flow->values[i].definitions);
    int32_t changed = flow->values_n - main_end;
    if (changed) memmove(flow->values + main_from, flow->values + main_end, (size_t)changed * sizeof *flow->values);
    flow->values_n = main_from + changed;
    fork->sides++;
}

/* Ends a branch without alternatives: its changes move to the outer journal. */
static void join_main_line(Reader *reader, Flow *flow, Fork fork, int32_t keep_base) {
    int32_t from = flow->journal_from, end = flow->changes_n, kept = from;
    for (int32_t i = from; i < end; i++) {
        Change change = flow->changes[i];
        flow->journal_of[change.name] = change.outer;
        if (keep_base && change.before != NONE) {
            flow->stack.n = 0;
            push(reader, &flow->stack, flow->states[change.name]);
            push(reader, &flow->stack, change.before);
            flow->states[change.name] = join_definitions(reader, flow);
        }
        if (fork.journal && change.outer != fork.journal) {
            flow->journal_of[change.name] = fork.journal;
            flow->changes[kept++] = change;
        }
    }
    flow->changes_n = kept;
    flow->journal = fork.journal;
    flow->journal_from = fork.journal_from;
}

static void join_sides(Reader *reader, Flow *flow, int32_t keep_base) {
    Fork fork = flow->forks[--flow->forks_n];
    if (fork.sides == 0) {
        join_main_line(reader, flow, fork, keep_base);
        return;
    }
    undo(reader, flow);
    flow->journal = fork.journal;
    flow->journal_from = fork.journal_from;
    int32_t sides = fork.sides + 1, mark = ++flow->mark;
    for (int32_t i = fork.sides_from; i < flow->values_n; i++) { /* links the values of each variable */
        Value *value = &flow->values[i];
        value->next = flow->seen[value->name] == mark ? flow->group[value->name] : NONE;
        flow->seen[value->name] = mark;
        flow->group[value->name] = i;
    }
    for (int32_t i = fork.sides_from; i < flow->values_n; i++) {
        int32_t name = flow->values[i].name, count = 0, base = flow->states[name];
        if (flow->group[name] == NONE) continue;
        flow->stack.n = 0;
        for (int32_t k = flow->group[name]; k != NONE; k = flow->values[k].next, count++)
            push(reader, &flow->stack, flow->values[k].definitions);
        flow->group[name] = NONE;
        if ((count < sides || keep_base) && base != NONE) push(reader, &flow->stack, base);
        set_state(reader, flow, name, join_definitions(reader, flow));
    }
    flow->values_n = fork.sides_from;
}

/* The sources known for a key in the innermost loop, or NULL. */
static Names *known_sources(Flow *flow, int32_t key) {
    int32_t from = flow->loops_n ? flow->loops[flow->loops_n - 1].found_from : 0;
    return flow->place[key] >= from ? &flow->found[flow->place[key]].sources : NULL;
}

static void add_sources(Reader *reader, Flow *flow, int32_t key, Names sources) {
    MORE(flow->found, flow->found_n, flow->found_room);
    flow->found[flow->found_n] = (Found){key, flow->place[key], sources};
    flow->place[key] = flow->found_n++;
}

static void merge_found(Reader *reader, Flow *flow, const Found *found, int32_t count) {
    for (int32_t i = 0; i < count; i++) {
        Names *known = known_sources(flow, found[i].key);
        if (known) *known = join_names(reader, *known, found[i].sources);
        else add_sources(reader, flow, found[i].key, found[i].sources);
    }
}

static int32_t same_token(const Reader *reader, int32_t token) {
    return reader->same.n ? reader->same.at[token] : token;
}

static void assign(Reader *reader, Flow *flow, const int32_t *operands) {
    int32_t start = operands[0], stop = operands[1], source = operands[2], source_stop = operands[3];
    int32_t relation = operands[4];
    Names sources = {reader->tokens.at + source, source_stop > source ? source_stop - source : 0}, first = {NULL, -1};
    int apart = operands[5] && sources.n != 1;
    if (sources.n && start < stop) {
        for (int32_t token = source; token < source_stop; token++) flow->marked[same_token(reader, token)] = 1;
        for (int32_t token = start; token < stop; token++) flow->marked[same_token(reader, token)] = 1;
    }
    for (int32_t i = start; i < stop; i++) {
        int32_t token = same_token(reader, i);
        if (sources.n || !apart) {
            int32_t key = 2 * token + relation;
            Names *known = known_sources(flow, key);
            if (known) {
                *known = apart ? extend_names(reader, known, sources) : join_names(reader, *known, sources);
            } else {
                if (first.n < 0) first = apart ? extend_names(reader, NULL, sources) : sources;
                add_sources(reader, flow, key, first);
            }
        }
        set_state(reader, flow, reader->tokens.at[token], token);
    }
}

static void define(Reader *reader, Flow *flow, const int32_t *operands) {
    for (int32_t i = operands[0]; i < operands[1]; i++) {
        int32_t token = same_token(reader, i), key = 2 * token + COMES_FROM;
        Names *known = known_sources(flow, key), nothing = {reader->tokens.at, 0};
        if (known) *known = join_names(reader, *known, nothing);
        else add_sources(reader, flow, key, nothing);
        set_state(reader, flow, reader->tokens.at[token], token);
    }
}

/* Looks up the outcome of the loop at a step from the current states of its variables; makes room for it if there is
 * none. Keys are lists in memory_keys: names, then the state of each. */
static int32_t recall(Reader *reader, Flow *flow, int32_t step, int32_t from, int32_t to, int *known) {
    Ints *keys = &flow->memory_keys;
    int32_t key_from = keys->n, mark = ++flow->mark;
    for (int32_t token = from; token < to; token++) {
        int32_t name = reader->tokens.at[token];
        if (flow->seen[name] != mark) push(reader, keys, name);
        flow->seen[name] = mark;
    }
    int32_t count = keys->n - key_from;
    for (int32_t i = 0; i < count; i++) push(reader, keys, flow->states[keys->at[key_from + i]]);
    while (flow->memory_at.n < reader->program.n) push(reader, &flow->memory_at, 0);
    const int32_t *states = keys->at + key_from + count;
    for (int32_t i = flow->memory_at.at[step] - 1; i >= 0; i = flow->memories[i].next)
        if (memcmp(keys->at + flow->memories[i].key_from + count, states, (size_t)count * sizeof *states) == 0) {
            keys->n = key_from;
            *known = 1;
            return i;
        }
    MORE(flow->memories, flow->memories_n, flow->memories_room);
    flow->memories[flow->memories_n] = (Memory){key_from, count, flow->memory_at.at[step] - 1, 0, 0, NULL};
    *known = 0;
    return flow->memories_n++; /* valid once the loop ends */
}

/* Opens a loop, or repeats a remembered outcome; returns how many steps to skip. */
static int32_t enter_loop(Reader *reader, Flow *flow, int32_t step, const int32_t *operands) {
    int32_t memory = -1;
    if (flow->loops_n >= MEMORY_DEPTH) {
        int known;
        memory = recall(reader, flow, step, operands[0], operands[1], &known);
        if (known) {
            Memory found = flow->memories[memory];
            merge_found(reader, flow, found.found, found.found_count);
            for (int32_t i = 0; i < found.names; i++) {
                int32_t after = flow->memory_keys.at[found.after_from + i];
                if (after != NONE) set_state(reader, flow, flow->memory_keys.at[found.key_from + i], after);
            }
            return operands[2];
        }
    }
    MORE(flow->loops, flow->loops_n, flow->loops_room);
    flow->loops[flow->loops_n++] = (Loop){step, flow->found_n, 0, memory};
    return 0;
}

static void leave_loop(Reader *reader, Flow *flow) {
    Loop loop = flow->loops[--flow->loops_n];
    int32_t count = flow->found_n - loop.found_from;
    Found *found = arena_take(reader, (size_t)count * sizeof *found);
    if (count) memcpy(found, flow->found + loop.found_from, (size_t)count * sizeof *found);
    for (int32_t i = 0; i < count; i++) flow->place[found[i].key] = found[i].outer;
    flow->found_n = loop.found_from;
    merge_found(reader, flow, found, count);
    if (loop.memory < 0) return;
    Memory *memory = &flow->memories[loop.memory];
    memory->found = found;
    memory->found_count = count;
    memory->after_from = flow->memory_keys.n;
    memory->next = flow->memory_at.at[loop.step] - 1;
    flow->memory_at.at[loop.step] = loop.memory + 1;
    for (int32_t i = 0; i < memory->names; i++)
        push(reader, &flow->memory_keys, flow->states[flow->memory_keys.at[memory->key_from + i]]);
}

static void read_token(Reader *reader, Flow *flow, int32_t token, int is_identifier) {
    int32_t name = reader->tokens.at[token];
    token = same_token(reader, token);
    if (flow->states[name] != NONE) {
        flow->read[token] = USED;
        if (flow->states[name] >= 0) flow->marked[flow->states[name]] = 1;
        else mark_definitions(reader, flow, flow->states[name]);
        return;
    }
    if (!flow->read[token]) flow->read[token] = NEW;
    if (is_identifier) set_state(reader, flow, name, token);
}

int run_program(Reader *reader, Flow *flow) {
    const Step *program = reader->program.at;
    const int32_t *operands = reader->operands.at;
    for (int32_t i = 0; i < reader->program.n; i++) {
        Step step = program[i];
        int needs_fork = step.op == SIDE || step.op == SIDE_END || step.op == JOIN;
        int needs_loop = step.op == AGAIN || step.op == LOOP_END || step.op == ONCE;
        if ((needs_fork && !flow->forks_n) || (needs_loop && !flow->loops_n)) {
            PyErr_SetString(PyExc_AssertionError, "a dataflow program ends a branch or loop that it has not begun");
            bail_out(reader);
        }
        switch (step.op) {
        case IDENTIFIER_TOKEN:
        case OTHER_TOKEN: read_token(reader, flow, step.arg, step.op == IDENTIFIER_TOKEN); break;
        case ASSIGN: assign(reader, flow, operands + step.arg); break;
        case DEFINE: define(reader, flow, operands + step.arg); break;
        case FORK:
            MORE(flow->forks, flow->forks_n, flow->forks_room);
            flow->forks[flow->forks_n++] = (Fork){flow->journal, flow->journal_from, flow->values_n, 0, 0};
            open_journal(flow);
            break;
        case SIDE:
            flow->forks[flow->forks_n - 1].main_from = flow->values_n;
            undo(reader, flow);
            open_journal(flow);
            break;
        case SIDE_END: end_side(reader, flow); break;
        case JOIN: join_sides(reader, flow, step.arg); break;
        case LOOP: {
            static const int32_t unclosed[] = {0, 0, 0}; /* the loop is broken, and BROKEN follows */
            i += enter_loop(reader, flow, i, step.arg < 0 ? unclosed : operands + step.arg);
            break;
        }
        case AGAIN:
            if (flow->loops[flow->loops_n - 1].round++ == 0) i -= step.arg;
            break;
        case LOOP_END: leave_loop(reader, flow); break;
        case ONCE:
            if (flow->loops[flow->loops_n - 1].round) i += step.arg;
            break;
        case SKIP: i += step.arg; break;
        default: return 0;
        }
    }
    return 1;
}
