// How fast this instruction set can multiply and add at best: what other kernels are measured against.
#include "kernel.h"
#include "vector.h"

namespace gracile::GRACILE_SET {

double peak(std::int64_t steps) {
    constexpr int many = 12;
    Vector sum[many];
    GRACILE_UNROLL
    for (int i = 0; i < many; ++i) sum[i] = broadcast(static_cast<float>(i));
    Vector w = broadcast(0.999999f), b = broadcast(1e-7f);
    for (std::int64_t s = 0; s < steps; ++s) {
        __asm__ volatile("" : "+x"(w), "+x"(b));  // not to be computed in advance
        GRACILE_UNROLL
        for (int i = 0; i < many; ++i) sum[i] = fma(sum[i], w, b);
    }
    GRACILE_UNROLL
    for (int i = 1; i < many; ++i) sum[0] = add(sum[0], sum[i]);
    alignas(64) float all[lanes];
    store(all, sum[0]);
    volatile float kept = all[0];
    (void)kept;
    return 2.0 * many * lanes * static_cast<double>(steps);
}

}  // namespace gracile::GRACILE_SET
