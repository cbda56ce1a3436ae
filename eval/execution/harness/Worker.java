import java.io.BufferedInputStream;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.Array;
import java.lang.reflect.Constructor;
import java.lang.reflect.Field;
import java.lang.reflect.GenericArrayType;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.Type;
import java.lang.reflect.TypeVariable;
import java.lang.reflect.WildcardType;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.net.URL;
import java.net.URLClassLoader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.*;
import java.util.stream.Stream;

/**
 * Runs the compiled classes of a Java answer: java Worker cases|program FOLDER CLASSPATH REQUEST RESULTS. All cases of
 * a test run in one JVM; eval/execution/values.py has the form of values. The answer has a class loader
 * of its own and cannot name this class.
 */
public class Worker {
    private final OutputStream results;
    private final String secret;

    private Worker(OutputStream results, String secret) {
        this.results = results;
        this.secret = secret;
    }

    public static void main(String[] arguments) throws Exception {
        byte[] request;
        try (InputStream in = new BufferedInputStream(new FileInputStream("/proc/self/fd/" + arguments[3]))) {
            request = in.readAllBytes();
        }
        OutputStream results = new FileOutputStream("/proc/self/fd/" + arguments[4]);
        String[] lines = new String(request, StandardCharsets.US_ASCII).split("\n", -1);
        Worker worker = new Worker(results, lines[0]);
        List<URL> urls = new ArrayList<>();
        urls.add(new File(arguments[1] + "/").toURI().toURL());
        for (String path : arguments[2].split(File.pathSeparator)) if (!path.isEmpty()) urls.add(new File(path).toURI().toURL());
        URLClassLoader loader = new URLClassLoader(urls.toArray(new URL[0]), ClassLoader.getPlatformClassLoader());
        loader.setDefaultAssertionStatus(true);
        Thread.currentThread().setContextClassLoader(loader);
        List<Class<?>> classes = load(loader, Path.of(arguments[1]), List.of(lines[4].split(" ")));
        try {
            if (arguments[0].equals("program")) worker.program(classes);
            else worker.cases(classes, lines);
        } catch (Throwable error) {
            worker.send("R - " + describe(error));
        }
        Runtime.getRuntime().halt(0);
    }

    /** The classes in the order of the source; anonymous and local ones are left out. */
    private static List<Class<?>> load(ClassLoader loader, Path folder, List<String> order) throws IOException {
        List<Class<?>> found = new ArrayList<>();
        try (Stream<Path> files = Files.walk(folder)) {
            for (Path file : (Iterable<Path>) files.filter(f -> f.toString().endsWith(".class")).sorted()::iterator) {
                String name = folder.relativize(file).toString().replace(File.separatorChar, '.');
                try {
                    Class<?> one = Class.forName(name.substring(0, name.length() - 6), false, loader);
                    if (one.getCanonicalName() != null) found.add(one);
                } catch (LinkageError | ClassNotFoundException error) {
                    // A class that cannot be loaded has no methods to call.
                }
            }
        }
        found.sort(Comparator.comparingInt(one -> {
            int at = order.indexOf(one.getSimpleName());
            return at < 0 ? order.size() : at;
        }));
        return found;
    }

    private void program(List<Class<?>> classes) throws Throwable {
        Method main = null;
        // The last one: the tests come after the answer.
        for (Class<?> one : classes) {
            try {
                Method method = one.getDeclaredMethod("main", String[].class);
                if (Modifier.isStatic(method.getModifiers())) main = method;
            } catch (NoSuchMethodException | LinkageError absent) {
                // Another class has it.
            }
        }
        if (main == null) {
            send("M " + hex("main"));
            return;
        }
        main.setAccessible(true);
        try {
            main.invoke(null, (Object) new String[0]);
        } catch (InvocationTargetException error) {
            Throwable cause = error.getCause();
            send((cause instanceof AssertionError ? "A " : "R - ") + describe(cause));
            return;
        }
        send("E");
    }

