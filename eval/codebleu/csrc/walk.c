/* One walk over a syntax tree: numbers of subtrees, names of tokens, and the dataflow program. */
#include "native.h"

#include <string.h>

struct Frame {
    Context *context; /* of the open node's parent */
    int32_t base;     /* where the shape of the open node begins */
    int32_t in_string;
};

/* The C functions behind tree_sitter's Python methods, looked up and checked once when the module is initialized. */
typedef struct { getter get; void *closure; } Property;
static PyTypeObject *cursor_type, *node_type;
static PyCFunction go_down, go_right, go_up;
static Property node_of, field_of, kind_of, start_of, end_of;

static PyCFunction find_method(PyObject *type, const char *name) {
    PyObject *found = PyObject_GetAttrString(type, name);
    PyCFunction method = NULL;
    if (found && Py_TYPE(found) == &PyMethodDescr_Type) {
        PyMethodDef *definition = ((PyMethodDescrObject *)found)->d_method;
        if (definition->ml_flags == METH_NOARGS) method = definition->ml_meth;
    }
    Py_XDECREF(found);
    return method;
}

static Property find_property(PyObject *type, const char *name) {
    PyObject *found = PyObject_GetAttrString(type, name);
    Property property = {NULL, NULL};
    if (found && Py_TYPE(found) == &PyGetSetDescr_Type) {
        PyGetSetDef *definition = ((PyGetSetDescrObject *)found)->d_getset;
        property = (Property){definition->get, definition->closure};
    }
    Py_XDECREF(found);
    return property;
}

/* Returns -1 with an exception if tree_sitter's types are not laid out as expected. */
int find_cursor_methods(PyObject *tree_sitter) {
    PyObject *cursor = PyObject_GetAttrString(tree_sitter, "TreeCursor");
    PyObject *node = PyObject_GetAttrString(tree_sitter, "Node");
    if (cursor && node && PyType_Check(cursor) && PyType_Check(node)) {
        go_down = find_method(cursor, "goto_first_child");
        go_right = find_method(cursor, "goto_next_sibling");
        go_up = find_method(cursor, "goto_parent");
        node_of = find_property(cursor, "node");
        field_of = find_property(cursor, "field_id");
        kind_of = find_property(node, "kind_id");
        start_of = find_property(node, "start_byte");
        end_of = find_property(node, "end_byte");
        if (go_down && go_right && go_up && node_of.get && field_of.get && kind_of.get && start_of.get && end_of.get) {
            cursor_type = (PyTypeObject *)cursor; /* both references are kept forever */
            node_type = (PyTypeObject *)node;
            return 0;
        }
    }
    Py_XDECREF(cursor);
    Py_XDECREF(node);
    PyErr_SetString(PyExc_ImportError, "tree_sitter's cursor is not laid out as expected");
    return -1;
}

static int32_t number_of(Reader *reader, Property property, PyObject *of) {
    PyObject *found = property.get(of, property.closure);
    if (found == NULL) bail_out(reader);
    long number = found == Py_None ? 0 : PyLong_AsLong(found);
    Py_DECREF(found);
    if (number < 0 || number > INT32_MAX) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_OverflowError, "a number of tree_sitter is out of range");
        bail_out(reader);
    }
    return (int32_t)number;
}

static inline int go(Reader *reader, PyCFunction where, PyObject *cursor) {
    PyObject *moved = where(cursor, NULL);
    if (moved == NULL) bail_out(reader);
    Py_DECREF(moved);
    return moved == Py_True;
}

/* The open node, held in held[1] until the next one. */
static PyObject *current_node(Reader *reader, PyObject *cursor) {
    PyObject *node = node_of.get(cursor, node_of.closure);
    if (node == NULL) bail_out(reader);
    Py_XSETREF(reader->held[1], node);
    if (Py_TYPE(node) != node_type) {
        PyErr_SetString(PyExc_TypeError, "the cursor has no node");
        bail_out(reader);
    }
    return node;
}

static Slice slice_of(PyObject *text) {
    int width = PyUnicode_KIND(text);
    return (Slice){PyUnicode_DATA(text), (int32_t)PyUnicode_GET_LENGTH(text) * width, width};
}

/* A part of the text as the published metric cuts it. */
static Slice cut(Reader *reader, int32_t start, int32_t end) {
    if (reader->pad) {
        PyObject *part = PyUnicode_Substring(reader->pad, start, end < start ? start : end);
        if (part == NULL) bail_out(reader);
        Py_XSETREF(reader->held[2], part);
        return slice_of(part);
    }
    if (end > reader->source_length) end = reader->source_length;
    if (start > end) start = end;
    return (Slice){reader->source + start, end - start, 1};
}

