// A sparse matrix times one input, by looking up numbers in registers.
//
// A step takes one nonzero from each of `lanes` rows. Their columns lie in a window of two vectors of the input, so
// that one permutation fetches what a gather would load one by one. Rows go through their columns in order and at
// their own pace: the window stands where the row stands that is farthest behind, and a row that is ahead of it
// waits, with a weight of zero.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aligned.h"
#include "vector.h"

namespace gracile::GRACILE_SET {

#if defined(GRACILE_LOOK_UP)

class Windows {
   public:
    static constexpr int reach = 2 * lanes;  // columns of a window
    static constexpr int grid = 8;           // windows begin at multiples: fewer loads cross a line of the cache

    // Rows in this order, `lanes` at a time; (outputs, inputs) weights.
    Windows(const float* weight, const std::vector<int>& order, int inputs) {
        std::size_t nonzeros = 0, slots = 0;
        // counted first, so that packing takes no more memory than what is packed
        for (const bool counting : {true, false}) {
            if (!counting) {
                at_ = aligned<std::uint8_t>(slots), weights_ = aligned<float>(slots);
                bases_.reserve(slots / lanes);
                starts_.push_back(0);
            }
            std::size_t slot = 0;
            for (std::size_t first = 0; first < order.size(); first += lanes) {
                const int rows = static_cast<int>(std::min<std::size_t>(lanes, order.size() - first));
                std::vector<std::vector<int>> columns(lanes);
                for (int r = 0; r < rows; ++r) {
                    const float* const row = weight + static_cast<std::ptrdiff_t>(order[first + r]) * inputs;
                    for (int i = inputs - 1; i >= 0; --i)
                        if (row[i] != 0.0f) columns[r].push_back(i);  // the next one stands last
                    if (counting) nonzeros += columns[r].size();
                }
                for (;; slot += lanes) {
                    int next = inputs;
                    for (const auto& some : columns) next = some.empty() ? next : std::min(next, some.back());
                    if (next == inputs) break;
                    const int base = next / grid * grid;
                    if (!counting) bases_.push_back(base);
                    for (int r = 0; r < lanes; ++r) {
                        const bool takes = !columns[r].empty() && columns[r].back() < base + reach;
                        if (!counting) {
                            at_.get()[slot + r] = static_cast<std::uint8_t>(takes ? columns[r].back() - base : 0);
                            weights_.get()[slot + r] =
                                takes ? weight[static_cast<std::ptrdiff_t>(order[first + r]) * inputs + columns[r].back()] : 0.0f;
                        }
                        if (takes) columns[r].pop_back();
                    }
                }
                if (!counting) starts_.push_back(static_cast<std::int64_t>(bases_.size()));
            }
            slots = slot;
        }
        filled_ = slots ? static_cast<double>(nonzeros) / static_cast<double>(slots) : 0.0;
        bytes_ = slots * (sizeof(float) + 1) + bases_.size() * sizeof(std::int32_t) +
                 starts_.size() * sizeof(std::int64_t);
    }

    // Where rows are so empty that most of them wait, loading one by one is faster.
    bool pays() const { return filled_ > (lanes == 16 ? 0.35 : 0.4); }
    std::size_t bytes() const { return bytes_; }

    // sum[lanes] of one set of rows; x must be readable up to `reach` floats past its end.
    GRACILE_INLINE void multiply(int set, const float* x, float* sum) const {
        Vector even = zero(), odd = zero();
        const std::int64_t end = starts_[set + 1];
        std::int64_t s = starts_[set];
        for (; s + 2 <= end; s += 2) even = step(s, x, even), odd = step(s + 1, x, odd);
        if (s < end) even = step(s, x, even);
        store(sum, add(even, odd));
    }

   private:
    GRACILE_INLINE Vector step(std::int64_t s, const float* x, Vector sum) const {
        const float* const from = x + bases_[s];
        const Vector found = look_up(load_any(from), load_any(from + lanes), at_.get() + s * lanes);
        return fma(found, load(weights_.get() + s * lanes), sum);
    }

    std::vector<std::int64_t> starts_;  // of every set, in steps
    std::vector<std::int32_t> bases_;   // first column of a step's window
    Aligned<std::uint8_t> at_;
    Aligned<float> weights_;
    double filled_ = 0.0;
    std::size_t bytes_ = 0;
};

#endif

}  // namespace gracile::GRACILE_SET
