// How a map of pixels lies in vectors, so that a kernel reads it with aligned loads only.
//
// Output x of a row is lane x, of all phases (axis.h). Zeros beyond the edges of a row are not stored: they come
// in when accumulators are shifted.
//
// Narrow rows are folded: rows 0 and rows / folds lie side by side in one vector. Wide rows are cut into
// pieces that overlap by what shifts reach. With a kernel of 1x1 rows mean nothing, and the map is one line.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "axis.h"

namespace gracile::GRACILE_SET {

struct Map {
    Axis down, across;
    bool flat;
    int vectors;                     // in a row
    int folds, period;               // rows side by side, and from lane to lane
    int rows;                        // of vectors, for the output
    int pieces, step, margin;        // of wide rows: how many, outputs in each, lanes before the first
    int left, right;                 // how far accumulators are shifted, at most
    int height;                      // rows of one plane of the input
    Phases phases;
    int pixels;                      // of the output

    explicit Map(const Convolution& c) : down(c, 0), across(c, 1), phases(down, across) {
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
    }

    int floats() const { return static_cast<int>(phases.planes.size()) * height * vectors * lanes; }  // of a channel

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
        for (const int p : phases.planes) {
            const int py = p / across.stride, px = p % across.stride;
            Span spans[lanes];  // the same for every row; more folds than lanes do not fit
            for (int f = 0; f < folds; ++f)
                for (int v = 0; v < vectors; ++v) {  // several folds, or several vectors
                    const int lane = f * period - v * lanes;  // of column `first`
                    const int from = std::max(0, lane - std::min(0, first));
                    const int until = std::min(lanes, lane + std::min(across.columns(px) - first, period_of()));
                    spans[f + v] = {first - lane, from, until, from < until ? between(from, until) : between(0, 0)};
                }
            const auto read = [&](const Span& s, int y) __attribute__((always_inline)) {
                if (y < 0 || y >= down.size || s.from >= s.until) return none;
                const float* const line = x + static_cast<std::ptrdiff_t>(y) * across.size + px;
                const Vector part = across.stride == 1 ? load_some(line + s.column, s.lanes)
                                                       : across.take(line, s.column, s.from, s.until, px);
                *odd = fma(part, none, *odd);
                return part;
            };
            for (int r = 0; r < height; ++r, to += vectors * lanes) {
                const int y = (r + down.low) * down.stride + py;
                if (folds == 1) {
                    for (int v = 0; v < vectors; ++v) store(to + v * lanes, read(spans[v], y));
                } else {
                    Vector row = none;
                    for (int f = 0; f < folds; ++f) row = add(row, read(spans[f], y + f * rows * down.stride));
                    store(to, row);
                }
            }
        }
    }

   private:
    // Lanes of one vector that are read from one row.
    struct Span {
        int column;  // of lane 0
        int from, until;
        Lanes lanes;
    };

    int period_of() const { return folds > 1 ? period : 1 << 30; }
};

}  // namespace gracile::GRACILE_SET