static Slice without_newlines(Reader *reader, Slice text) {
    if (reader->pad) {
        PyObject *part = reader->held[2], *line = PyUnicode_FromStringAndSize("\n", 1), *nothing = PyUnicode_New(0, 0);
        PyObject *clean = line && nothing ? PyUnicode_Replace(part, line, nothing, -1) : NULL;
        Py_XDECREF(line);
        Py_XDECREF(nothing);
        if (clean == NULL) bail_out(reader);
        Py_SETREF(reader->held[2], clean);
        return slice_of(clean);
    }
    if (text.length == 0 || memchr(text.data, '\n', (size_t)text.length) == NULL) return text;
    char *copy = arena_take(reader, (size_t)text.length);
    int32_t length = 0;
    for (int32_t i = 0; i < text.length; i++)
        if (((const char *)text.data)[i] != '\n') copy[length++] = ((const char *)text.data)[i];
    return (Slice){copy, length, 1};
}

static Slice kind_name(const Reader *reader, int32_t kind) {
    return slice_of(PyTuple_GET_ITEM(reader->kind_names, kind));
}

static int same_text(Slice a, Slice b) {
    return a.length == b.length && a.width == b.width && memcmp(a.data, b.data, (size_t)a.length) == 0;
}

static void add_token(Reader *reader, int32_t op, Slice name) {
    push_step(reader, &reader->program, op, reader->tokens.n);
    push(reader, &reader->tokens, intern(reader, &reader->names, name.data, name.length, name.width));
}

/* The number of a subtree given by what tree-sitter prints for it. */
static int32_t printed_number(Reader *reader, PyObject *printed) {
    Py_ssize_t length;
    const char *text = PyUnicode_AsUTF8AndSize(printed, &length);
    if (text == NULL) bail_out(reader);
    if (length > MAX_BYTES) no_memory(reader);
    return FIRST_NUMBER + intern(reader, &reader->shapes, text, (int32_t)length, PRINTED);
}

/* Numbers a leaf of broken text that prints more than its kind; returns 1 if it is a missing node. */
static int read_broken_leaf(Reader *reader, PyObject *node, int32_t kind, int32_t field, int nameless) {
    PyObject *name = PyTuple_GET_ITEM(reader->kind_names, kind);
    PyObject *printed = PyObject_CallFunctionObjArgs(reader->print_leaf, node, nameless ? Py_True : Py_False, name, NULL);
    if (printed == NULL) bail_out(reader);
    Py_XSETREF(reader->held[3], printed);
    if (!PyUnicode_Check(printed)) {
        PyErr_SetString(PyExc_TypeError, "print_leaf gives text");
        bail_out(reader);
    }
    if (PyUnicode_GET_LENGTH(printed) == 0) return 0;
    if (!nameless) reader->shape.n--;
    else if (field) push(reader, &reader->shape, -field);
    push(reader, &reader->shape, printed_number(reader, printed));
    return strncmp(PyUnicode_AsUTF8(printed), "(MISSING", 8) == 0;
}

/* Zero-width tokens at one place count as one, the last of them. They are in the order of the text. */
static void note_same(Reader *reader) {
    Ints *same = &reader->same, *empty = &reader->empty;
    same->n = 0;
    if (empty->n == 0) return;
    for (int32_t token = 0; token < reader->tokens.n; token++) push(reader, same, token);
    int32_t last = empty->at[empty->n - 2];
    for (int32_t i = empty->n - 2; i >= 0; i -= 2) {
        if (i + 2 < empty->n && empty->at[i + 1] != empty->at[i + 3]) last = empty->at[i];
        same->at[empty->at[i]] = last;
    }
}

/* Replaces the tokens of a string literal with one. */
static void close_string(Reader *reader, const Context *context) {
    int32_t token = context->first_token;
    reader->program.n = context->first_step;
    reader->tokens.n = token;
    while (reader->empty.n && reader->empty.at[reader->empty.n - 2] >= token) reader->empty.n -= 2;
    Slice text = cut(reader, context->start_byte, context->end_byte);
    add_token(reader, OTHER_TOKEN, without_newlines(reader, text));
}

static Context *open_node(Reader *reader, PyObject *node, int32_t kind, int meaning, Context *inner) {
    const Rule *rule = meaning == ANONYMOUS ? NULL : &reader->rules[reader->rule_of[kind]];
    Context *context = open_context(reader, rule ? rule->opener : NAMELESS, rule, kind, reader->tokens.n);
    if (context->opener == STRING_NODE) {
        context->start_byte = number_of(reader, start_of, node);
        context->end_byte = number_of(reader, end_of, node);
        context->lists = inner != NULL;
    }
    context->parts_of = inner;
    return context;
}

static void read_leaf(Reader *reader, PyObject *node, int32_t kind, int32_t field, int meaning, int broken, long *missing) {
    int32_t start = number_of(reader, start_of, node), end = number_of(reader, end_of, node);
    Slice name = cut(reader, start, end);
    push(reader, &reader->shape, kind);
    if (meaning == IDENTIFIER) {
        if (!same_text(name, kind_name(reader, kind))) add_token(reader, IDENTIFIER_TOKEN, name);
        return;
    }
    name = without_newlines(reader, name);
    if (meaning == ANONYMOUS) reader->shape.n -= field ? 2 : 1;
    if (broken && (kind == ERROR_KIND || name.length == 0))
        *missing -= read_broken_leaf(reader, node, kind, field, meaning == ANONYMOUS);
    if (meaning == COMMENT || same_text(name, kind_name(reader, kind))) return;
    if (name.length == 0 && start == end) {
        push(reader, &reader->empty, reader->tokens.n);
        push(reader, &reader->empty, start);
    }
    add_token(reader, meaning == CHECKED_IDENTIFIER ? IDENTIFIER_TOKEN : OTHER_TOKEN, name);
}

