// Reads arguments into, and writes results from, C++ values; see eval/execution/values.py for the words. Precompiled.
#ifndef JUDGED_HPP
#define JUDGED_HPP
#if __has_include(<bits/stdc++.h>)
#include <bits/stdc++.h>
#else
#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <iostream>
#include <list>
#include <map>
#include <numeric>
#include <optional>
#include <queue>
#include <set>
#include <sstream>
#include <stack>
#include <string>
#include <tuple>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>
#endif
#include <cassert>

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

// Text that outlives the call.
inline std::string& kept(std::string text) {
    static std::deque<std::string> all;
    return all.emplace_back(std::move(text));
}
template <>
struct Reader<std::string_view> {
    static std::string_view read(Words& words) { return kept(judged::read<std::string>(words)); }
};
template <>
struct Reader<const char*> {
    static const char* read(Words& words) { return kept(judged::read<std::string>(words)).c_str(); }
};
template <>
struct Reader<char*> {
    static char* read(Words& words) { return kept(judged::read<std::string>(words)).data(); }
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
struct Reader<std::optional<T>> {
    static std::optional<T> read(Words& words) {
        Words before = words;
        if (words.next() == "N") return std::nullopt;
        words = before;
        return judged::read<T>(words);
    }
};

template <typename T>
concept Sequence = requires(const T& values) {
    values.begin();
    values.size();
    values.front();
} || requires(const T& values) { std::tuple_size<T>::value + values.size(); };

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
    } else if constexpr (std::is_pointer_v<T>) {
        return value ? "x" + hex("pointer", 7) : "N";
    } else if constexpr (requires { value.has_value(); *value; }) {
        return value.has_value() ? write(*value) : "N";
    } else if constexpr (Mapping<T>) {
        std::string words = "{" + std::to_string(value.size());
        for (const auto& [key, item] : value) words += " " + write(key) + " " + write(item);
        return words;
    } else if constexpr (Sequence<T>) {
        std::string words = "[" + std::to_string(value.size());
        for (auto it = value.begin(); it != value.end(); ++it) {
            const std::remove_cvref_t<typename T::value_type> item = *it;
            words += " " + write(item);
        }
        return words;
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
