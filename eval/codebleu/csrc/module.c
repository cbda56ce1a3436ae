/* The module eval.codebleu._native: a Reader reads texts of one language and counts what they share. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

/* The places in Reader.held; 1 to 3 belong to walk.c and text.c. */
enum { CURSOR, NODE, CUT, OTHER, CODE, BYTES, TREE, PAD, HELD };

static PyTypeObject ReaderType, ReadingType;

void bail_out(Reader *reader) { longjmp(reader->bail, 1); }

static void reading_dealloc(Reading *self) {
    Py_XDECREF(self->code);
    PyMem_Free(self->numbers);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static void let_go(Reader *self) {
    for (int i = 0; i < HELD; i++) Py_CLEAR(self->held[i]);
    self->pad = NULL;
    self->busy = 0;
}

/* Forgets all numbers and assigns the first ones to the keywords. */
static int forget(Reader *self) {
    interner_clear(&self->shapes);
    interner_clear(&self->words);
    self->era++;
    if (self->tally.n > FIRST_NUMBER + (1 << 16)) {
        free(self->tally.at);
        memset(&self->tally, 0, sizeof self->tally);
    }
    if (setjmp(self->bail)) return -1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->keywords); i++) {
        PyObject *word = PyTuple_GET_ITEM(self->keywords, i);
        int32_t width = PyUnicode_KIND(word);
        intern(self, &self->words, PyUnicode_DATA(word), (int32_t)PyUnicode_GET_LENGTH(word) * width, width);
    }
    self->keyword_count = self->words.n;
    return 0;
}

static Rule rule_from(const long *n) {
    Rule rule = {(int32_t)n[0], (int32_t)n[1], {(int32_t)n[2], (int32_t)n[3]}, {(int32_t)n[4], (int32_t)n[5]}, {(int32_t)n[6], (int32_t)n[7]}};
    return rule;
}

static int read_rules(Reader *self, PyObject *rules) {
    Py_ssize_t count = PyTuple_GET_SIZE(rules);
    self->rules = calloc((size_t)count + 1, sizeof *self->rules);
    if (self->rules == NULL) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        long n[8];
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(rules, i), "llllllll", n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7))
            return -1;
        self->rules[i] = rule_from(n);
    }
    return 0;
}

static int reader_init(Reader *self, PyObject *args, PyObject *kwargs) {
    PyObject *names, *rules, *keywords;
    const char *tables[5];
    Py_ssize_t sizes[5];
    if (self->spec || (kwargs && PyDict_GET_SIZE(kwargs)))
        return PyErr_SetString(PyExc_TypeError, "Reader(spec, keywords, parse, ...) is initialized once, with positional arguments"), -1;
    if (!PyArg_ParseTuple(args, "O!O!OOOOOO", &PyTuple_Type, &self->spec, &PyTuple_Type, &keywords, &self->parse,
                          &self->strip, &self->padded, &self->count_missing, &self->is_printable, &self->print_leaf)) {
        self->spec = NULL;
        self->parse = self->strip = self->padded = self->count_missing = self->is_printable = self->print_leaf = NULL;
        return -1;
    }
    Py_INCREF(self->spec);
    Py_INCREF(self->parse);
    Py_INCREF(self->strip);
    Py_INCREF(self->padded);
    Py_INCREF(self->count_missing);
    Py_INCREF(self->is_printable);
    Py_INCREF(self->print_leaf);
    self->keywords = Py_NewRef(keywords);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(keywords); i++)
        if (!PyUnicode_Check(PyTuple_GET_ITEM(keywords, i)))
            return PyErr_SetString(PyExc_TypeError, "keywords are strings"), -1;
    if (!PyArg_ParseTuple(self->spec, "O!y#y#y#y#y#O!iiiiiii", &PyTuple_Type, &names, &tables[0], &sizes[0], &tables[1],
                          &sizes[1], &tables[2], &sizes[2], &tables[3], &sizes[3], &tables[4], &sizes[4], &PyTuple_Type,
                          &rules, &self->left, &self->right, &self->update, &self->sticky, &self->base_survives,
                          &self->foreach_apart, &self->comments))
        return -1;
    for (int i = 0; i < 5; i++)
        if (sizes[i] != (i < 4 ? 1 : (Py_ssize_t)sizeof(int32_t)) * KINDS || PyTuple_GET_SIZE(names) != KINDS)
            return PyErr_SetString(PyExc_ValueError, "a table of the grammar has the wrong size"), -1;
    self->fast = (const uint8_t *)tables[0];
    self->careful = (const uint8_t *)tables[1];
    self->flags = (const uint8_t *)tables[2];
    self->rule_of = (const uint8_t *)tables[3];
    self->same_name = (const int32_t *)tables[4];
    self->kind_names = names;
    for (Py_ssize_t kind = 0; kind < KINDS; kind++)
        if (!PyUnicode_Check(PyTuple_GET_ITEM(names, kind)) || self->rule_of[kind] >= PyTuple_GET_SIZE(rules))
            return PyErr_SetString(PyExc_ValueError, "a kind of the grammar has no name, or a rule that does not exist"), -1;
    return read_rules(self, rules) < 0 ? -1 : forget(self);
}