    private void cases(List<Class<?>> classes, String[] lines) {
        List<Object> calls = new ArrayList<>();
        for (int i = 5; i < lines.length; i++) calls.add(decode(new ArrayDeque<>(List.of(lines[i].split(" ")))));
        String wanted = lines[2];
        Method method = find(classes, wanted, calls);
        Object field = method == null ? function(classes, wanted) : null;
        if (field != null) method = find(List.of(field.getClass().getInterfaces()), null, calls);
        if (method == null) {
            for (String name : lines[3].split(" ")) {
                if (method == null && !defined(classes, wanted)) method = find(classes, name, calls);
            }
        }
        if (method == null) {
            send("M " + hex(wanted));
            return;
        }
        method.setAccessible(true);
        for (int i = 0; i < calls.size(); i++) {
            String line;
            try {
                Object[] values = arguments(method, (List<?>) calls.get(i));
                Object self = Modifier.isStatic(method.getModifiers()) ? null
                    : field != null ? field : make(method.getDeclaringClass(), classes);
                line = "V " + i + " " + encode(method.invoke(self, values));
            } catch (InvocationTargetException error) {
                line = "R " + i + " " + describe(error.getCause());
            } catch (Throwable error) {
                line = "R " + i + " " + describe(error);
            }
            send(line);
        }
        send("E");
    }

    /** A lambda, or another object with one method, in a field of that name. */
    private static Object function(List<Class<?>> classes, String name) {
        for (Class<?> one : classes) {
            try {
                Field field = one.getDeclaredField(name);
                if (!field.getType().isInterface()) continue;
                field.setAccessible(true);
                return field.get(Modifier.isStatic(field.getModifiers()) ? null : make(one, classes));
            } catch (ReflectiveOperationException | LinkageError absent) {
                // Another class has it.
            }
        }
        return null;
    }

    private static boolean defined(List<Class<?>> classes, String name) {
        for (Class<?> one : classes) for (Method method : methods(one)) if (method.getName().equals(name)) return true;
        return false;
    }

    private static Method[] methods(Class<?> one) {
        try {
            return one.getDeclaredMethods();
        } catch (LinkageError error) {
            return new Method[0];
        }
    }

    /**
     * The first method of that name which takes the arguments of all calls, else the first of that name and number.
     * Without a name: the method that an interface leaves to a lambda.
     */
    private static Method find(List<Class<?>> classes, String name, List<Object> calls) {
        List<?> values = (List<?>) calls.get(0);
        Method close = null;
        for (Class<?> one : classes) {
            for (Method method : methods(one)) {
                int count = method.getParameterCount();
                boolean fits = count == values.size() || (method.isVarArgs() && values.size() >= count - 1);
                if (name != null && !method.getName().equals(name) || method.isSynthetic() || !fits) continue;
                if (Modifier.isAbstract(method.getModifiers()) != (name == null) && !one.isEnum()) continue;  // see make
                try {
                    for (Object call : calls) arguments(method, (List<?>) call);
                    return method;
                } catch (IllegalArgumentException unfit) {
                    if (close == null) close = method;
                }
            }
        }
        return close;
    }

    private static Object make(Class<?> one, List<Class<?>> classes) throws ReflectiveOperationException {
        for (Class<?> other : classes) {  // a subclass may override the method
            try {
                if (one != other && one.isAssignableFrom(other)) return make(other, classes);
            } catch (NoSuchMethodException | InstantiationException unfit) {
                // It wants arguments, or is abstract.
            }
        }
        if (one.isEnum() && one.getEnumConstants().length > 0) return one.getEnumConstants()[0];
        if (one.isMemberClass() && !Modifier.isStatic(one.getModifiers())) {
            Constructor<?> inner = one.getDeclaredConstructor(one.getDeclaringClass());
            inner.setAccessible(true);
            return inner.newInstance(make(one.getDeclaringClass(), classes));
        }
        Constructor<?> constructor = one.getDeclaredConstructor();
        constructor.setAccessible(true);
        return constructor.newInstance();
    }

    private static Object[] arguments(Method method, List<?> values) {
        Type[] types = method.getGenericParameterTypes();
        List<Object> given = new ArrayList<>(values);
        int last = types.length - 1;
        boolean spread = method.isVarArgs()
            && (given.size() != types.length || !(given.get(last) instanceof List || given.get(last) == null));
        if (spread) {
            List<Object> rest = new ArrayList<>(given.subList(last, given.size()));
            given = new ArrayList<>(given.subList(0, last));
            given.add(rest);
        }
        Object[] converted = new Object[types.length];
        for (int i = 0; i < types.length; i++) converted[i] = convert(given.get(i), types[i]);
        return converted;
    }

