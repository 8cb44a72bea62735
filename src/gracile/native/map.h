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
    bool solid;                      // outputs lie one after the other, as in the map itself
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
        solid = flat || (folds == 1 && pieces == 1 && across.out == vectors * lanes);
        height = rows + down.high - down.low;
        if (!flat) span();
    }

    int floats() const { return static_cast<int>(phases.planes.size()) * height * vectors * lanes; }  // of a channel

    // Copy one channel into place; returns odd, with NaN if there is what is not finite.
    Vector fill(const float* x, float* to, int piece, Vector odd) const {
        if (flat) {
            const int all = pixels / lanes;
            for (int r = 0; r < all; ++r) {
                const Vector v = load_any(x + r * lanes);
                odd = or_odd(odd, v);
                store(to + r * lanes, v);
            }
            if (all < rows) {
                const Vector v = load_some(x + all * lanes, between(0, pixels - all * lanes));
                odd = or_odd(odd, v);
                store(to + all * lanes, v);
            }
            return odd;
        }
        const Span* span = spans.data() + piece * abreast();
        for (const int p : phases.planes) {
            const int py = p / across.stride, px = p % across.stride;
            for (int f = 0; f < folds; ++f) {
                const int above = down.low + f * rows;  // row of the map, in its phase, that row 0 here is
                const int from = std::min(height, std::max(0, -above));
                const int until = std::max(from, std::min(height, down.columns(py) - above));
                if (!f) clear(to, from), clear(to + static_cast<std::ptrdiff_t>(until) * vectors * lanes, height - until);
                const float* line = x + (static_cast<std::ptrdiff_t>(from + above) * down.stride + py) * across.size + px;
                if (folds == 1 && across.stride == 1 && down.stride == 1 && across.size == vectors * lanes) {
                    float* const at = to + static_cast<std::ptrdiff_t>(from) * across.size;
                    for (int i = 0; i < (until - from) * across.size; i += lanes) {
                        const Vector part = load_any(line + i);
                        odd = or_odd(odd, part);
                        store(at + i, part);
                    }
                    continue;
                }
                for (int r = from; r < until; ++r, line += static_cast<std::ptrdiff_t>(down.stride) * across.size)
                    for (int v = 0; v < vectors; ++v) {
                        const Span& s = span[f + v];  // several folds, or several vectors
                        const Vector part = across.stride == 1 ? load_some(line + s.column, s.lanes)
                                                               : across.take(line, s.column, s.from, s.until, px);
                        float* const at = to + (static_cast<std::ptrdiff_t>(r) * vectors + v) * lanes;
                        odd = or_odd(odd, part);
                        store(at, f ? add(load(at), part) : part);
                    }
            }
            span += pieces * abreast(), to += static_cast<std::ptrdiff_t>(height) * vectors * lanes;
        }
        return odd;
    }

   private:
    // Lanes of one vector that are read from one row.
    struct Span {
        int column;  // of lane 0
        int from, until;
        Lanes lanes;
    };

    int abreast() const { return std::max(folds, vectors); }

    void clear(float* to, int count) const {
        for (int i = 0; i < count * vectors; ++i) store(to + i * lanes, zero());
    }

    // Of every phase and piece.
    void span() {
        const int most = folds > 1 ? period : 1 << 30;  // lanes that one row fills
        for (const int p : phases.planes)
            for (int piece = 0; piece < pieces; ++piece) {
                const int first = piece * step - margin;  // column of lane 0
                for (int i = 0; i < abreast(); ++i) {
                    const int lane = folds > 1 ? i * period : -i * lanes;  // of column `first`
                    const int from = std::max(0, lane - std::min(0, first));
                    const int until = std::min(lanes, lane + std::min(across.columns(p % across.stride) - first, most));
                    spans.push_back({first - lane, from, std::max(from, until), between(from, std::max(from, until))});
                }
            }
    }

    std::vector<Span> spans;
};

}  // namespace gracile::GRACILE_SET