static void reader_dealloc(Reader *self) {
    let_go(self);
    PyObject *owned[] = {self->spec, self->keywords, self->parse, self->strip, self->padded, self->count_missing,
                         self->is_printable, self->print_leaf};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) Py_XDECREF(owned[i]);
    interner_free(&self->shapes);
    interner_free(&self->words);
    interner_free(&self->names);
    arena_free(&self->arena);
    flow_free(self);
    Ints *ints[] = {&self->tally, &self->shape, &self->subtrees, &self->tokens, &self->operands, &self->empty,
                    &self->edges, &self->same, &self->gram_orders, &self->gram_said, &self->gram_meant,
                    &self->gram_most, &self->set_table, &self->set_list, &self->order[0], &self->order[1],
                    &self->found_words};
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) free(ints[i]->at);
    void *others[] = {self->frames, self->program.at, self->scratch.at, self->grams, self->hashes, self->rules};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) free(others[i]);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *hold(Reader *self, int place, PyObject *object) {
    if (object == NULL) bail_out(self);
    Py_XSETREF(self->held[place], object);
    return object;
}

static PyObject *hold_text(Reader *self, int place, PyObject *object) {
    if (!PyUnicode_Check(hold(self, place, object))) {
        PyErr_SetString(PyExc_TypeError, "expected a string");
        bail_out(self);
    }
    return object;
}

static Reading *new_reading(Reader *self, int odd) {
    Reading *reading = PyObject_New(Reading, &ReadingType);
    if (reading == NULL) bail_out(self);
    const Ints *parts[] = {&self->subtrees, &self->edges, &self->found_words};
    size_t total = (size_t)parts[0]->n + (size_t)parts[1]->n + (size_t)parts[2]->n, at = 0;
    reading->code = Py_NewRef(self->held[CODE]);
    reading->era = self->era;
    reading->odd = odd;
    reading->numbers = PyMem_Malloc((total + 1) * sizeof *reading->numbers);
    if (reading->numbers == NULL) {
        Py_DECREF(reading);
        no_memory(self);
    }
    for (int i = 0; i < 3; at += (size_t)parts[i++]->n)
        if (parts[i]->n) memcpy(reading->numbers + at, parts[i]->at, (size_t)parts[i]->n * sizeof(int32_t));
    reading->subtrees = parts[0]->n;
    reading->edges = parts[1]->n;
    reading->words = parts[2]->n;
    return reading;
}

PyDoc_STRVAR(read_doc, "read(text) -> Reading, or None if the text is left to Python");

