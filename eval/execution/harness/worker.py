"""Runs a Python answer: ``python -I worker.py cases|program REQUEST RESULTS``; values.py has the form of values.

Everything that reads or writes is held in local names from before the answer runs, so nothing it rebinds is used here.
"""

import builtins
import os
import sys
import types

_FILE = "answer.py"


def make_writer(descriptor, secret, write=os.write, process=os.getpid, exit_=os._exit, Exception=Exception):
    """A function that sends one line; a process that cannot send is over, and so is a copy of it."""
    head, own, encode = bytes(secret, "ascii") + b" ", process(), str.encode

    def send(line):
        if process() != own:
            exit_(0)
        data = head + encode(line, "ascii") + b"\n"
        try:
            while data:
                data = data[write(descriptor, data) :]
        except Exception:
            exit_(1)

    return send


def make_hex(str=str, bytes=bytes, Exception=Exception):
    def hexed(text):
        try:
            return bytes.hex(str.encode(text, "utf-8", "surrogatepass"))
        except Exception:
            return ""

    return hexed


def make_encoder(hexed):
    """``encode(value)`` -> words (see eval/execution/values.py) by exact type: an instance of a subclass is refused."""
    import collections

    none, true, kind, integer, floating, text, sequence = None, True, type, int, float, str, list
    boolean, join, items, name = bool, str.join, dict.items, type.__dict__["__name__"].__get__
    length, show, show_hex, show_float, deep = len, int.__repr__, int.__format__, float.__repr__, RecursionError
    maps = (dict, collections.OrderedDict, collections.defaultdict, collections.Counter)
    map_ids = tuple(maps)

    def encode(value):
        type_ = kind(value)
        if value is none:
            return "N"
        if type_ is boolean:
            return "T" if value is true else "F"
        if type_ is integer:
            return "h" + show_hex(value, "x")  # decimal digits have a limit
        if type_ is floating:
            return "d" + show_float(value)
        if type_ is text:
            return "s" + hexed(value)
        if type_ is sequence:
            return join(" ", ["[" + show(length(value)), *[encode(item) for item in value]])
        for known in map_ids:
            if type_ is known:
                words = ["{" + show(length(value))]
                for key, item in items(value):
                    words += [encode(key), encode(item)]
                return join(" ", words)
        return "x" + hexed(name(type_))

    def safely(value):
        try:
            return encode(value)
        except deep:
            return "x" + hexed("too deep a value")

    return safely


def decode(words):
    word = next(words)
    kind, rest = word[0], word[1:]
    if kind == "[":
        return [decode(words) for _ in range(int(rest))]
    if kind == "{":
        return {decode(words): decode(words) for _ in range(int(rest))}
    if kind == "s":
        return bytes.fromhex(rest).decode("utf-8")
    return {"N": None, "T": True, "F": False}[kind] if kind in "NTF" else {"i": int, "d": float}[kind](rest)


def make_describer(hexed, type=type, str=str, BaseException=BaseException):
    def describe(error):
        try:
            return hexed(type(error).__name__ + ": " + str(error)[:300])
        except BaseException:
            return hexed("an exception")

    return describe


def find(module, names):
    """The function to call: the wanted one as an attribute, or as a method of a class; else the last one defined."""
    wanted = names[0]
    space = module.__dict__
    if wanted in space:
        return wanted, space[wanted]
    own = [value for value in space.values() if isinstance(value, type) and value.__module__ == module.__name__]
    methods = []
    for class_ in own:
        method = next((vars(base)[wanted] for base in class_.__mro__ if base in own and wanted in vars(base)), None)
        if method is not None:
            methods.append((class_, method))
    problem = None
    for class_, method in methods:
        if any(class_ in other.__mro__[1:] for other, _ in methods):
            continue  # its subclass may override the method
        try:
            return wanted, getattr(class_ if isinstance(method, (staticmethod, classmethod)) else class_(), wanted)
        except Exception as error:  # a protocol, or a class that wants arguments
            problem = problem or error
    if problem:
        raise problem
    for name, value in reversed(list(space.items())):
        inner = value
        while isinstance(getattr(inner, "__wrapped__", None), types.FunctionType):
            inner = inner.__wrapped__  # of a decorator such as lru_cache
        if isinstance(inner, types.FunctionType) and inner.__globals__ is space and name != "main":
            return name, value
    return wanted, None


