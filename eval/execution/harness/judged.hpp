// Reads arguments into, and writes results from, C++ values; see eval/execution/values.py for the words.
// What it includes an answer may use; the headers left out take longer to read than all of these (everything.hpp).
#ifndef JUDGED_HPP
#define JUDGED_HPP
#include <algorithm>
#include <array>
#include <bitset>
#include <cassert>
#include <cctype>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <functional>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <queue>
#include <set>
#include <sstream>
#include <stack>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

namespace judged {

struct Words {
    std::string line;
    std::size_t at = 0;
    std::string next();  // throws std::invalid_argument at the end
};
std::string hex(const char* data, std::size_t size);
std::string unhex(const std::string& text);

// The one call under test: reads arguments, returns the words of the result.
using Call = std::function<std::string(Words&)>;
Call& entry();

[[noreturn]] inline void misfit(const std::string& word, const char* what) {
    throw std::invalid_argument("the argument " + word.substr(0, 40) + " does not fit " + what);
}

template <typename T>
struct Reader;

template <typename T>
T read(Words& words) {
    return Reader<std::remove_cv_t<T>>::read(words);
}

template <typename T>
    requires std::is_integral_v<T>
struct Reader<T> {
    static T read(Words& words) {
        const std::string word = words.next();
        if constexpr (std::is_same_v<T, bool>) {
            if (word == "T" || word == "F") return word == "T";
            misfit(word, "bool");
        } else {
            if constexpr (sizeof(T) == 1 || std::is_same_v<T, wchar_t>) {
                const std::string text = word[0] == 's' ? unhex(word.substr(1)) : "";
                if (text.size() == 1) return static_cast<T>(text[0]);
            }
            if (word[0] != 'i') misfit(word, "an integer");
            errno = 0;
            if constexpr (std::is_unsigned_v<T>) {
                const unsigned long long value = std::strtoull(word.c_str() + 1, nullptr, 10);
                if (errno || word[1] == '-' || value > std::numeric_limits<T>::max()) misfit(word, "its parameter");
                return static_cast<T>(value);
            } else {
                const long long value = std::strtoll(word.c_str() + 1, nullptr, 10);
                if (errno || value > std::numeric_limits<T>::max() || value < std::numeric_limits<T>::min())
                    misfit(word, "its parameter");
                return static_cast<T>(value);
            }
        }
    }
};

template <typename T>
    requires std::is_floating_point_v<T>
struct Reader<T> {
    static T read(Words& words) {
        const std::string word = words.next();
        if (word[0] != 'i' && word[0] != 'd') misfit(word, "a floating-point parameter");
        return static_cast<T>(std::strtold(word.c_str() + 1, nullptr));
    }
};

template <>
struct Reader<std::string> {
    static std::string read(Words& words) {
        const std::string word = words.next();
        if (word[0] != 's') misfit(word, "a string");
        return unhex(word.substr(1));
    }
};

// Values that outlive the call.
template <typename T>
std::deque<T>& kept() {
    static std::deque<T> all;
    return all;
}
inline std::string& kept(Words& words) { return kept<std::string>().emplace_back(judged::read<std::string>(words)); }
template <>
struct Reader<std::string_view> {
    static std::string_view read(Words& words) { return kept(words); }
};
template <>
struct Reader<const char*> {
    static const char* read(Words& words) { return kept(words).c_str(); }
};
template <>
struct Reader<char*> {
    static char* read(Words& words) { return kept(words).data(); }
};

inline std::size_t count(Words& words, char kind, const char* what) {
    const std::string word = words.next();
    if (word[0] != kind) misfit(word, what);
    return std::strtoull(word.c_str() + 1, nullptr, 10);
}

template <typename T>
concept Growing = requires(T values, typename T::value_type value) { values.insert(values.end(), value); };
template <typename T>
concept Mapping = requires { typename T::mapped_type; };

template <typename T>
    requires(Growing<T> && !Mapping<T>)
struct Reader<T> {
    static T read(Words& words) {
        T values;
        for (std::size_t n = count(words, '[', "a sequence"); n > 0; --n)
            values.insert(values.end(), judged::read<typename T::value_type>(words));
        return values;
    }
};

template <typename T>
    requires Mapping<T>
struct Reader<T> {
    static T read(Words& words) {
        T values;
        for (std::size_t n = count(words, '{', "a map"); n > 0; --n) {
            auto key = judged::read<typename T::key_type>(words);
            values.emplace(std::move(key), judged::read<typename T::mapped_type>(words));
        }
        return values;
    }
};

template <typename T, std::size_t N>
struct Reader<std::array<T, N>> {
    static std::array<T, N> read(Words& words) {
        std::array<T, N> values;
        if (count(words, '[', "an array") != N) misfit("list", "an array of its size");
        for (T& value : values) value = judged::read<T>(words);
        return values;
    }
};

template <typename A, typename B>
struct Reader<std::pair<A, B>> {
    static std::pair<A, B> read(Words& words) {
        if (count(words, '[', "a pair") != 2) misfit("list", "a pair");
        A first = judged::read<A>(words);
        return {std::move(first), judged::read<B>(words)};
    }
};

template <typename T>
    requires std::is_object_v<T>
struct Reader<T*> {
    static T* read(Words& words) {
        if (words.line.compare(words.at, 1, "N") == 0) return words.next(), nullptr;
        return &kept<std::remove_cv_t<T>>().emplace_back(judged::read<T>(words));
    }
};

template <typename T>
    requires requires(T values) { values.size_bytes(); }  // a std::span
struct Reader<T> {
    static T read(Words& words) {
        using Values = std::vector<typename T::value_type>;
        return kept<Values>().emplace_back(judged::read<Values>(words));
    }
};

template <typename T>
struct Reader<std::optional<T>> {
    static std::optional<T> read(Words& words) {
        Words before = words;
        if (words.next() == "N") return std::nullopt;
        words = before;
        return judged::read<T>(words);
    }
};

template <typename T>
concept Sequence = requires(T& values) { std::begin(values) != std::end(values); } && !requires { typename T::key_type; };

template <typename T>
std::string write(const T& value) {
    if constexpr (std::is_same_v<T, bool>) {
        return value ? "T" : "F";
    } else if constexpr (std::is_same_v<T, char>) {
        return "c" + hex(&value, 1);
    } else if constexpr (std::is_integral_v<T>) {
        if constexpr (sizeof(T) > 8) {
            if (value > static_cast<T>(LLONG_MAX) || (std::is_signed_v<T> && value < static_cast<T>(LLONG_MIN)))
                return "x" + hex("__int128", 8);
            return "i" + std::to_string(static_cast<long long>(value));
        } else {
            return "i" + std::to_string(value);
        }
    } else if constexpr (std::is_floating_point_v<T>) {
        char text[64];
        std::snprintf(text, sizeof text, "d%.17Lg", static_cast<long double>(value));
        return text;
    } else if constexpr (std::is_same_v<T, std::string> || std::is_same_v<T, std::string_view>) {
        return "s" + hex(value.data(), value.size());
    } else if constexpr (std::is_same_v<T, const char*> || std::is_same_v<T, char*>) {
        return value ? "s" + hex(value, std::strlen(value)) : "N";
    } else if constexpr (std::is_same_v<T, std::nullptr_t> || std::is_same_v<T, std::nullopt_t>) {
        return "N";
    } else if constexpr (std::is_pointer_v<T> || requires { typename T::element_type; value.get(); !value; }) {
        return value ? "x" + hex("pointer", 7) : "N";
    } else if constexpr (requires { value.has_value(); *value; }) {
        return value.has_value() ? write(*value) : "N";
    } else if constexpr (Mapping<T>) {
        std::string words = "{" + std::to_string(value.size());
        for (const auto& [key, item] : value) words += " " + write(key) + " " + write(item);
        return words;
    } else if constexpr (Sequence<T>) {
        std::string words;
        std::size_t size = 0;
        const auto add = [&](auto& values) {
            auto end = std::end(values);
            for (auto it = std::begin(values); it != end; ++it, ++size) {
                if constexpr (requires { typename T::value_type; }) {
                    const std::remove_cvref_t<typename T::value_type> item = *it;
                    words += " " + write(item);
                } else {
                    words += " " + write(std::remove_cvref_t<decltype(*it)>(*it));
                }
            }
        };
        if constexpr (Sequence<const T>) {
            add(value);
        } else {  // a view that finds its elements as it goes
            T copy = value;
            add(copy);
        }
        return "[" + std::to_string(size) + words;
    } else if constexpr (requires { std::tuple_size<T>::value; }) {
        std::string words = "[" + std::to_string(std::tuple_size_v<T>);
        std::apply([&](const auto&... items) { ((words += " " + write(items)), ...); }, value);
        return words;
    } else {
        const char* name = typeid(T).name();
        return "x" + hex(name, std::strlen(name));
    }
}

template <typename F>
std::string written(F&& call) {
    using R = decltype(call());
    if constexpr (std::is_void_v<R>) {
        call();
        return "x" + hex("void", 4);
    } else if constexpr (std::is_array_v<std::remove_reference_t<R>>) {
        return "x" + hex("array", 5);
    } else {
        const std::remove_cvref_t<R> value = call();
        return write(value);
    }
}

// Registers the function of the answer: `plain` by its own types, `generic` by those of the test.
struct Entry {
    template <typename R, typename... P>
    explicit Entry(R (*function)(P...)) {
        entry() = [function](Words& words) {
            std::tuple<std::decay_t<P>...> values{read<std::decay_t<P>>(words)...};
            return written([&]() -> decltype(auto) {
                return std::apply(
                    [&](auto&... value) -> decltype(auto) { return function(static_cast<P&&>(value)...); }, values);
            });
        };
    }
    template <typename C, typename R, typename... P>
    explicit Entry(R (C::*method)(P...)) { member<C, R, P...>(method); }
    template <typename C, typename R, typename... P>
    explicit Entry(R (C::*method)(P...) const) { member<C, R, P...>(method); }

    template <typename... P, typename F>
    static Entry generic(F call) {
        Entry made;
        entry() = [call](Words& words) {
            std::tuple<P...> values{read<P>(words)...};
            return written([&]() -> decltype(auto) { return std::apply(call, values); });
        };
        return made;
    }

   private:
    Entry() = default;
    template <typename C, typename R, typename... P, typename M>
    void member(M method) {
        entry() = [method](Words& words) {
            std::tuple<std::decay_t<P>...> values{read<std::decay_t<P>>(words)...};
            C object{};
            return written([&]() -> decltype(auto) {
                return std::apply(
                    [&](auto&... value) -> decltype(auto) { return (object.*method)(static_cast<P&&>(value)...); },
                    values);
            });
        };
    }
};

}  // namespace judged
#endif
