// Arrays that begin on a line of the cache.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace gracile {

struct Free {
    void operator()(void* p) const { std::free(p); }
};

template <class T>
using Aligned = std::unique_ptr<T, Free>;

template <class T>
Aligned<T> aligned(std::size_t count) {
    auto* const p = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 127) / 64 * 64));
    if (!p) throw std::bad_alloc();
    return Aligned<T>(p);
}

}  // namespace gracile
