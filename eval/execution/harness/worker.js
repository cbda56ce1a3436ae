// Runs a JavaScript answer: node worker.js cases|program script|module REQUEST RESULTS; eval/execution/values.py has
// the form of values. A script runs in a realm of its own, so it cannot change the built-in objects used here; a module
// shares ours, so everything that reads or writes is held in constants from before it runs.
"use strict";

const fs = require("node:fs");
const vm = require("node:vm");
const util = require("node:util");
const v8 = require("node:v8");
const path = require("node:path");
const { createRequire } = require("node:module");
const { pathToFileURL } = require("node:url");

const { isMap, isProxy } = util.types;
const { isArray } = Array;
const { getPrototypeOf, getOwnPropertyDescriptor, getOwnPropertyNames, defineProperty, keys: keysOf } = Object;
const { isInteger } = Number;
const uncurry = (method) => Function.prototype.call.bind(method);
const push = uncurry(Array.prototype.push);
const join = uncurry(Array.prototype.join);
const slice = uncurry(String.prototype.slice);
const findIn = uncurry(Array.prototype.find);
const inSet = uncurry(Set.prototype.has);
const addTo = uncurry(Set.prototype.add);
const deleteFrom = uncurry(Set.prototype.delete);
const { assign } = Object;
const RealError = Error;
const { captureStackTrace } = Error;
const hasOwn = uncurry(Object.prototype.hasOwnProperty);
const isPrototypeOf = uncurry(Object.prototype.isPrototypeOf);
const sourceOf = uncurry(Function.prototype.toString);
const eachInMap = uncurry(Map.prototype.forEach);
const sizeOfMap = uncurry(getOwnPropertyDescriptor(Map.prototype, "size").get);
const hexOf = uncurry(Buffer.prototype.toString);
const bufferFrom = Buffer.from;
const string = String;
const writeSync = fs.writeSync;
const apply = Reflect.apply;
const construct = Reflect.construct;
const once = process.once.bind(process);
const exit = process.reallyExit.bind(process);

const [, , mode, kind, requestFd, resultsFd] = process.argv;
const [secret, source, names, functions, classes, ...rest] = fs.readFileSync(+requestFd, "latin1").split("\n");
fs.closeSync(+requestFd);
process.argv.splice(2);
const unhex = (text) => Buffer.from(text, "hex").toString("utf8");
const hex = (text) => hexOf(bufferFrom(text, "utf8"), "hex");

function send(line) {
  const text = `${secret} ${line}\n`;
  for (let at = 0; at < text.length; at += 32768) {
    const part = bufferFrom(slice(text, at, at + 32768), "latin1");
    for (let sent = 0; sent < part.length; ) {
      try {
        sent += writeSync(+resultsFd, part, sent);
      } catch (error) {
        if (error.code !== "EAGAIN") exit(1);
      }
    }
  }
}

function describe(error) {
  try {
    return hex(slice(string(error), 0, 300));
  } catch {
    return hex("an exception");
  }
}

// The words of a value (see eval/execution/values.py); `realms` are the prototypes of plain arrays, maps and objects.
function encode(value, realms, depth = 0) {
  if (value === null) return "N";
  if (typeof value === "boolean") return value ? "T" : "F";
  if (typeof value === "bigint") return `i${value}`;
  if (typeof value === "number") return value === 0 ? "j0" : `j${value}`;
  if (typeof value === "string") return `s${hex(value)}`;
  if (typeof value !== "object" || isProxy(value) || depth > 200) return `x${hex(typeof value)}`;
  const prototype = getPrototypeOf(value);
  const words = [];
  if (isArray(value) && (prototype === realms[0].array || prototype === realms[1].array)) {
    push(words, `[${value.length}`);
    for (let i = 0; i < value.length; i++) push(words, encode(own(value, i), realms, depth + 1));
    return join(words, " ");
  }
  if (isMap(value) && (prototype === realms[0].map || prototype === realms[1].map)) {
    push(words, `{${sizeOfMap(value)}`);
    eachInMap(value, (item, key) => push(words, encode(key, realms, depth + 1), encode(item, realms, depth + 1)));
    return join(words, " ");
  }
  if (prototype === realms[0].object || prototype === realms[1].object || prototype === null) {
    const names = keysOf(value);
    push(words, `O${names.length}`);
    for (let i = 0; i < names.length; i++) push(words, `s${hex(names[i])}`, encode(own(value, names[i]), realms, depth + 1));
    return join(words, " ");
  }
  return `x${hex("object")}`;
}

function own(value, key) {
  const property = getOwnPropertyDescriptor(value, key);
  if (property === undefined) return undefined;
  if (hasOwn(property, "value")) return property.value;
  return property.get === undefined ? undefined : apply(property.get, value, []);
}

