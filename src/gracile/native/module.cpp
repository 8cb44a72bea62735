// gracile._native: the compiled part of gracile. It never sees torch.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

namespace nb = nanobind;

// What this processor can run, in ascending order: kernels are dispatched by
// it and every measurement records it.
static std::vector<std::string> instruction_sets() {
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

NB_MODULE(_native, m) {
    m.def("instruction_sets", &instruction_sets,
          "Vector instruction sets of this processor, ascending.");
}