    private static IllegalArgumentException unfit(Object value, Type type) {
        return new IllegalArgumentException("the argument " + value + " does not fit " + type.getTypeName());
    }

    /** A decoded value as what a parameter of the type takes. */
    private static Object convert(Object value, Type type) {
        if (type instanceof TypeVariable<?> variable) return convert(value, variable.getBounds()[0]);
        if (type instanceof WildcardType wildcard) {
            return convert(value, wildcard.getLowerBounds().length > 0 ? wildcard.getLowerBounds()[0] : wildcard.getUpperBounds()[0]);
        }
        Class<?> raw = raw(type);
        if (value == null) {
            if (raw.isPrimitive()) throw unfit(value, type);
            return raw == Optional.class ? Optional.empty() : null;
        }
        Type[] parts = type instanceof ParameterizedType generic ? generic.getActualTypeArguments() : new Type[0];
        if (raw == Optional.class) return Optional.of(convert(value, parts.length > 0 ? parts[0] : Object.class));
        if (value instanceof Boolean && (raw == boolean.class || raw.isAssignableFrom(Boolean.class))) return value;
        if (value instanceof String text) {
            if (raw == char[].class) return text.toCharArray();
            if ((raw == char.class || raw == Character.class) && text.length() == 1) return text.charAt(0);
            if (raw == StringBuilder.class) return new StringBuilder(text);
            if (raw.isAssignableFrom(String.class)) return text;
        }
        if (value instanceof BigInteger whole) return integer(whole, raw, type);
        if (value instanceof Double number) {
            if (raw == double.class || raw.isAssignableFrom(Double.class)) return number;
            if (raw == float.class || raw == Float.class) return number.floatValue();
            if (raw == BigDecimal.class) return BigDecimal.valueOf(number);
        }
        if (value instanceof List<?> list) return sequence(list, raw, type, parts);
        if (value instanceof Map<?, ?> map) {
            Map<Object, Object> made = raw.isAssignableFrom(LinkedHashMap.class) ? new LinkedHashMap<>()
                : raw.isAssignableFrom(TreeMap.class) ? new TreeMap<>() : null;
            if (made == null) throw unfit(value, type);
            Type key = parts.length == 2 ? parts[0] : Object.class, item = parts.length == 2 ? parts[1] : Object.class;
            map.forEach((k, v) -> made.put(convert(k, key), convert(v, item)));
            return made;
        }
        throw unfit(value, type);
    }

    private static Object integer(BigInteger whole, Class<?> raw, Type type) {
        try {
            if (raw == int.class || raw == Integer.class) return whole.intValueExact();
            if (raw == long.class || raw == Long.class) return whole.longValueExact();
            if (raw == short.class || raw == Short.class) return whole.shortValueExact();
            if (raw == byte.class || raw == Byte.class) return whole.byteValueExact();
        } catch (ArithmeticException large) {
            throw unfit(whole, type);
        }
        if (raw == double.class || raw == Double.class) return whole.doubleValue();
        if (raw == float.class || raw == Float.class) return whole.floatValue();
        if (raw == BigInteger.class) return whole;
        if (raw == BigDecimal.class) return new BigDecimal(whole);
        if (!raw.isAssignableFrom(Integer.class)) throw unfit(whole, type);
        if (whole.bitLength() < 32) return whole.intValue();
        return whole.longValue();
    }

    private static Object sequence(List<?> list, Class<?> raw, Type type, Type[] parts) {
        if (raw.isArray()) {
            Type item = type instanceof GenericArrayType array ? array.getGenericComponentType() : raw.getComponentType();
            Object array = Array.newInstance(raw.getComponentType(), list.size());
            for (int i = 0; i < list.size(); i++) Array.set(array, i, convert(list.get(i), item));
            return array;
        }
        Collection<Object> made = raw.isAssignableFrom(ArrayList.class) ? new ArrayList<>()
            : raw.isAssignableFrom(LinkedList.class) ? new LinkedList<>()
            : raw.isAssignableFrom(LinkedHashSet.class) ? new LinkedHashSet<>()
            : raw.isAssignableFrom(TreeSet.class) ? new TreeSet<>()
            : raw.isAssignableFrom(ArrayDeque.class) ? new ArrayDeque<>() : null;
        if (made == null) throw unfit(list, type);
        for (Object item : list) made.add(convert(item, parts.length == 1 ? parts[0] : Object.class));
        return made;
    }

