/* What a node with a rule does to the program that its children have added. */
#include "native.h"

#include <string.h>

#define LONG_TAIL 256 /* a SKIP is cheaper than moving more steps than this */

typedef struct { int32_t from, to; } Range;

static Range tokens_of(const Child *child, int32_t end) {
    return (Range){child->token, child->next ? child->next->token : end};
}

static Range steps_of(const Reader *reader, const Child *child) {
    return (Range){child->step, child->next ? child->next->step : reader->program.n};
}

static Child *find_child(const Context *context, Selector selector) {
    Child *child = context->first;
    if (selector.by_field) {
        while (child && child->field != selector.number) child = child->next;
        return child;
    }
    int32_t place = selector.number < 0 ? selector.number + context->count : selector.number;
    if (place < 0 || place >= context->count) return NULL;
    if (place == context->count - 1) return context->last;
    while (place--) child = child->next;
    return child;
}

static Child *child_of_field(const Context *context, int32_t field) {
    return find_child(context, (Selector){1, field});
}

static Child *child_of_name(const Reader *reader, Child *child, int32_t name) {
    while (child && reader->same_name[child->kind] != name) child = child->next;
    return child;
}

static int has_flag(const Reader *reader, const Child *child, int flag) { return reader->flags[child->kind] & flag; }

/* Replaces what the context's children have added. */
static void replace_all(Reader *reader, const Context *context, const Step *more, int32_t count) {
    reader->program.n = context->first_step;
    push_steps(reader, &reader->program, more, count);
}

static void give_up(Reader *reader, const Context *context) {
    replace_all(reader, context, NULL, 0);
    push_step(reader, &reader->program, BROKEN, 0);
}

/* Keeps only what one of the children has added. */
static void keep(Reader *reader, const Context *context, const Child *child) {
    Steps *program = &reader->program;
    Range part = steps_of(reader, child);
    int32_t head = part.from - context->first_step, length = part.to - part.from;
    program->n = part.to;
    if (head && length > LONG_TAIL) {
        program->at[context->first_step] = (Step){SKIP, head - 1};
    } else if (head) {
        memmove(program->at + context->first_step, program->at + part.from, (size_t)length * sizeof(Step));
        program->n = context->first_step + length;
    }
}

static void add_assign(Reader *reader, Range target, Range source, int32_t relation, int32_t apart) {
    const int32_t operands[] = {target.from, target.to, source.from, source.to, relation, apart};
    push_step(reader, &reader->program, ASSIGN, reader->operands.n);
    push_many(reader, &reader->operands, operands, 6);
}

/* Ends a loop that begins before the context's first step; it runs again from `again` on, unless that is -1. */
static void close_loop(Reader *reader, const Context *context, int32_t token, int32_t again) {
    Steps *program = &reader->program;
    int32_t begin = context->first_step - 1;
    if (again >= 0) push_step(reader, program, AGAIN, program->n - again + 1);
    push_step(reader, program, LOOP_END, 0);
    const int32_t operands[] = {context->first_token, token, program->n - 1 - begin};
    program->at[begin] = (Step){LOOP, reader->operands.n};
    push_many(reader, &reader->operands, operands, 3);
}

void add_child(Reader *reader, Context *context, int32_t kind, int32_t field, int32_t token, Context *inner) {
    Child *child = arena_take(reader, sizeof *child);
    *child = (Child){NULL, inner, kind, field, token, reader->program.n};
    if (context->last) context->last->next = child;
    else context->first = child;
    context->last = child;
    context->count++;
}

Context *open_context(Reader *reader, int32_t opener, const Rule *rule, int32_t kind, int32_t token) {
    Context *context = arena_take(reader, sizeof *context);
    memset(context, 0, sizeof *context);
    context->opener = opener;
    context->rule = rule;
    context->kind = kind;
    context->first_token = token;
    context->lists = opener != NAMELESS && opener != STRING_NODE;
    context->asks = opener == TUPLE || opener == PATTERN_LOOP || opener == BRANCH || opener == COUNTED;
    if (opener == REPEATED || opener == FOREACH || opener == COUNTED || opener == PATTERN_LOOP)
        push_step(reader, &reader->program, LOOP, -1);
    context->first_step = reader->program.n;
    if (opener == BRANCH) {
        context->has_else = (char)rule->option;
        push_step(reader, &reader->program, FORK, 0);
    }
    return context;
}

