/* The dataflow edges of one text, from the outcome of its program. */
#include "flow.h"

#include <stdlib.h>
#include <string.h>

static int32_t *filled(Reader *reader, int32_t count, int byte) {
    size_t size = (size_t)count * sizeof(int32_t);
    return memset(arena_take(reader, size), byte, size);
}

static Flow *new_flow(Reader *reader) {
    Flow *flow = reader->flow;
    int32_t names = reader->names.n, tokens = reader->tokens.n;
    if (flow == NULL) flow = reader->flow = calloc(1, sizeof *flow);
    if (flow == NULL) no_memory(reader);
    flow->states = filled(reader, names, 0xFF);
    flow->journal_of = filled(reader, names, 0);
    flow->seen = filled(reader, names, 0);
    flow->group = filled(reader, names, 0xFF);
    flow->place = filled(reader, 2 * tokens, 0xFF);
    flow->read = memset(arena_take(reader, (size_t)tokens), UNREAD, (size_t)tokens);
    flow->marked = memset(arena_take(reader, (size_t)tokens), 0, (size_t)tokens);
    flow->journal = flow->journals = flow->journal_from = flow->mark = 0;
    flow->changes_n = flow->values_n = flow->found_n = flow->forks_n = flow->loops_n = flow->memories_n = 0;
    flow->parts.n = flow->memory_at.n = flow->memory_keys.n = 0;
    interner_clear(&flow->sets);
    return flow;
}

void flow_free(Reader *reader) {
    Flow *flow = reader->flow;
    if (flow == NULL) return;
    interner_free(&flow->sets);
    void *all[] = {flow->set_list, flow->changes, flow->values, flow->found, flow->forks, flow->loops, flow->memories,
                   flow->parts.at, flow->stack.at, flow->union_of.at, flow->memory_at.at, flow->memory_keys.at, flow};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    reader->flow = NULL;
}

/* The number of a variable, in order of first sight. */
static int32_t variable(int32_t *numbers, int32_t *count, int32_t name) {
    if (numbers[name] == NONE) numbers[name] = (*count)++;
    return numbers[name];
}

/* The number of a list of source variables; a single variable keeps its own. */
static int32_t number_sources(Reader *reader, int32_t *variables, int32_t *known, Names sources) {
    Ints *list = &reader->shape;
    list->n = 0;
    for (int32_t i = 0; i < sources.n; i++) push(reader, list, variable(variables, known, sources.at[i]));
    if (sources.n == 1) return list->at[0];
    return intern(reader, &reader->shapes, list->at, sources.n * (int32_t)sizeof *list->at, SOURCES_OF_EDGE);
}

/* Numbers all edges: an edge is a variable, a relation and a list of source variables. */
void find_edges(Reader *reader) {
    Ints *edges = &reader->edges;
    Names last = {NULL, 0}; /* the targets of one assignment share their sources, which are numbered once */
    int32_t last_number = 0;
    edges->n = 0;
    if (reader->too_deep || reader->tokens.n == 0) return;
    Flow *flow = new_flow(reader);
    if (!run_program(reader, flow)) return;
    /* Token -> relation (NONE: never assigned) and sources; the later relation and the sources of both. */
    int32_t *relations = filled(reader, reader->tokens.n, 0xFF), *variables = flow->group, known = 0;
    Names *sources_of = arena_take(reader, (size_t)reader->tokens.n * sizeof *sources_of);
    for (int32_t i = 0; i < flow->found_n; i++) {
        int32_t token = flow->found[i].key >> 1;
        Names sources = flow->found[i].sources;
        if (relations[token] != NONE) sources = join_names(reader, sources_of[token], sources);
        relations[token] = flow->found[i].key & 1;
        sources_of[token] = sources;
    }
    for (int32_t token = 0; token < reader->tokens.n; token++) {
        int32_t relation = relations[token], read = flow->read[token];
        Names name = {reader->tokens.at + token, 1}, sources = {name.at, 0};
        if (relation != NONE) {
            if (read != USED && !flow->marked[token]) continue;
            sources = read == USED ? join_names(reader, sources_of[token], name) : sources_of[token];
        } else if (read == USED) {
            relation = COMES_FROM;
            sources = name;
        } else if (read && flow->marked[token]) {
            relation = COMES_FROM;
        } else {
            continue;
        }
        if (sources.at != last.at || sources.n != last.n) {
            last = sources;
            last_number = number_sources(reader, variables, &known, sources);
        }
        int32_t edge[] = {variable(variables, &known, *name.at), 2 * (sources.n == 1) + relation, last_number};
        push(reader, edges, FIRST_NUMBER + intern(reader, &reader->shapes, edge, sizeof edge, EDGE));
    }
}