static PyObject *reader_read(Reader *self, PyObject *text) {
    if (!PyUnicode_Check(text)) return PyErr_SetString(PyExc_TypeError, "a text is a string"), NULL;
    if (self->rules == NULL || self->busy || PyUnicode_GET_LENGTH(text) > MAX_BYTES / 4) Py_RETURN_NONE;
    self->busy = 1;
    if (setjmp(self->bail)) {
        let_go(self);
        if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) return NULL;
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    arena_reset(&self->arena);
    interner_clear(&self->names);
    self->hash_count = 0;
    PyObject *code = text;
    if (self->comments == 0) hold(self, CODE, Py_NewRef(text));
    else if (self->comments == 1 && PyUnicode_IS_ASCII(text)) code = hold(self, CODE, strip_c_like(text));
    else code = hold_text(self, CODE, PyObject_CallOneArg(self->strip, text));
    PyObject *bytes = hold(self, BYTES, PyUnicode_AsUTF8String(code));
    if (!PyUnicode_IS_ASCII(code)) self->pad = hold_text(self, PAD, PyObject_CallOneArg(self->padded, code));
    self->source = PyBytes_AS_STRING(bytes);
    self->source_length = (int32_t)PyBytes_GET_SIZE(bytes);
    PyObject *tree = hold(self, TREE, PyObject_CallOneArg(self->parse, bytes));
    int odd = read_tree(self, tree);
    find_edges(self);
    self->found_words.n = 0;
    int32_t mass = split_words(self, text, &self->found_words);
    Reading *reading = new_reading(self, odd);
    reading->mass = mass;
    let_go(self);
    return (PyObject *)reading;
}

PyDoc_STRVAR(count_doc, "count(references, hypothesis) -> the 23 counts, or None if a text is left to Python");

static PyObject *reader_count(Reader *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyTuple_Check(args[0]) || Py_TYPE(args[1]) != &ReadingType || self->rules == NULL)
        return PyErr_SetString(PyExc_TypeError, "count(references, hypothesis) takes a tuple of readings and one"), NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(args[0]);
    int odd = ((Reading *)args[1])->odd;
    for (Py_ssize_t i = 0; i <= count; i++) {
        Reading *reading = (Reading *)(i < count ? PyTuple_GET_ITEM(args[0], i) : args[1]);
        if (Py_TYPE(reading) != &ReadingType || reading->era != self->era)
            return PyErr_SetString(PyExc_ValueError, "a reading is not from this reader, or was forgotten"), NULL;
        odd |= reading->odd;
    }
    if (odd || self->busy) Py_RETURN_NONE;
    if (setjmp(self->bail)) return NULL;
    return count_shared(self, (Reading *const *)((PyTupleObject *)args[0])->ob_item, count, (Reading *)args[1]);
}

PyDoc_STRVAR(forget_doc, "forget() invalidates all readings and restarts the numbers");

static PyObject *reader_forget(Reader *self, PyObject *Py_UNUSED(ignored)) {
    if (self->rules == NULL || self->busy) return PyErr_SetString(PyExc_RuntimeError, "the reader is busy"), NULL;
    if (forget(self) < 0) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(list_set_doc, "list_set(names) -> list(set(names)) in its order under PYTHONHASHSEED=0");

static PyObject *reader_list_set(Reader *self, PyObject *names) {
    if (!PyList_Check(names) || self->busy) return PyErr_SetString(PyExc_TypeError, "expected a list"), NULL;
    PyObject *listed = PyList_New(0);
    if (listed == NULL) return NULL;
    self->busy = 1;
    if (setjmp(self->bail)) {
        let_go(self);
        return NULL; /* out of memory: `listed` is lost */
    }
    arena_reset(&self->arena);
    interner_clear(&self->names);
    self->hash_count = self->tokens.n = 0;
    Py_ssize_t count = PyList_GET_SIZE(names);
    PyObject **by_number = arena_take(self, (size_t)count * sizeof *by_number);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyList_GET_ITEM(names, i);
        if (!PyUnicode_Check(name)) {
            PyErr_SetString(PyExc_TypeError, "names are strings");
            Py_DECREF(listed);
            bail_out(self);
        }
        int32_t width = PyUnicode_KIND(name);
        int32_t number = intern(self, &self->names, PyUnicode_DATA(name), (int32_t)PyUnicode_GET_LENGTH(name) * width, width);
        by_number[number] = name;
        push(self, &self->tokens, number);
    }
    Names all = {self->tokens.at, self->tokens.n}, joined = join_names(self, all, (Names){all.at, 0});
    for (int32_t i = 0; i < joined.n; i++)
        if (PyList_Append(listed, by_number[joined.at[i]]) < 0) break;
    let_go(self);
    return listed;
}

