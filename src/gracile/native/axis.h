// One direction of a convolution, and what its stride does to it.
//
// Output x needs input stride * x + kw * dilation - padding. Columns are taken apart by phase (column modulo
// stride), so that this is number x + shift of one phase: `shift` is the same for all x. Rows likewise.
#pragma once

#include <algorithm>
#include <vector>

#include "kernel.h"
#include "vector.h"

namespace gracile::GRACILE_SET {

struct Axis {
    int size, kernel, stride, out, low, high;
    std::vector<int> shift, phase;  // of every kernel position
    Axis(const Convolution& c, int d)
        : size(c.size[d]), kernel(c.kernel[d]), stride(c.stride[d]), low(0), high(0) {
        out = (size + 2 * c.padding[d] - c.dilation[d] * (kernel - 1) - 1) / stride + 1;
        for (int k = 0; k < kernel; ++k) {
            const int at = k * c.dilation[d] - c.padding[d];
            const int p = ((at % stride) + stride) % stride;
            phase.push_back(p);
            shift.push_back((at - p) / stride);
            low = k ? std::min(low, shift[k]) : shift[k];
            high = k ? std::max(high, shift[k]) : shift[k];
        }
    }

    // Columns that a phase has.
    int columns(int of_phase) const { return (size - of_phase + stride - 1) / stride; }

    // Lanes from..to of columns column + lane; `line` starts at the phase.
    Vector take(const float* line, int column, int from, int to, int of_phase) const {
        if (stride == 1) return load_some(line + column, between(from, to));
        if (stride == 2) {
            const int at = 2 * column, end = size - of_phase - at;  // the row's end, from there
            const auto some = [&](int skip) {
                const int first = std::max(0, -at - skip), last = std::min(lanes, end - skip);
                return first < last ? load_some(line + at + skip, between(first, last)) : zero();
            };
            Vector even, odd;
            split(some(0), some(lanes), &even, &odd);
            return keep(even, between(from, to));
        }
        alignas(64) float all[lanes] = {};
        for (int i = from; i < to; ++i) all[i] = line[static_cast<std::ptrdiff_t>(column + i) * stride];
        return load(all);
    }
};

struct Phases {
    std::vector<int> planes;  // that are read: row phase * stride + column phase
    std::vector<int> plane;   // kernel position -> which of them

    Phases(const Axis& down, const Axis& across) {
        for (int i = 0; i < down.kernel; ++i)
            for (int j = 0; j < across.kernel; ++j) {
                const int p = down.phase[i] * across.stride + across.phase[j];
                auto found = std::find(planes.begin(), planes.end(), p);
                plane.push_back(static_cast<int>(found - planes.begin()));
                if (found == planes.end()) planes.push_back(p);
            }
    }
};

}  // namespace gracile::GRACILE_SET
