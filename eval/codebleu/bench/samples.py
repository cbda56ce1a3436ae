"""Sample code for the benchmark when no file of pairs is given."""

from __future__ import annotations

import re
from types import MappingProxyType

_PYTHON = (
    '''def moving_average(values, width):
    """Means of all windows of the given width."""
    if width <= 0 or width > len(values):
        raise ValueError("the width does not fit")
    total = sum(values[:width])  # of the first window
    means = [total / width]
    for i in range(width, len(values)):
        total += values[i] - values[i - width]
        means.append(total / width)
    return means
''',
    """class Settings:
    def __init__(self, path, strict=False):
        self.path = path
        self.entries = {}
        for number, line in enumerate(open(path), start=1):
            name, found, value = line.partition("=")
            if not found and strict:
                raise SyntaxError(f"line {number}: {line!r}")
            elif found:
                self.entries[name.strip()] = value.strip()

    def get(self, name, default=None):
        return self.entries[name] if name in self.entries else default
""",
    """def merge_intervals(intervals):
    merged = []
    for start, end in sorted(intervals, key=lambda pair: pair[0]):
        if merged and start <= merged[-1][1]:
            last = merged.pop()
            merged.append((last[0], max(last[1], end)))
        else:
            merged.append((start, end))
    lengths = {pair: pair[1] - pair[0] for pair in merged if pair[1] > pair[0]}
    while len(merged) > 1 and not lengths:
        merged = merged[1:]
    return merged, lengths
""",
)
_JAVA = (
    """/** Means of all windows of the given width. */
public static double[] movingAverage(double[] values, int width) {
    if (width <= 0 || width > values.length) {
        throw new IllegalArgumentException("the width does not fit");
    }
    double total = 0;
    double[] means = new double[values.length - width + 1];
    for (int i = 0; i < values.length; i++) {
        total += values[i]; // of the window that ends here
        if (i >= width) total -= values[i - width];
        if (i >= width - 1) means[i - width + 1] = total / width;
    }
    return means;
}
""",
    """public Map<String, Integer> countWords(List<String> lines, boolean fold) {
    Map<String, Integer> counts = new TreeMap<>();
    for (String line : lines) {
        String[] words = line.trim().split("[^A-Za-z]+");
        for (String word : words) {
            if (word.isEmpty()) continue;
            String key = fold ? word.toLowerCase() : word;
            Integer before = counts.get(key);
            if (before == null) {
                counts.put(key, 1);
            } else {
                counts.put(key, before + 1);
            }
        }
    }
    return counts;
}
""",
    """int find(int[] sorted, int wanted) {
    int low = 0, high = sorted.length - 1;
    while (low <= high) {
        int middle = low + (high - low) / 2;
        int value = sorted[middle];
        if (value < wanted) low = middle + 1;
        else if (value > wanted) high = middle - 1;
        else return middle;
    }
    return -(low + 1);
}
""",
)
_JAVASCRIPT = (
    """// Calls the function once, after calls have stopped for some time.
export function debounce(action, delay = 100) {
  let timer = null;
  let waiting = [];
  return function (...args) {
    waiting.push(args);
    clearTimeout(timer);
    timer = setTimeout(() => {
      const calls = waiting;
      waiting = [];
      timer = null;
      for (const call of calls) action.apply(this, call);
    }, delay);
  };
}
""",
    """function parseQuery(text) {
  const result = {};
  const pairs = text.replace(/^\\?/, '').split('&');
  for (let i = 0; i < pairs.length; i++) {
    const [key, value] = pairs[i].split('=').map(decodeURIComponent);
    if (!key) continue;
    if (key in result) {
      result[key] = [].concat(result[key], value);
    } else {
      result[key] = value === undefined ? true : value;
    }
  }
  return result;
}
""",
    """class Queue {
  constructor(limit) {
    this.limit = limit;
    this.items = [];
    this.dropped = 0;
  }
  push(item) {
    if (this.items.length >= this.limit) {
      this.items.shift();
      this.dropped += 1;
    }
    this.items.push(item);
    return this.items.length;
  }
  drain(visit) {
    while (this.items.length > 0) visit(this.items.shift(), this.dropped);
  }
}
""",
)
_CPP = (
    """// Means of all windows of the given width.
std::vector<double> moving_average(const std::vector<double>& values, std::size_t width) {
    if (width == 0 || width > values.size()) throw std::invalid_argument("the width does not fit");
    std::vector<double> means;
    double total = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
        total += values[i];
        if (i >= width) total -= values[i - width];
        if (i + 1 >= width) means.push_back(total / width);
    }
    return means;
}
""",
    """template <typename Key, typename Value>
Value* Table<Key, Value>::find(const Key& key) {
    std::size_t slot = std::hash<Key>()(key) % slots_.size();
    for (auto& entry : slots_[slot]) {
        if (entry.first == key) {
            hits_++;
            return &entry.second;
        }
    }
    misses_ = misses_ + 1;
    return nullptr;
}
""",
    """static int count_lines(const char* path, bool blank) {
    FILE* file = fopen(path, "r");
    if (!file) return -1;
    int lines = 0, length = 0, c;
    while ((c = fgetc(file)) != EOF) {
        if (c == '\\n') {
            if (blank || length > 0) lines++;
            length = 0;
        } else if (!isspace(c)) {
            length++;
        }
    }
    fclose(file);
    return length > 0 ? lines + 1 : lines;
}
""",
)
_C = (
    """/* Means of all windows of the given width. */
int moving_average(const double *values, int count, int width, double *means) {
    double total = 0;
    if (width <= 0 || width > count) return -1;
    for (int i = 0; i < count; i++) {
        total += values[i];
        if (i >= width) total -= values[i - width];
        if (i + 1 >= width) means[i - width + 1] = total / width;
    }
    return count - width + 1;
}
""",
    """struct node *insert(struct node *head, const char *key, int value) {
    struct node *item = malloc(sizeof *item);
    if (item == NULL) return head;
    item->key = strdup(key);
    item->value = value;
    item->next = NULL;
    struct node **end = &head;
    while (*end != NULL && strcmp((*end)->key, key) < 0) end = &(*end)->next;
    item->next = *end;
    *end = item;
    return head;
}
""",
)
_GO = (
    """// CountWords counts the words of all lines.
func CountWords(lines []string, fold bool) map[string]int {
	counts := make(map[string]int)
	for _, line := range lines {
		for _, key := range strings.Fields(line) {
			if fold {
				key = strings.ToLower(key)
			}
			counts[key]++
		}
	}
	return counts
}
""",
    """func find(values []int, key int) (int, error) {
	low, high := 0, len(values)-1
	for low <= high {
		i := low + (high-low)/2
		if values[i] == key {
			return i, nil
		} else if values[i] < key {
			low = i + 1
		} else {
			high = i - 1
		}
	}
	return -1, fmt.Errorf("no value %d", key)
}
""",
)
_RUST = (
    """/// Means of all windows of the given width.
fn moving_average(values: &[f64], width: usize) -> Result<Vec<f64>, String> {
    if width == 0 || width > values.len() {
        return Err(format!("width {} does not fit", width));
    }
    let mut total: f64 = values[..width].iter().sum();
    let mut means = vec![total / width as f64];
    for i in width..values.len() {
        total += values[i] - values[i - width];
        means.push(total / width as f64);
    }
    Ok(means)
}
""",
    """impl Counter {
    pub fn add(&mut self, key: &str, value: i64) -> i64 {
        let result = match self.counts.get(key) {
            Some(start) => start + value,
            None => value,
        };
        self.counts.insert(key.to_string(), result);
        while self.total() > self.limit {
            self.drop_oldest();
        }
        result
    }
}
""",
)
_C_SHARP = (
    """// Words and how often each occurs.
public static Dictionary<string, int> CountWords(IEnumerable<string> lines, bool fold) {
    var counts = new Dictionary<string, int>();
    foreach (var line in lines) {
        foreach (var word in line.Split(' ')) {
            if (word.Length == 0) continue;
            string key = fold ? word.ToLower() : word;
            counts.TryGetValue(key, out int value);
            counts[key] = value + 1;
        }
    }
    return counts;
}
""",
    """public double[] MovingAverage(double[] values, int width) {
    if (width <= 0 || width > values.Length) throw new ArgumentException("the width does not fit");
    double total = 0;
    double[] means = new double[values.Length - width + 1];
    for (int i = 0; i < values.Length; i++) {
        total += values[i];
        if (i >= width) total -= values[i - width];
        if (i >= width - 1) means[i - width + 1] = total / width;
    }
    return means;
}
""",
)
_PHP = (
    """<?php
// Means of all windows of the given width.
function moving_average(array $values, int $width): array {
    if ($width <= 0 || $width > count($values)) {
        throw new InvalidArgumentException('the width does not fit');
    }
    $total = 0;
    $means = [];
    foreach ($values as $i => $value) {
        $total += $value;
        if ($i >= $width) $total -= $values[$i - $width];
        if ($i >= $width - 1) $means[] = $total / $width;
    }
    return $means;
}
""",
    """<?php
function parse_query($line) {
    $result = [];
    $words = explode('&', ltrim($line, '?'));
    for ($i = 0; $i < count($words); $i++) {
        list($key, $value) = explode('=', $words[$i]);
        if ($key === '') continue;
        if (isset($result[$key])) {
            $result[$key] = array_merge((array) $result[$key], [$value]);
        } else {
            $result[$key] = urldecode($value);
        }
    }
    return $result;
}
""",
)
_RUBY = (
    """# Means of all windows of the given width.
def moving_average(values, width)
  raise ArgumentError, 'the width does not fit' if width <= 0 || width > values.size
  total = 0
  means = []
  values.each_with_index do |value, i|
    total += value
    total -= values[i - width] if i >= width
    means << total / width if i >= width - 1
  end
  means
end
""",
    """def count_words(line, fold = false)
  counts = Hash.new(0)
  words = line.split
  until words.empty?
    key = words.shift
    key = key.downcase if fold
    if counts.key?(key)
      counts[key] += 1
    else
      counts[key] = 1
    end
  end
  counts
end
""",
)
SAMPLES = MappingProxyType(
    {"python": _PYTHON, "java": _JAVA, "javascript": _JAVASCRIPT, "cpp": _CPP, "c": _C, "go": _GO, "rust": _RUST}
    | {"c_sharp": _C_SHARP, "php": _PHP, "ruby": _RUBY}
)
"""Language -> functions and classes."""

_NAMES = re.compile(r"\b(?:values?|width|total|means|i|line|name|key|words?|counts|low|high|item|result|start|end|c)\b")


def make_pair(language: str, number: int) -> tuple[str, str]:
    """A reference and a hypothesis, new ones for every number: names differ, a line is missing or is there twice."""
    samples = SAMPLES[language]
    code = samples[number % len(samples)]
    reference = _NAMES.sub(lambda name: f"{name[0]}_{number}", code)
    lines = _NAMES.sub(lambda name: f"{name[0]}_{number // 2 if len(name[0]) > 3 else number}", code).split("\n")
    place = number % (len(lines) - 2) + 1
    if number % 3:
        lines.insert(place, lines[place])
    elif lines[place].rstrip().endswith(";") or language in ("python", "go", "ruby"):
        del lines[place]
    return reference, "\n".join(lines)