static Context *begin_side(Reader *reader, Context *context, int32_t kind, int32_t field, int32_t token) {
    if (field == 0 || (field != reader->left && field != reader->right)) return NULL;
    for (Child *child = context->first; child; child = child->next)
        if (child->inner && child->inner->count == 0) return NULL; /* no parts to match those of the right side with */
    return open_context(reader, SIDES, NULL, kind, token);
}

/* Called when a child begins, if the context asks for it; returns what lists the child's own children, or NULL. */
Context *begin_child(Reader *reader, Context *context, int32_t kind, int32_t field, int32_t token) {
    if (context->opener == COUNTED) {
        if (!reader->update || reader->same_name[kind] != context->rule->option) return NULL;
        return open_context(reader, LISTED, NULL, kind, token);
    }
    if (context->opener != BRANCH) return begin_side(reader, context, kind, field, token);
    if (context->aside) push_step(reader, &reader->program, SIDE_END, 0);
    context->has_else = context->has_else || (reader->flags[kind] & IS_ELSE);
    context->aside = (reader->flags[kind] & IS_ALTERNATIVE) || context->beside;
    context->beside = context->aside && reader->sticky;
    if (context->aside) push_step(reader, &reader->program, SIDE, 0);
    return NULL;
}

/* Copies what the children have added, without commas, for the tuple assignment that this is a side of. */
static void note_raw(Reader *reader, Context *context) {
    Context *side = context->parts_of;
    Steps *raw = &reader->scratch;
    raw->n = 0;
    for (Child *child = context->first; child; child = child->next) {
        Range part = steps_of(reader, child);
        if (has_flag(reader, child, IS_COMMA)) continue;
        if (context->opener == BRANCH) /* drop the steps of the branch itself */
            while (part.from < part.to && (reader->program.at[part.to - 1].op == SIDE ||
                                           reader->program.at[part.to - 1].op == SIDE_END))
                part.to--;
        push_steps(reader, raw, reader->program.at + part.from, part.to - part.from);
    }
    side->first = context->first;
    side->last = context->last;
    side->count = context->count;
    side->has_raw = 1;
    side->raw_count = raw->n;
    side->raw = arena_take(reader, (size_t)raw->n * sizeof(Step));
    if (raw->n) memcpy(side->raw, raw->at, (size_t)raw->n * sizeof(Step));
}

/* How many parts a side of a tuple assignment has: its children without commas. */
static int32_t count_pieces(const Reader *reader, const Child *child) {
    int32_t count = 0;
    for (Child *part = child->inner ? child->inner->first : NULL; part; part = part->next)
        count += !has_flag(reader, part, IS_COMMA);
    return count;
}

static Child *next_piece(const Reader *reader, Child *part) {
    while (part && has_flag(reader, part, IS_COMMA)) part = part->next;
    return part;
}

/* Drops commas that are tokens, as can happen in text that is not ASCII, from the program of the right side. */
static void keep_without_commas(Reader *reader, const Context *context, const Child *right) {
    Ints *commas = &reader->set_list;
    const Context *inner = right->inner;
    commas->n = 0;
    for (Child *part = inner->first; part; part = part->next) {
        Range range = tokens_of(part, inner->end);
        if (range.from < range.to && has_flag(reader, part, IS_COMMA)) push(reader, commas, range.from);
    }
    if (commas->n == 0) {
        keep(reader, context, right);
        return;
    }
    Range part = steps_of(reader, right);
    Steps *kept = &reader->scratch;
    kept->n = 0;
    for (int32_t i = part.from; i < part.to; i++) {
        Step step = reader->program.at[i];
        int32_t low = 0, high = commas->n; /* sorted */
        while (low < high) {
            int32_t middle = (low + high) / 2;
            if (commas->at[middle] < step.arg) low = middle + 1;
            else high = middle;
        }
        if (step.op == OTHER_TOKEN && low < commas->n && commas->at[low] == step.arg) continue;
        push_step(reader, kept, step.op, step.arg);
    }
    replace_all(reader, context, kept->at, kept->n);
}