const PROTOTYPES = "({ array: Array.prototype, map: Map.prototype, object: Object.prototype, function: Function.prototype })";
const MAKE = "({ array: () => [], map: () => new Map(), put: (map, key, value) => map.set(key, value) })";

// A decoder whose arrays and maps are those of the realm that `make` comes from.
function decoder(make) {
  const read = (words) => {
    const word = words.shift();
    const text = word.slice(1);
    if (word[0] === "[") {
      const items = make.array();
      for (let i = 0; i < +text; i++) items.push(read(words));
      return items;
    }
    if (word[0] === "{") {
      const map = make.map();
      for (let i = 0; i < +text; i++) make.put(map, read(words), read(words));
      return map;
    }
    if (word[0] === "s") return unhex(text);
    if (word[0] === "N") return null;
    if (word[0] === "T" || word[0] === "F") return word[0] === "T";
    return { inf: Infinity, "-inf": -Infinity, nan: NaN }[text] ?? Number(text);
  };
  return (call) => read(call.split(" "));
}

// What to call: a function, and what it is a method of.
const found = (target, self) => ({ target, self });

// Whether a property that is a function is there, and is not one that all functions and objects have.
function has(object, wanted) {
  if (object === null || (typeof object !== "function" && typeof object !== "object")) return false;
  if (typeof object[wanted] !== "function") return false;
  while (object !== null && !hasOwn(object, wanted)) object = getPrototypeOf(object);
  return object === null || !inSet(builtIn, object);
}

// The function called `wanted` as a method of one of the classes or objects: static, of an instance, or of its fields.
function method(classes_, wanted) {
  const extended = (one) => {
    for (let i = 0; i < classes_.length; i++) {
      if (typeof one === "function" && typeof classes_[i] === "function" && isPrototypeOf(one, classes_[i])) return true;
    }
    return false;
  };
  for (let i = 0; i < classes_.length; i++) {
    const class_ = classes_[i];
    if (extended(class_)) continue; // its subclass may override the method
    if (has(class_, wanted)) return found(class_[wanted], class_);
    if (typeof class_ !== "function") continue;
    const inherited = has(class_.prototype, wanted);
    if (!inherited && slice(sourceOf(class_), 0, 5) !== "class") continue;
    try {
      const object = construct(class_, []);
      if (has(object, wanted)) return found(object[wanted], object);
    } catch (error) {
      if (inherited) throw error;
    }
  }
  return undefined;
}

function runCases(find, realms, calls) {
  let target, self;
  try {
    ({ target, self } = find());
  } catch (error) {
    return send(`R - ${describe(error)}`);
  }
  if (typeof target !== "function") return send(`M ${hex(names)}`);
  for (let i = 0; i < calls.length; i++) {
    let line;
    try {
      line = `V ${i} ${encode(apply(target, self, calls[i]), realms)}`;
    } catch (error) {
      line = `R ${i} ${describe(error)}`;
    }
    send(line);
  }
  send("E");
  exit(0);
}

function failed(error) {
  const syntax = error !== null && typeof error === "object" && string(error.name) === "SyntaxError" && !started;
  const assertion = error !== null && typeof error === "object" && error.code === "ERR_ASSERTION";
  send(`${syntax ? "C" : assertion ? "A" : "R -"} ${describe(error)}`);
  exit(1);
}

let started = false;
let broken;
if (mode === "program") {
  defineProperty(console, "assert", {
    value: (value, ...message) => {
      if (!value && broken === undefined) broken = describe(`console.assert ${message.join(" ")}`);
    },
    writable: false,
    configurable: false,
  });
}

// Promises that the tests, whose first line is given, wait for: those of their async functions, of `await` and of
// `then`. An event loop with nothing left to do may end with some of them open, and what comes after them never ran.
const awaited = new Set();
const CHAINED = new Set(["then", "catch", "finally"]);
function watch(file, firstLine) {
  const isTest = (_, sites) => {
    const site = findIn(sites, (one) => one.getFileName() || !inSet(CHAINED, one.getFunctionName()));
    return site !== undefined && site.getFileName() === file && site.getLineNumber() >= firstLine;
  };
  const done = (promise) => deleteFrom(awaited, promise);
  const init = (promise) => {
    const { stackTraceLimit, prepareStackTrace } = RealError;
    const place = {};
    assign(RealError, { stackTraceLimit: 4, prepareStackTrace: isTest });
    captureStackTrace(place, init);
    const { stack } = place;
    assign(RealError, { stackTraceLimit, prepareStackTrace });
    if (stack) addTo(awaited, promise);
  };
  v8.promiseHooks.createHook({ init, before: done, settled: done });
}

