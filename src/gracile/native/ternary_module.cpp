// Ternary numbers as Python sees them: addresses, checked by the caller.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ternary.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = std::uintptr_t;

const gracile::Ternary& ternary_of(const std::string& set) {
#if defined(__x86_64__)
    if (set == "avx512") return gracile::avx512::ternary();
    if (set == "avx2") return gracile::avx2::ternary();
#endif
    if (set == "portable") return gracile::portable::ternary();
    throw std::invalid_argument("no instruction set " + set);
}

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}
const float* floats(Address address) { return at<const float>(address); }
const std::uint32_t* words(Address address) { return at<const std::uint32_t>(address); }

std::vector<const std::uint32_t*> all_words(const std::vector<Address>& addresses) {
    std::vector<const std::uint32_t*> found;
    for (const Address address : addresses) found.push_back(words(address));
    return found;
}

void require_width(int width) {
    if (width < 2 || width > gracile::widest) throw std::invalid_argument("no fields of that many bits");
}

}  // namespace

namespace gracile {

void bind_ternary(nb::module_& m) {
    const auto free = nb::call_guard<nb::gil_scoped_release>();
    m.def("ternary_squares", [](const std::string& set, Address x, std::int64_t count) {
        float largest;
        const double sum = ternary_of(set).squares(floats(x), count, &largest);
        return std::pair<double, double>{sum, largest};
    }, "set"_a, "x"_a, "count"_a, free);
    const auto rounding = [&](const char* name, auto kernel) {
        m.def(name, [kernel](const std::string& set, Address x, std::int64_t count, float scale, std::uint64_t seed,
                             std::uint32_t layer, std::uint32_t step, std::uint32_t lane, std::int64_t first,
                             Address out) {
            (ternary_of(set).*kernel)(floats(x), count, scale, {seed, layer, step, lane}, first,
                                      at<std::uint32_t>(out));
        }, "set"_a, "x"_a, "count"_a, "scale"_a, "seed"_a, "layer"_a, "step"_a, "lane"_a, "first"_a, "out"_a, free);
    };
    rounding("ternary_ternarize", &Ternary::ternarize);
    rounding("ternary_round", &Ternary::round);
    m.def("ternary_add", [](const std::string& set, const std::vector<Address>& messages, std::int64_t blocks, int width,
                            Address out) {
        require_width(width);
        ternary_of(set).add(all_words(messages).data(), static_cast<int>(messages.size()), blocks, width,
                            at<std::uint32_t>(out));
    }, "set"_a, "messages"_a, "blocks"_a, "width"_a, "out"_a, free);
    m.def("ternary_decode", [](const std::string& set, Address in, std::int64_t count, int width, int offset,
                               float factor, Address out) {
        require_width(width);
        ternary_of(set).decode(words(in), count, width, offset, factor, at<float>(out));
    }, "set"_a, "words"_a, "count"_a, "width"_a, "offset"_a, "factor"_a, "out"_a, free);
    m.def("ternary_mean", [](const std::string& set, const std::vector<Address>& messages, std::int64_t count,
                             float factor, Address out) {
        ternary_of(set).mean(all_words(messages).data(), static_cast<int>(messages.size()), count, factor,
                             at<float>(out));
    }, "set"_a, "messages"_a, "count"_a, "factor"_a, "out"_a, free);
    const auto recoding = [&](const char* name, auto kernel) {
        m.def(name, [kernel](const std::string& set, Address in, std::int64_t fives, Address out) {
            (ternary_of(set).*kernel)(words(in), fives, at<std::uint32_t>(out));
        }, "set"_a, "words"_a, "fives"_a, "out"_a, free);
    };
    recoding("ternary_to_base3", &Ternary::to_base3);
    recoding("ternary_from_base3", &Ternary::from_base3);
}

}  // namespace gracile