    private static Class<?> raw(Type type) {
        if (type instanceof Class<?> one) return one;
        if (type instanceof ParameterizedType generic) return raw(generic.getRawType());
        if (type instanceof GenericArrayType array) return Array.newInstance(raw(array.getGenericComponentType()), 0).getClass();
        if (type instanceof TypeVariable<?> variable) return raw(variable.getBounds()[0]);
        return Object.class;
    }

    private static Object decode(Deque<String> words) {
        String word = words.remove(), rest = word.substring(1);
        switch (word.charAt(0)) {
            case 'N': return null;
            case 'T': return true;
            case 'F': return false;
            case 'i': return new BigInteger(rest);
            case 'd': return rest.equals("nan") ? Double.NaN : rest.endsWith("inf")
                ? (rest.startsWith("-") ? Double.NEGATIVE_INFINITY : Double.POSITIVE_INFINITY) : Double.valueOf(rest);
            case 's': return new String(HexFormat.of().parseHex(rest), StandardCharsets.UTF_8);
            case '[':
                List<Object> list = new ArrayList<>();
                for (int n = Integer.parseInt(rest); n > 0; n--) list.add(decode(words));
                return list;
            default:
                Map<Object, Object> map = new LinkedHashMap<>();
                for (int n = Integer.parseInt(rest); n > 0; n--) {
                    Object key = decode(words);
                    map.put(key, decode(words));
                }
                return map;
        }
    }

    /** The words of a result by its exact class; collections must be Java's own. */
    private static String encode(Object value) {
        if (value == null) return "N";
        Class<?> kind = value.getClass();
        if (kind == Boolean.class) return (Boolean) value ? "T" : "F";
        if (kind == Integer.class || kind == Long.class || kind == Short.class || kind == Byte.class || kind == BigInteger.class)
            return "i" + value;
        if (kind == Double.class || kind == Float.class) return "d" + value;
        if (kind == String.class) return "s" + hex((String) value);
        if (kind == Character.class) return "c" + hex(value.toString());
        if (kind.isArray()) {
            StringBuilder words = new StringBuilder("[" + Array.getLength(value));
            for (int i = 0; i < Array.getLength(value); i++) words.append(' ').append(encode(Array.get(value, i)));
            return words.toString();
        }
        if (kind == Optional.class) return encode(((Optional<?>) value).orElse(null));
        if (value instanceof OptionalInt found) return found.isPresent() ? encode(found.getAsInt()) : "N";
        if (value instanceof OptionalLong found) return found.isPresent() ? encode(found.getAsLong()) : "N";
        if (value instanceof OptionalDouble found) return found.isPresent() ? encode(found.getAsDouble()) : "N";
        if (kind.getClassLoader() == null && value instanceof List<?> list) {
            Object[] items = list.toArray();
            return encode(items);
        }
        if (kind.getClassLoader() == null && value instanceof Map<?, ?> map) {
            StringBuilder words = new StringBuilder();
            int size = 0;
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                words.append(' ').append(encode(entry.getKey())).append(' ').append(encode(entry.getValue()));
                size++;
            }
            return "{" + size + words;
        }
        return "x" + hex(kind.getName());
    }

    private static String hex(String text) {
        return HexFormat.of().formatHex(text.getBytes(StandardCharsets.UTF_8));
    }

    private static String describe(Throwable error) {
        try {
            String text = String.valueOf(error);
            return hex(text.substring(0, Math.min(300, text.length())));
        } catch (Throwable second) {
            return hex("an exception");
        }
    }

    private void send(String line) {
        try {
            results.write((secret + " " + line + "\n").getBytes(StandardCharsets.US_ASCII));
        } catch (IOException error) {
            Runtime.getRuntime().halt(1);
        }
    }
}
