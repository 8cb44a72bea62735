// gracile._native: the compiled part of gracile. It never sees torch.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernel.h"

namespace gracile {
void bind_ternary(nanobind::module_& m);
}

namespace nb = nanobind;
using namespace nb::literals;

namespace {

// What this processor can run, in ascending order: every measurement records it.
std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) found.push_back("sse4.2");
    if (__builtin_cpu_supports("avx2")) found.push_back("avx2");
    if (__builtin_cpu_supports("fma")) found.push_back("fma");
    if (__builtin_cpu_supports("avx512f")) found.push_back("avx512f");
    if (__builtin_cpu_supports("avx512vnni")) found.push_back("avx512vnni");
#elif defined(__aarch64__)
    found.push_back("neon");
#endif
    return found;
}

using Pack = std::unique_ptr<gracile::Kernel> (*)(const gracile::Convolution&);
struct Set {
    const char* name;
    Pack sparse, block, matrix, matrix_block;
    void (*cells)(const float*, float*, float*, std::int64_t, int);
    void (*max_pool)(const gracile::Pool&, const float*, float*, std::int64_t, int);
    void (*mean_planes)(const float*, float*, std::int64_t, std::int64_t);
    double (*peak)(std::int64_t);
};

#define GRACILE_SET_OF(set)                                                                           \
    Set {                                                                                             \
        #set, gracile::set::sparse_convolution, gracile::set::block_convolution, gracile::set::sparse_matrix, \
            gracile::set::block_matrix, gracile::set::lstm_cells, gracile::set::max_pool, \
            gracile::set::mean_planes, gracile::set::peak                                         \
    }

// The sets the kernels were compiled for and this processor has, ascending.
std::vector<Set> sets() {
    std::vector<Set> found{GRACILE_SET_OF(portable)};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        found.push_back(GRACILE_SET_OF(avx2));
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
            found.push_back(GRACILE_SET_OF(avx512));
    }
#endif
    return found;
}

const Set set_of(const std::string& name) {
    for (const Set& set : sets())
        if (set.name == name) return set;
    throw std::invalid_argument("this processor has no " + name);
}

using Weight = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Bias = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Two = std::pair<int, int>;

std::unique_ptr<gracile::Kernel> pack(const std::string& set, const std::string& form, const Weight& weight,
                                      const std::optional<Bias>& bias, int groups, Two size, Two stride,
                                      Two padding, Two dilation, bool relu, int rows, int channels) {
    const Set one = set_of(set);
    const auto dim = [&](int d) { return static_cast<int>(weight.shape(d)); };
    gracile::Convolution c{weight.data(), bias ? bias->data() : nullptr, dim(0), dim(1), groups,
                           {size.first, size.second}, {dim(2), dim(3)}, {stride.first, stride.second},
                           {padding.first, padding.second}, {dilation.first, dilation.second}, relu, rows, channels};
    for (int d = 0; d < 2; ++d)
        if (c.stride[d] < 1 || c.dilation[d] < 1 || c.padding[d] < 0 || c.kernel[d] < 1 ||
            c.size[d] + 2 * c.padding[d] < c.dilation[d] * (c.kernel[d] - 1) + 1)
            throw std::invalid_argument("the kernel does not fit the map");
    if (groups < 1 || dim(0) % groups || (bias && static_cast<int>(bias->shape(0)) != dim(0)))
        throw std::invalid_argument("weight, bias and groups do not fit");
    nb::gil_scoped_release free;
    if (form == "sparse") return one.sparse(c);
    if (form == "block") return one.block(c);
    if (form == "matrix") return one.matrix(c);
    if (form == "matrix_block") return one.matrix_block(c);
    throw std::invalid_argument("no form " + form);
}

// All steps of a layer: gates hold W x + b (steps, batch, 4 hidden), to which W h is added in place. The states h and
// c (batch, hidden) end as they are after the last step; y (steps, batch, hidden) gets every h. True if any h that
// a product read was not finite.
bool lstm(const std::string& set, const gracile::Kernel& hidden_product, std::uintptr_t gates, std::uintptr_t h,
          std::uintptr_t c, std::uintptr_t y, std::int64_t steps, std::int64_t batch, int hidden, int threads) {
    const Set one = set_of(set);
    auto* g = reinterpret_cast<float*>(gates);
    auto* out = reinterpret_cast<float*>(y);
    const float* before = reinterpret_cast<const float*>(h);
    bool odd = false;
    for (std::int64_t t = 0; t < steps; ++t, g += batch * 4 * hidden, out += batch * hidden) {
        odd |= hidden_product.run(before, g, g, batch, threads);
        one.cells(g, reinterpret_cast<float*>(c), out, batch, hidden);
        before = out;
    }
    if (steps) std::copy_n(before, batch * hidden, reinterpret_cast<float*>(h));
    return odd;
}

