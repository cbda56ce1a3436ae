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


def make_guard(function, space):
    """``function``, whose results may not be of the answer's own classes where these have operators of their own."""
    kind, mro, fields, is_type, functions = type, type.__dict__["__mro__"].__get__, vars, isinstance, types.FunctionType
    sequences, mapping, identity, all_, Assertion = (list, tuple), dict, id, all, AssertionError
    dunder, harmless = str.startswith, frozenset(("__init__", "__new__", "__post_init__", "__repr__", "__str__"))

    def trusted(value, seen):
        if identity(value) in seen:
            return True
        seen = {*seen, identity(value)}
        for class_ in mro(kind(value)):
            for name, method in fields(class_).items():
                operator = dunder(name, "__") and name not in harmless
                if operator and is_type(method, functions) and method.__globals__ is space:
                    return False
        if kind(value) is mapping:
            value = [*value, *value.values()]
        return kind(value) not in sequences or all_([trusted(item, seen) for item in value])

    def guarded(*arguments, **named):
        value = function(*arguments, **named)
        if not trusted(value, ()):
            raise Assertion("the result has operators of its own")
        return value

    return guarded


def run_program(source, names, tests, send, hexed, describe):
    """Runs the answer as a module, then the tests with its names, but with Python's own built-in functions."""
    done, Exception_, Assertion = os._exit, Exception, AssertionError
    own = dict(vars(builtins))
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
        if isinstance(space.get(name), types.FunctionType):
            space[name] = make_guard(space[name], module.__dict__)
    space.update(__name__="__main__", __builtins__=own)
    try:
        exec(code, space)
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
