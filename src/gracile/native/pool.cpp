// The largest number of each window: first down the rows of a window, whole lines at a time, then across. And the
// mean of whole planes.
#include <algorithm>
#include <limits>

#include "kernel.h"
#include "vector.h"

namespace gracile::GRACILE_SET {
namespace {

// Every s-th number from p on, `lanes` of them; s * lanes floats are readable.
GRACILE_INLINE Vector every(const float* p, int s) {
    if (s == 1) return load_any(p);
    if (s == 2) {
        Vector even, odd;
        split(load_any(p), load_any(p + lanes), &even, &odd);
        return even;
    }
    alignas(64) float all[lanes];
    for (int i = 0; i < lanes; ++i) all[i] = p[i * s];
    return load(all);
}

void pool_plane(const Pool& w, const float* x, float* y) {
    const float least = -std::numeric_limits<float>::infinity();
    // one line as wide as all windows, the padding before and behind it, and what vectors read on
    const int wide = (w.out[1] - 1) * w.stride[1] + w.kernel[1];
    const std::size_t floats = static_cast<std::size_t>(std::max(wide, w.padding[1] + w.size[1])) +
                               static_cast<std::size_t>(lanes) * (w.stride[1] + 1);
    float* const line = scratch(floats);
    std::fill_n(line, floats, least);
    for (int i = 0; i < w.out[0]; ++i, y += w.out[1]) {
        const int top = i * w.stride[0] - w.padding[0];
        const int from = std::max(0, top), until = std::min(w.size[0], top + w.kernel[0]);
        for (int j = 0; j < w.size[1]; j += lanes) {
            const int some = std::min(lanes, w.size[1] - j);
            Vector most = broadcast(least);
            for (int r = from; r < until; ++r) {
                const float* const p = x + static_cast<std::ptrdiff_t>(r) * w.size[1] + j;
                most = maximum(some == lanes ? load_any(p) : load_some(p, between(0, some)), most);
            }
            store_first(line + w.padding[1] + j, most, some);
        }
        for (int j = 0; j < w.out[1]; j += lanes) {
            const float* const p = line + static_cast<std::ptrdiff_t>(j) * w.stride[1];
            Vector most = every(p, w.stride[1]);
            for (int k = 1; k < w.kernel[1]; ++k) most = maximum(every(p + k, w.stride[1]), most);
            store_first(y + j, most, std::min(lanes, w.out[1] - j));
        }
    }
}

}  // namespace

void max_pool(const Pool& window, const float* x, float* y, std::int64_t planes, int threads) {
    struct Call {
        const Pool* window;
        const float* x;
        float* y;
        std::int64_t planes;
        int shares;
    };
    Call call{&window, x, y, planes, static_cast<int>(std::min<std::int64_t>(std::max(1, threads), std::max<std::int64_t>(1, planes)))};
    parallel(call.shares, call.shares, [](void* context, int i) {
        const Call& c = *static_cast<Call*>(context);
        const Pool& w = *c.window;
        const std::ptrdiff_t in = static_cast<std::ptrdiff_t>(w.size[0]) * w.size[1];
        const std::ptrdiff_t out = static_cast<std::ptrdiff_t>(w.out[0]) * w.out[1];
        for (std::int64_t n = c.planes * i / c.shares; n < c.planes * (i + 1) / c.shares; ++n)
            pool_plane(w, c.x + n * in, c.y + n * out);
    }, &call);
}

void mean_planes(const float* x, float* y, std::int64_t planes, std::int64_t pixels) {
    const float each = 1.0f / static_cast<float>(pixels);
    for (std::int64_t n = 0; n < planes; ++n, x += pixels) {
        Vector even = zero(), odd = zero();
        std::int64_t i = 0;
        for (; i + 2 * lanes <= pixels; i += 2 * lanes) {
            even = add(even, load_any(x + i));
            odd = add(odd, load_any(x + i + lanes));
        }
        for (; i < pixels; i += lanes) {
            const auto some = static_cast<int>(std::min<std::int64_t>(lanes, pixels - i));
            even = add(even, some == lanes ? load_any(x + i) : load_some(x + i, between(0, some)));
        }
        alignas(64) float sums[lanes];
        store(sums, add(even, odd));
        float sum = 0.0f;
        for (const float one : sums) sum += one;
        y[n] = sum * each;
    }
}

}  // namespace gracile::GRACILE_SET
