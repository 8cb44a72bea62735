// How a map of pixels lies in vectors, so that a kernel reads it with aligned loads only.
//
// Output x of a row needs input stride * x + kw * dilation - padding. Columns are taken apart by phase
// (column modulo stride), so that this is lane x + shift of one phase: `shift` is the same for all x. Rows
// likewise. Zeros beyond the edges of a row are not stored: they come in when accumulators are shifted.
//
// Narrow rows are folded: rows 0 and rows / folds lie side by side in one vector. Wide rows are cut into
// pieces that overlap by what shifts reach. With a kernel of 1x1 rows mean nothing, and the map is one line.
#pragma once

#include <algorithm>
#include <stdexcept>
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
};

struct Map {
    Axis down, across;
    bool flat;
    int vectors;                     // in a row
    int folds, period;               // rows side by side, and from lane to lane
    int rows;                        // of vectors, for the output
    int pieces, step, margin;        // of wide rows: how many, outputs in each, lanes before the first
    int left, right;                 // how far accumulators are shifted, at most
    int height;                      // rows of one plane of the input
    std::vector<int> planes;         // phases that are read: row phase * stride + column phase
    std::vector<int> plane;          // kernel position -> which of them
    int pixels;                      // of the output

    explicit Map(const Convolution& c) : down(c, 0), across(c, 1) {
        pixels = down.out * across.out;
        flat = c.kernel[0] == 1 && c.kernel[1] == 1 && c.stride[0] == 1 && c.stride[1] == 1 &&
               c.padding[0] == 0 && c.padding[1] == 0;
        folds = pieces = 1;
        margin = left = right = 0;
        if (flat) {
            vectors = 1;
            period = step = lanes;
            rows = (pixels + lanes - 1) / lanes;
        } else {
            right = std::max(0, across.high);
            left = std::max(0, -across.low);
            const int used = std::max((across.size + across.stride - 1) / across.stride, across.out);
            period = step = used;
            rows = down.out;
            if (2 * used <= lanes) {
                vectors = 1;
                rows = (down.out + lanes / used - 1) / (lanes / used);
                folds = (down.out + rows - 1) / rows;
            } else if (used <= wide * lanes) {
                vectors = (used + lanes - 1) / lanes;
            } else {
                vectors = wide;
                margin = left;
                step = vectors * lanes - left - right;
                if (step < lanes) throw std::invalid_argument("a kernel as wide as this has no sparse form");
                pieces = (across.out + step - 1) / step;
            }
        }
        height = rows + down.high - down.low;
        for (int i = 0; i < down.kernel; ++i)
            for (int j = 0; j < across.kernel; ++j) {
                const int p = down.phase[i] * across.stride + across.phase[j];
                auto found = std::find(planes.begin(), planes.end(), p);
                plane.push_back(static_cast<int>(found - planes.begin()));
                if (found == planes.end()) planes.push_back(p);
            }
    }

    int floats() const { return static_cast<int>(planes.size()) * height * vectors * lanes; }  // of a channel

    // Copy one channel into place; what is not finite makes *odd NaN.
    void fill(const float* x, float* to, int piece, Vector* odd) const {
        const Vector none = zero();
        if (flat) {
            const int all = pixels / lanes;
            for (int r = 0; r < all; ++r) {
                const Vector v = load_any(x + r * lanes);
                *odd = fma(v, none, *odd);
                store(to + r * lanes, v);
            }
            if (all < rows) {
                const Vector v = load_some(x + all * lanes, between(0, pixels - all * lanes));
                *odd = fma(v, none, *odd);
                store(to + all * lanes, v);
            }
            return;
        }
        const int first = piece * step - margin;  // column of lane 0
        for (const int p : planes) {
            const int py = p / across.stride, px = p % across.stride;
            const int columns = (across.size - px + across.stride - 1) / across.stride;
            for (int r = 0; r < height; ++r, to += vectors * lanes) {
                Vector row[wide];
                for (int v = 0; v < vectors; ++v) row[v] = none;
                for (int f = 0; f < folds; ++f) {
                    const int y = (f * rows + r + down.low) * down.stride + py;
                    if (y < 0 || y >= down.size) continue;
                    const float* line = x + static_cast<std::ptrdiff_t>(y) * across.size + px;
                    for (int v = 0; v < vectors; ++v) {
                        const int lane = f * period - v * lanes;  // of column `first`
                        const int from = std::max(0, lane - std::min(0, first)),
                                  to_lane = std::min(lanes, lane + std::min(columns - first, period_of()));
                        if (from >= to_lane) continue;
                        const Vector part = take(line, first - lane, from, to_lane, px);
                        row[v] = add(row[v], part);
                        *odd = fma(part, none, *odd);
                    }
                }
                for (int v = 0; v < vectors; ++v) store(to + v * lanes, row[v]);
            }
        }
    }

   private:
    int period_of() const { return folds > 1 ? period : 1 << 30; }

    // Lanes from..to of columns column + lane; `line` starts at the phase.
    Vector take(const float* line, int column, int from, int to, int phase) const {
        if (across.stride == 1) return load_some(line + column, between(from, to));
        if (across.stride == 2) {
            const int at = 2 * column, end = across.size - phase - at;  // the row's end, from there
            const auto some = [&](int skip) {
                const int first = std::max(0, -at - skip), last = std::min(lanes, end - skip);
                return first < last ? load_some(line + at + skip, between(first, last)) : zero();
            };
            Vector even, odd;
            split(some(0), some(lanes), &even, &odd);
            return keep(even, between(from, to));
        }
        alignas(64) float all[lanes] = {};
        for (int i = from; i < to; ++i) all[i] = line[static_cast<std::ptrdiff_t>(column + i) * across.stride];
        return load(all);
    }
};

}  // namespace gracile::GRACILE_SET