/* Keeps the program of the right side and appends the assignments of a tuple assignment. */
static void pair_sides(Reader *reader, const Context *context, Child *left, Child *right, int32_t token) {
    int32_t count = count_pieces(reader, left);
    if (count == 0 || count != count_pieces(reader, right)) {
        Range target = tokens_of(left, token), source = tokens_of(right, token);
        keep(reader, context, right);
        add_assign(reader, target, source, COMPUTED_FROM, 0);
        return;
    }
    int whole_left = has_flag(reader, left, IS_STRING), whole_right = has_flag(reader, right, IS_STRING);
    if (count > 1 && (whole_left || whole_right)) {
        give_up(reader, context); /* the parts of a string are not tokens */
        return;
    }
    if (right->inner->has_raw) replace_all(reader, context, right->inner->raw, right->inner->raw_count);
    else keep_without_commas(reader, context, right);
    Range left_tokens = tokens_of(left, token), right_tokens = tokens_of(right, token);
    Child *to = left->inner->first, *from = right->inner->first;
    for (; count--; to = to->next, from = from->next) {
        to = next_piece(reader, to);
        from = next_piece(reader, from);
        add_assign(reader, whole_left ? left_tokens : tokens_of(to, left_tokens.to),
                   whole_right ? right_tokens : tokens_of(from, right_tokens.to), COMPUTED_FROM, 0);
    }
}

static void close_tuple(Reader *reader, Context *context, int32_t token) {
    Child *left = child_of_field(context, reader->left), *right = child_of_field(context, reader->right);
    int positional = context->opener == TUPLE && context->rule->option;
    if (left == NULL || right == NULL) {
        if (right == NULL && !positional && context->opener == TUPLE) replace_all(reader, context, NULL, 0);
        else give_up(reader, context);
    } else if (positional) {
        Range target = tokens_of(context->first, token), source = tokens_of(context->last, token);
        keep(reader, context, context->last);
        add_assign(reader, target, source, COMPUTED_FROM, 0);
    } else if (context->opener == TUPLE) {
        pair_sides(reader, context, left, right, token);
    } else { /* PATTERN_LOOP: the body, if there is a block, runs after the assignments */
        int32_t count = 0;
        Step *body = NULL;
        if (has_flag(reader, context->last, IS_BLOCK)) {
            Range part = steps_of(reader, context->last);
            count = part.to - part.from;
            body = arena_take(reader, (size_t)count * sizeof(Step));
            if (count) memcpy(body, reader->program.at + part.from, (size_t)count * sizeof(Step));
        }
        pair_sides(reader, context, left, right, token);
        push_steps(reader, &reader->program, body, count);
        close_loop(reader, context, token, context->first_step);
    }
}

static void close_definition(Reader *reader, Context *context, int32_t token) {
    const Rule *rule = context->rule;
    Child *name = find_child(context, rule->name), *value = find_child(context, rule->value);
    if ((rule->option > 0 && context->count != rule->option) || context->count < -rule->option) value = NULL;
    if (name == NULL) {
        give_up(reader, context);
        return;
    }
    Range target = tokens_of(name, token);
    if (value == NULL) {
        const int32_t operands[] = {target.from, target.to};
        replace_all(reader, context, NULL, 0);
        push_step(reader, &reader->program, DEFINE, reader->operands.n);
        push_many(reader, &reader->operands, operands, 2);
    } else {
        Range source = tokens_of(value, token);
        keep(reader, context, value);
        add_assign(reader, target, source, COMES_FROM, 1);
    }
}

static void close_assignment(Reader *reader, Context *context, Child *left, Child *right, int32_t token, int apart) {
    if (left == NULL || right == NULL) {
        give_up(reader, context);
        return;
    }
    Range target = tokens_of(left, token), source = tokens_of(right, token);
    keep(reader, context, right);
    add_assign(reader, target, source, COMPUTED_FROM, apart);
}