def load(source, name, given, send, describe):
    """The module that the answer is; None, and a line sent, when it does not compile or raises."""
    with open(_FILE, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(source)
    module = types.ModuleType(name)
    module.__file__ = os.path.abspath(_FILE)
    for known in given:
        module.__dict__[known] = __import__(known)
    try:
        code = compile(source.removeprefix("\ufeff"), module.__file__, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        send("C " + describe(error))
        return None
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except Exception as error:
        send("R - " + describe(error))
        return None
    return module


def run_cases(source, names, calls, send, hexed, describe):
    encode, done, Exception_, int_text = make_encoder(hexed), os._exit, Exception, int.__repr__
    calls = list(enumerate(decode(iter(call.split())) for call in calls))
    # Structured tests say nothing of imports, and an answer is often only the function.
    module = load(source, "answer", ("collections", "itertools", "math", "re"), send, describe)
    if module is None:
        return
    try:
        name, function = find(module, names)
    except Exception as error:
        send("R - " + describe(error))
        return
    if function is None:
        send("M " + hexed(name))
        return
    for index, arguments in calls:
        try:
            value = function(*arguments)
        except Exception_ as error:
            send("R " + int_text(index) + " " + describe(error))
        else:
            send("V " + int_text(index) + " " + encode(value))
    send("E")
    done(0)


# Methods that take no part in comparing or computing, and Python's modules that define operators in Python.
_HARMLESS = """init new post_init repr str format reduce reduce_ex getnewargs getstate setstate copy deepcopy replace
    init_subclass subclasshook class_getitem set_name enter exit del doc dataclass_params""".split()
_STANDARD = ("collections", "enum", "fractions", "ipaddress", "numbers", "pathlib", "uuid", "_pydecimal")


def make_guards():
    """``guard(function)``: that function, whose results may not bring operators from outside of Python's own modules.

    A class stays as it is, unless its objects are numbers, texts or collections. Made before the answer runs: the types
    that are there by then are trusted, of others what is written in C.
    """
    import collections

    kind, mro, fields, modules = type, type.__dict__["__mro__"].__get__, type.__dict__["__dict__"].__get__, sys.modules
    identity, is_instance, is_callable, all_, any_, Assertion = id, isinstance, callable, all, any, AssertionError
    starts, items = str.startswith, dict.items
    scalars = (int, float, bool, str, bytes, complex)
    plain = frozenset(map(id, (*scalars, kind(None))))
    harmless = frozenset(f"__{name}__" for name in _HARMLESS)
    data = (str, int, tuple, list, dict, frozenset, kind(None))
    bases = (list, tuple, set, frozenset, collections.deque, dict)
    lazy = frozenset(map(id, (types.GeneratorType, map, filter, zip, enumerate, reversed, kind(iter([])))))
    of_class = tuple(map(kind, (int.__add__, str.join, dict.__dict__["fromkeys"], int.__dict__["real"], property.fget)))
    function, owner = types.FunctionType, (lambda method: method.__objclass__)
    known, kept = set(), [object]
    for class_ in kept:
        if id(class_) not in known:
            known.add(id(class_))
            kept += type.__subclasses__(class_)

    def is_standard(space):
        return any_([name in modules and modules[name].__dict__ is space for name in _STANDARD])

    def brings_operators(class_):
        for name, method in items({**fields(class_)}):
            if not starts(name, "__") or name in harmless or kind(method) in data:
                continue
            if kind(method) is function and is_standard(method.__globals__):
                continue
            if not (kind(method) in of_class and owner(method) is class_):
                return True
        return False

    def trusted(value, seen):
        if identity(kind(value)) in plain or identity(value) in seen:
            return True
        if any_([identity(class_) not in known and brings_operators(class_) for class_ in mro(kind(value))]):
            return False
        for base in bases:
            if base in mro(kind(value)):
                is_map = base is dict
                found = [part for item in items(value) for part in item] if is_map else [*base.__iter__(value)]
                return all_([trusted(item, {*seen, identity(value)}) for item in found])
        return True

    def checked(value):
        if not trusted(value, ()):
            raise Assertion("the result has operators of its own")
        return value

    def guard(function):
        if not is_callable(function):
            return function
        is_class = is_instance(function, kind) and identity(kind(function)) in known
        if is_class and not any_([base in mro(function) for base in (*scalars, *bases)]):
            return function  # what its objects equal is its own matter

        def guarded(*arguments, **named):
            value = checked(function(*arguments, **named))
            return (checked(item) for item in value) if identity(kind(value)) in lazy else value

        return guarded

    return guard


def run_program(source, names, tests, send, hexed, describe):
    """Runs the answer as a module, then the tests with its names, but with Python's own built-in functions."""
    done, Exception_, Assertion, run = os._exit, Exception, AssertionError, exec
    own, guard = dict(vars(builtins)), make_guards()
    try:
        code = compile(tests, "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        send("C " + describe(error))
        return
    module = load(source, "answer", (), send, describe)
    if module is None:
        return
    space = {key: value for key, value in module.__dict__.items() if key not in own or key in names}
    for name in names:
        if name in space:
            space[name] = guard(space[name])
    space.update(__name__="__main__", __builtins__=own)
    try:
        run(code, space)
    except Assertion as error:
        send("A " + describe(error))
    except Exception_ as error:
        send("R - " + describe(error))
    else:
        send("E")
        done(0)


def main():
    mode, request, results = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with os.fdopen(request, "r", encoding="ascii", newline="\n") as file:
        secret, source, names, _, _, *rest = file.read().split("\n")
    del sys.argv[1:]
    sys.argv[0] = _FILE
    sys.path.insert(0, os.getcwd())
    hexed = make_hex()
    send, describe = make_writer(results, secret), make_describer(hexed)
    source = bytes.fromhex(source).decode("utf-8", "surrogatepass")
    if mode == "cases":
        run_cases(source, names.split(), rest, send, hexed, describe)
    else:
        tests = bytes.fromhex(rest[0]).decode("utf-8", "surrogatepass")
        run_program(source, names.split(), tests, send, hexed, describe)


main()