/* Ends the open node, to which the cursor has returned; returns the context of its parent. */
static Context *close_node(Reader *reader, PyObject *cursor, Context *context, int *printed) {
    Ints *shape = &reader->shape;
    struct Frame frame = reader->frames[--reader->frames_n];
    int32_t length = shape->n - frame.base, number = shape->at[frame.base];
    if (length > 1)
        number = FIRST_NUMBER + intern(reader, &reader->shapes, shape->at + frame.base, length * (int32_t)sizeof number, SUBTREE);
    shape->n = frame.base;
    if (context) {
        close_context(reader, context, reader->tokens.n);
        if (context->opener == STRING_NODE) {
            close_string(reader, context);
        } else if (context->opener == NAMELESS) {
            *printed |= length > 1;
            PyObject *text = PyObject_Str(current_node(reader, cursor));
            if (text == NULL) bail_out(reader);
            Py_XSETREF(reader->held[3], text);
            push(reader, &reader->subtrees, printed_number(reader, text));
            if (shape->n && shape->at[shape->n - 1] < 0) shape->n--;
            return frame.context;
        }
    }
    push(reader, &reader->subtrees, number);
    push(reader, shape, number);
    return frame.context;
}

static long call_for_number(Reader *reader, PyObject *callable, PyObject *tree) {
    PyObject *found = PyObject_CallOneArg(callable, tree);
    long number = found ? PyLong_AsLong(found) : -1;
    Py_XDECREF(found);
    if (number == -1 && PyErr_Occurred()) bail_out(reader);
    return number;
}

static int is_broken(Reader *reader, PyObject *tree) {
    PyObject *root = PyObject_GetAttrString(tree, "root_node");
    PyObject *broken = root ? PyObject_GetAttrString(root, "has_error") : NULL;
    Py_XDECREF(root);
    if (broken == NULL) bail_out(reader);
    Py_DECREF(broken);
    return broken == Py_True;
}

/* Reads the tree of reader->source (and reader->pad). Returns 1 if its subtrees can only be compared in print. */
int read_tree(Reader *reader, PyObject *tree) {
    int broken = is_broken(reader, tree), printed = 0;
    long missing = broken ? call_for_number(reader, reader->count_missing, tree) : 0;
    const uint8_t *meanings = missing || reader->pad ? reader->careful : reader->fast;
    PyObject *cursor = PyObject_CallMethod(tree, "walk", NULL);
    if (cursor == NULL) bail_out(reader);
    Py_XSETREF(reader->held[0], cursor);
    if (Py_TYPE(cursor) != cursor_type) {
        PyErr_SetString(PyExc_TypeError, "the tree has no cursor");
        bail_out(reader);
    }
    reader->shape.n = reader->subtrees.n = reader->tokens.n = reader->operands.n = reader->empty.n = 0;
    reader->program.n = reader->frames_n = reader->too_deep = 0;
    Context *context = NULL, *inner;
    for (;;) {
        PyObject *node = current_node(reader, cursor);
        int32_t kind = number_of(reader, kind_of, node), field = 0;
        if (kind >= KINDS) kind = ERROR_KIND;
        int meaning = meanings[kind];
        inner = NULL;
        if (context && context->lists) {
            field = number_of(reader, field_of, cursor);
            if (context->asks) inner = begin_child(reader, context, kind, field, reader->tokens.n);
            add_child(reader, context, kind, field, reader->tokens.n, inner);
        } else if (meaning) {
            field = number_of(reader, field_of, cursor);
        }
        if (meaning) {
            if (field) push(reader, &reader->shape, -field);
            if (go(reader, go_down, cursor)) {
                int32_t depth = reader->frames_n;
                if (depth == reader->frames_room)
                    grow(reader, (void **)&reader->frames, &reader->frames_room, depth + 1, sizeof *reader->frames);
                int in_string = (depth && reader->frames[depth - 1].in_string) || (reader->flags[kind] & IS_STRING);
                reader->frames[depth] = (struct Frame){context, reader->shape.n, in_string};
                reader->frames_n++;
                if (!in_string && depth + 2 > MAX_DEPTH) reader->too_deep = 1; /* levels: the root is the first */
                push(reader, &reader->shape, kind);
                context = meaning >= RULE ? open_node(reader, node, kind, meaning, inner) : inner;
                continue;
            }
            read_leaf(reader, node, kind, field, meaning, broken, &missing);
        }
        while (!go(reader, go_right, cursor)) {
            if (!go(reader, go_up, cursor)) {
                if (reader->subtrees.n == 0) push(reader, &reader->subtrees, kind);
                note_same(reader);
                return (printed || missing) && call_for_number(reader, reader->is_printable, tree);
            }
            context = close_node(reader, cursor, context, &printed);
        }
    }
}