static PyObject *reader_size(Reader *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong((long)self->shapes.n + self->words.n);
}

static PyObject *reading_part(Reading *self, void *closure) {
    const int32_t counts[] = {self->subtrees, self->edges, self->words};
    int32_t which = (int32_t)(intptr_t)closure, from = 0;
    for (int32_t i = 0; i < which; i++) from += counts[i];
    PyObject *part = PyTuple_New(counts[which]);
    for (int32_t i = 0; part && i < counts[which]; i++) {
        PyObject *number = PyLong_FromLong(self->numbers[from + i]);
        if (number == NULL) Py_CLEAR(part);
        else PyTuple_SET_ITEM(part, i, number);
    }
    return part;
}

static PyObject *reading_code(Reading *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->code); }
static PyObject *reading_odd(Reading *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->odd); }

static PyMethodDef reader_methods[] = {
    {"read", (PyCFunction)reader_read, METH_O, read_doc},
    {"count", (PyCFunction)(void (*)(void))reader_count, METH_FASTCALL, count_doc},
    {"forget", (PyCFunction)reader_forget, METH_NOARGS, forget_doc},
    {"list_set", (PyCFunction)reader_list_set, METH_O, list_set_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef reader_properties[] = {
    {"size", (getter)reader_size, NULL, "distinct subtrees, edges and words", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyGetSetDef reading_properties[] = {
    {"subtrees", (getter)reading_part, NULL, "number of every subtree", (void *)0},
    {"edges", (getter)reading_part, NULL, "number of every dataflow edge", (void *)1},
    {"words", (getter)reading_part, NULL, "number of every word", (void *)2},
    {"code", (getter)reading_code, NULL, "the text without comments", NULL},
    {"odd", (getter)reading_odd, NULL, "whether only Python can compare the text with others", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject ReaderType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "eval.codebleu._native.Reader",
    .tp_basicsize = sizeof(Reader),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)reader_init,
    .tp_dealloc = (destructor)reader_dealloc,
    .tp_methods = reader_methods,
    .tp_getset = reader_properties,
};

static PyTypeObject ReadingType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "eval.codebleu._native.Reading",
    .tp_basicsize = sizeof(Reading),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)reading_dealloc,
    .tp_getset = reading_properties,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_native", NULL, -1, NULL, NULL, NULL, NULL, NULL};

#ifndef SOURCES
#define SOURCES "unknown"
#endif

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *tree_sitter = PyImport_ImportModule("tree_sitter");
    if (tree_sitter == NULL || find_cursor_methods(tree_sitter) < 0) {
        Py_XDECREF(tree_sitter);
        return NULL;
    }
    Py_DECREF(tree_sitter);
    if (PyType_Ready(&ReaderType) < 0 || PyType_Ready(&ReadingType) < 0) return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddIntConstant(made, "VERSION", NATIVE_VERSION) < 0 ||
                 PyModule_AddStringConstant(made, "SOURCES", SOURCES) < 0 ||
                 PyModule_AddObjectRef(made, "Reader", (PyObject *)&ReaderType) < 0 ||
                 PyModule_AddObjectRef(made, "Reading", (PyObject *)&ReadingType) < 0))
        Py_CLEAR(made);
    return made;
}