// Windows of planes of one size, for one instruction set.
struct Pooling {
    Set set;
    gracile::Pool window;
    Pooling(const std::string& name, Two size, Two kernel, Two stride, Two padding, Two out)
        : set(set_of(name)),
          window{{size.first, size.second}, {kernel.first, kernel.second}, {stride.first, stride.second},
                 {padding.first, padding.second}, {out.first, out.second}} {
        for (int d = 0; d < 2; ++d)
            if (window.kernel[d] < 1 || window.stride[d] < 1 || window.padding[d] < 0 || window.out[d] < 1 ||
                window.padding[d] >= window.kernel[d] ||
                (window.out[d] - 1) * window.stride[d] >= window.size[d] + window.padding[d])
                throw std::invalid_argument("a window does not meet the map");
    }
};

bool all_finite(std::uintptr_t x, std::int64_t count) {
    const auto* p = reinterpret_cast<const float*>(x);
    float sums[16] = {};
    std::int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 16; ++k) sums[k] += p[i + k] * 0.0f;
    for (; i < count; ++i) sums[0] += p[i] * 0.0f;
    for (int k = 1; k < 16; ++k) sums[0] += sums[k];
    return sums[0] == 0.0f;
}

}  // namespace

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // packed layers live as long as the programs that hold them, maybe to the end
    m.def("instruction_sets", &instruction_sets, "Vector instruction sets of this processor, ascending.");
    m.def("kernel_sets", [] {
        std::vector<std::string> names;
        for (const Set& set : sets()) names.push_back(set.name);
        return names;
    }, "Instruction sets that kernels were compiled for and this processor has, ascending.");
    m.def("peak", [](const std::string& set, std::int64_t steps) { return set_of(set).peak(steps); },
          "set"_a, "steps"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Run steps fused multiply-adds on each accumulator; returns how many floating-point operations that was.");
    nb::class_<gracile::Kernel>(m, "Kernel", "A layer, packed for one size of map and one instruction set.")
        .def_ro("bytes", &gracile::Kernel::bytes)
        .def_ro("slots", &gracile::Kernel::slots)
        .def_ro("tiling", &gracile::Kernel::tiling)
        .def("unpack", [](const gracile::Kernel& kernel, std::uintptr_t weight) {
            kernel.unpack(reinterpret_cast<float*>(weight));
        }, "weight"_a, "Write the weights with their zeros to an address.")
        .def("run", [](const gracile::Kernel& kernel, std::uintptr_t x, std::uintptr_t add, std::uintptr_t y,
                       std::int64_t batch, int threads) {
            return kernel.run(reinterpret_cast<const float*>(x), reinterpret_cast<const float*>(add),
                              reinterpret_cast<float*>(y), batch, threads);
        }, "x"_a, "add"_a, "y"_a, "batch"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>(),
           "Addresses of contiguous floats, checked by the caller; True if x has numbers that are not finite.");
    nb::class_<Pooling>(m, "Pooling", "The largest numbers of windows, for one size of map and one instruction set.")
        .def(nb::init<const std::string&, Two, Two, Two, Two, Two>(), "set"_a, "size"_a, "kernel"_a, "stride"_a,
             "padding"_a, "out"_a)
        .def("run", [](const Pooling& pool, std::uintptr_t x, std::uintptr_t y, std::int64_t planes, int threads) {
            pool.set.max_pool(pool.window, reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), planes,
                              threads);
        }, "x"_a, "y"_a, "planes"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("mean", [](const std::string& set, std::uintptr_t x, std::uintptr_t y, std::int64_t planes, std::int64_t pixels) {
        set_of(set).mean_planes(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), planes, pixels);
    }, "set"_a, "x"_a, "y"_a, "planes"_a, "pixels"_a, nb::call_guard<nb::gil_scoped_release>(),
          "The mean of each plane of contiguous floats; addresses are checked by the caller.");
    gracile::bind_ternary(m);
    m.def("finite", &all_finite, "x"_a, "count"_a, nb::call_guard<nb::gil_scoped_release>(),
          "Whether the floats at an address hold neither NaN nor infinity.");
    m.def("lstm", &lstm, "set"_a, "hidden_product"_a, "gates"_a, "h"_a, "c"_a, "y"_a, "steps"_a, "batch"_a, "hidden"_a,
          "threads"_a, nb::call_guard<nb::gil_scoped_release>());
    m.def("pack", &pack, "set"_a, "form"_a, "weight"_a, "bias"_a.none(), "groups"_a, "size"_a, "stride"_a,
          "padding"_a, "dilation"_a, "relu"_a, "rows"_a, "channels"_a);
}