static void close_counted(Reader *reader, Context *context, int32_t token) {
    Child *marker = child_of_name(reader, context->first, context->rule->option);
    if (marker == NULL) {
        close_loop(reader, context, token, -1);
        return;
    }
    int32_t start = steps_of(reader, marker).to;
    Child *update = marker->inner ? child_of_field(marker->inner, reader->update) : NULL;
    if (update) {
        Range part = {update->step, update->next ? update->next->step : start};
        Steps *copy = &reader->scratch;
        copy->n = 0;
        push_steps(reader, copy, reader->program.at + part.from, part.to - part.from);
        push_step(reader, &reader->program, ONCE, part.to - part.from);
        push_steps(reader, &reader->program, copy->at, copy->n);
    }
    close_loop(reader, context, token, start);
}

static void close_foreach(Reader *reader, Context *context, int32_t token) {
    const Rule *rule = context->rule;
    Child *source, *target, *body = find_child(context, rule->body);
    if (rule->option >= 0) {
        source = child_of_name(reader, context->first, rule->option);
        target = source ? child_of_name(reader, source->next, rule->option) : NULL;
    } else {
        source = find_child(context, rule->value);
        target = find_child(context, rule->name);
    }
    if (source == NULL || target == NULL || body == NULL) {
        give_up(reader, context);
        close_loop(reader, context, token, -1);
        return;
    }
    Range first = steps_of(reader, source), second = steps_of(reader, body);
    Steps *copy = &reader->scratch;
    copy->n = 0;
    push_steps(reader, copy, reader->program.at + first.from, first.to - first.from);
    push_steps(reader, copy, reader->program.at + second.from, second.to - second.from);
    replace_all(reader, context, copy->at, first.to - first.from);
    add_assign(reader, tokens_of(target, token), tokens_of(source, token), COMPUTED_FROM, reader->foreach_apart);
    push_steps(reader, &reader->program, copy->at + (first.to - first.from), second.to - second.from);
    close_loop(reader, context, token, context->first_step);
}

static void close_clauses_first(Reader *reader, Context *context) {
    Steps *copy = &reader->scratch;
    int found = 0;
    copy->n = 0;
    for (int clauses = 1; clauses >= 0; clauses--) {
        for (Child *child = context->first; child; child = child->next) {
            if ((has_flag(reader, child, IS_CLAUSE) != 0) != clauses) continue;
            Range part = steps_of(reader, child);
            push_steps(reader, copy, reader->program.at + part.from, part.to - part.from);
            found |= clauses;
        }
        if (!found) return;
    }
    replace_all(reader, context, copy->at, copy->n);
}

/* Rearranges the program of the children; `token` is the end of the tokens. */
void close_context(Reader *reader, Context *context, int32_t token) {
    if (context->parts_of) note_raw(reader, context);
    switch (context->opener) {
    case SIDES: context->end = token; break;
    case DEFINITION: close_definition(reader, context, token); break;
    case ASSIGNMENT:
        close_assignment(reader, context, child_of_field(context, reader->left),
                         child_of_field(context, reader->right), token, 1);
        break;
    case CLAUSE:
        close_assignment(reader, context, child_of_field(context, reader->left), context->last, token, 0);
        break;
    case TUPLE:
    case PATTERN_LOOP: close_tuple(reader, context, token); break;
    case CLAUSES_FIRST: close_clauses_first(reader, context); break;
    case INCREMENT: {
        Range all = {context->first_token, token};
        replace_all(reader, context, NULL, 0);
        add_assign(reader, all, all, COMPUTED_FROM, 1);
        break;
    }
    case BRANCH:
        if (context->aside) push_step(reader, &reader->program, SIDE_END, 0);
        push_step(reader, &reader->program, JOIN,
                  reader->base_survives == 1 || (reader->base_survives == 2 && !context->has_else));
        break;
    case REPEATED: close_loop(reader, context, token, context->first_step); break;
    case COUNTED: close_counted(reader, context, token); break;
    case FOREACH: close_foreach(reader, context, token); break;
    default: break;
    }
}
