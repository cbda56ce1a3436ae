import java.io.IOException;
import java.io.StringWriter;
import java.io.Writer;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.List;
import javax.lang.model.element.Modifier;
import javax.lang.model.element.NestingKind;
import javax.tools.Diagnostic;
import javax.tools.DiagnosticCollector;
import javax.tools.JavaCompiler;
import javax.tools.JavaFileObject;
import javax.tools.SimpleJavaFileObject;
import javax.tools.StandardJavaFileManager;
import javax.tools.StandardLocation;
import javax.tools.ToolProvider;

/**
 * Compiles many files in one JVM: java Compiler REQUEST RESULTS. Each line of the request is "folder classpath source"
 * (the last two in hexadecimal, "-" for no class path), each line of the results "folder" and, in hexadecimal, an error.
 * Nothing that is compiled is run: annotation processors are off.
 */
public class Compiler {
    /** A source that may hold public classes of any name. */
    static final class Source extends SimpleJavaFileObject {
        private final String text;

        Source(String text) {
            super(URI.create("string:///Answer.java"), Kind.SOURCE);
            this.text = text;
        }

        @Override
        public CharSequence getCharContent(boolean ignoreEncodingErrors) {
            return text;
        }

        @Override
        public boolean isNameCompatible(String simpleName, Kind kind) {
            return kind == Kind.SOURCE;
        }

        @Override
        public NestingKind getNestingKind() {
            return null;
        }

        @Override
        public Modifier getAccessLevel() {
            return null;
        }
    }

    public static void main(String[] arguments) throws IOException {
        HexFormat hex = HexFormat.of();
        JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
        StandardJavaFileManager files = compiler.getStandardFileManager(null, null, StandardCharsets.UTF_8);
        try (Writer results = Files.newBufferedWriter(Path.of("/proc/self/fd/" + arguments[1]))) {
            for (String line : Files.readAllLines(Path.of("/proc/self/fd/" + arguments[0]))) {
                String[] parts = line.split(" ");
                String source = new String(hex.parseHex(parts[2]), StandardCharsets.UTF_8);
                String classPath = parts[1].equals("-") ? "" : new String(hex.parseHex(parts[1]), StandardCharsets.UTF_8);
                DiagnosticCollector<JavaFileObject> found = new DiagnosticCollector<>();
                String error = "";
                try {
                    files.setLocation(StandardLocation.CLASS_OUTPUT, List.of(Path.of(parts[0]).toFile()));
                    List<String> options = List.of("-proc:none", "-nowarn", "-Xlint:none", "-cp", classPath);
                    Source unit = new Source(source);
                    if (!compiler.getTask(new StringWriter(), files, found, options, null, List.of(unit)).call()) {
                        error = "error: it does not compile";
                        for (Diagnostic<?> one : found.getDiagnostics()) {
                            if (one.getKind() == Diagnostic.Kind.ERROR) {
                                error = "line " + one.getLineNumber() + ": error: " + one.getMessage(null);
                                break;
                            }
                        }
                    }
                } catch (RuntimeException | StackOverflowError failure) {
                    error = "error: the compiler failed: " + failure;
                }
                results.write(parts[0] + " " + hex.formatHex(error.getBytes(StandardCharsets.UTF_8)) + "\n");
                results.flush();
            }
        }
    }
}