// A program is over when nothing is left to do, not when its last statement was reached.
function finish() {
  const end = () => {
    if (broken === undefined && awaited.size > 0) broken = hex("a promise that the tests wait for is never settled");
    send(broken === undefined ? "E" : `A ${broken}`);
    exit(0);
  };
  once("beforeExit", end);
}

const ours = vm.runInThisContext(PROTOTYPES);
const builtIn = new Set([ours.object, ours.function]);
const declared = functions.split(" ").filter(Boolean);
const classNames = classes.split(" ").filter(Boolean);
const code = unhex(source).replace(/^\ufeff/, "");
const nodeModules = process.env.NODE_PATH?.split(path.delimiter)[0];
if (nodeModules) {
  fs.symlinkSync(nodeModules, "node_modules");
  // Node 20 looks at its last stat, here that of the request's pipe, and then leaves symbolic links unresolved:
  // import and require would take one file for two modules.
  fs.statSync(".");
}

const isModule = kind === "module";
const file = path.resolve(isModule ? "answer.mjs" : "answer.js");
// The hooks see each promise, which takes time, so only tests that have any pay for it.
if (mode === "program" && /\b(?:async|await|then|Promise)\b/.test(code.split("\n").slice(rest[0] - 1).join("\n")))
  watch(isModule ? pathToFileURL(file).href : file, +rest[0]);

if (isModule) {
  const calls = mode === "cases" ? rest.map(decoder(vm.runInThisContext(MAKE))) : [];
  // What is not exported is given away under a name of our own.
  const chosen = declared.includes(names) ? names : declared[0];
  const locals = [chosen, ...classNames].filter(Boolean).map((name, i) => `${name} as __judged_${i}`);
  fs.writeFileSync(file, mode === "cases" ? `${code}\n;export { ${locals.join(", ")} };\n` : code);
  const space = (module) => {
    const exported = module[names];
    if (typeof exported === "function") return found(exported);
    const local = [];
    for (let i = 0; i < locals.length; i++) push(local, module[`__judged_${i}`]);
    if (chosen === names) return found(local[0]);
    return method([...local, module.default], names) ?? found(chosen ? local[0] : module.default);
  };
  import(pathToFileURL(file)).then((module) => {
    started = true;
    if (mode === "cases") runCases(() => space(module), [ours, ours], calls);
    else finish();
  }, failed);
} else {
  fs.writeFileSync(file, code);
  const module = { exports: {}, id: file, filename: file, loaded: false, children: [], paths: [] };
  const globals = { require: createRequire(file), module, exports: module.exports, __filename: file };
  globals.__dirname = path.dirname(file);
  const standard = new Set(vm.runInNewContext("Object.getOwnPropertyNames(globalThis)"));
  for (const name of getOwnPropertyNames(globalThis)) if (!standard.has(name)) globals[name] = globalThis[name];
  globals.console = console;
  const context = vm.createContext(globals);
  globals.global = vm.runInContext("globalThis", context);
  const theirs = vm.runInContext(PROTOTYPES, context);
  builtIn.add(theirs.object).add(theirs.function);
  const calls = mode === "cases" ? rest.map(decoder(vm.runInContext(MAKE, context))) : [];
  // A plain object, as it is for files: the answer's own realm made it.
  module.exports = globals.exports = vm.runInContext("({})", context);
  const before = names ? own(globals, names) : undefined;
  const isDeclared = declared.includes(names);
  if (mode === "program") {
    const { require, module, exports, __filename, __dirname } = globals;
    Object.assign(globalThis, { require, module, exports, __filename, __dirname });
  }
  const find = () => {
    const look = (name) => vm.runInContext(name, context);
    if (isDeclared) return found(look(names));
    const assigned = own(globals, names);
    if (assigned !== before && typeof assigned === "function") return found(assigned);
    const exported = module.exports;
    if (typeof exported?.[names] === "function") return found(exported[names], exported);
    const classes_ = [exported, exported?.default];
    for (const name of [...classNames, ...declared]) push(classes_, look(name));
    const main = typeof exported === "function" ? exported : exported?.default;
    const last = typeof main === "function" ? main : declared[0] && look(declared[0]);
    return method(classes_, names) ?? found(last);
  };
  try {
    const script = new vm.Script(code, {
      filename: file,
      importModuleDynamically: vm.constants?.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    started = true;
    // Tests share the realm with the answer anyway, and in this one what Node makes has the usual prototypes.
    if (mode === "program") script.runInThisContext();
    else script.runInContext(context);
    if (mode === "cases") runCases(find, [theirs, ours], calls);
    else finish();
  } catch (error) {
    failed(error);
  }
}
