// Products with a sparse matrix, for any number of inputs.
//
// Sixteen rows with about as many nonzeros stand together, their entries interleaved and filled up to the longest.
// Few inputs are looked up in windows (window.h), or gathered one by one where an instruction set cannot; many
// inputs are transposed, and each entry multiplies vectors of them, with as many sums in the making as rows, so
// that none waits for the one before.
#include <algorithm>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <vector>

#include "aligned.h"
#include "kernel.h"
#include "vector.h"
#include "window.h"

namespace gracile::GRACILE_SET {
namespace {

constexpr int together = 16;
constexpr int near = 256;                      // rows whose results are written together
constexpr int few = 2;                        // inputs for which gathering is faster than transposing
constexpr int several = lanes == 16 ? 5 : 3;  // inputs for which looking up is

GRACILE_INLINE float finished(float sum, const float* add, std::ptrdiff_t at, bool relu_too) {
    if (add) sum += add[at];
    return relu_too && sum < 0.0f ? 0.0f : sum;
}

// sum[16] of one input. Sixteen scalar loads beat the gather instruction by 1.4 on the processors tried.
template <class Index>
GRACILE_INLINE void gather(const Index* at, const float* w, std::int64_t steps, const float* x, float* sum) {
    typedef float Four __attribute__((vector_size(16)));
    Four all[4] = {};
    for (std::int64_t s = 0; s < steps; ++s, at += together, w += together)
        GRACILE_UNROLL
        for (int i = 0; i < 4; ++i) {
            Four weight;
            std::memcpy(&weight, w + 4 * i, sizeof weight);
            all[i] += weight * Four{x[at[4 * i]], x[at[4 * i + 1]], x[at[4 * i + 2]], x[at[4 * i + 3]]};
        }
    std::memcpy(sum, all, sizeof all);
}

// Sums of R rows and V vectors of transposed inputs; where each row's go is told.
template <int R, int V, class Index>
GRACILE_INLINE void multiply_many(const Index* at, const float* w, std::int64_t steps, const float* x,
                                  float* const* sums) {
    constexpr int step = V * lanes;  // from one column to the next
    Vector sum[R * V];
    GRACILE_UNROLL
    for (int i = 0; i < R * V; ++i) sum[i] = zero();
    for (std::int64_t s = 0; s < steps; ++s, at += together, w += together) {
        GRACILE_UNROLL
        for (int r = 0; r < R; ++r) {
            const float* const from = x + static_cast<std::ptrdiff_t>(at[r]) * step;
            const Vector weight = broadcast(w[r]);
            GRACILE_UNROLL
            for (int v = 0; v < V; ++v) sum[r * V + v] = fma(weight, load(from + v * lanes), sum[r * V + v]);
        }
    }
    GRACILE_UNROLL
    for (int i = 0; i < R * V; ++i) store(sums[i / V] + i % V * lanes, sum[i]);
}

template <class Index>
class Rows final : public Kernel {
   public:
    explicit Rows(const Convolution& c) : outputs_(c.outputs), inputs_(c.inputs), relu_(c.relu) {
        std::vector<int> length(outputs_, 0);
        for (int o = 0; o < outputs_; ++o)
            for (int i = 0; i < inputs_; ++i) length[o] += c.weight[static_cast<std::ptrdiff_t>(o) * inputs_ + i] != 0.0f;
        order_.resize(outputs_);
        std::iota(order_.begin(), order_.end(), 0);
        for (int o = 0; o < outputs_; o += near)  // rows of about the same length together, but not far from home
            std::stable_sort(order_.begin() + o, order_.begin() + std::min(outputs_, o + near),
                             [&](int a, int b) { return length[a] > length[b]; });
        sets_ = (outputs_ + together - 1) / together;
        starts_.push_back(0);
        for (int n = 0; n < sets_; ++n) starts_.push_back(starts_.back() + length[order_[n * together]]);
        slots = static_cast<std::size_t>(starts_.back()) * together;
        at_ = aligned<Index>(slots), weights_ = aligned<float>(slots);
        std::fill_n(at_.get(), slots, Index{0});
        std::fill_n(weights_.get(), slots, 0.0f);
        for (int n = 0; n < sets_; ++n)
            for (int r = 0; r < together && n * together + r < outputs_; ++r) {
                const float* row = c.weight + static_cast<std::ptrdiff_t>(order_[n * together + r]) * inputs_;
                std::int64_t slot = starts_[n] * together + r;
                for (int i = 0; i < inputs_; ++i)
                    if (row[i] != 0.0f) {
                        at_.get()[slot] = static_cast<Index>(i), weights_.get()[slot] = row[i];
                        slot += together;
                    }
            }
        if (c.bias) bias_.assign(c.bias, c.bias + outputs_);
        bytes = slots * (sizeof(Index) + sizeof(float)) + order_.size() * sizeof(int) +
                starts_.size() * sizeof(std::int64_t) + bias_.size() * sizeof(float);
        tiling = "rows by sixteen, " + std::to_string(8 * sizeof(Index)) + " bits for a column";
#if defined(GRACILE_LOOK_UP)
        windows_.emplace(c.weight, order_, inputs_);
        if (!windows_->pays()) {
            windows_.reset();
        } else {
            bytes += windows_->bytes();
            tiling += ", windows of " + std::to_string(Windows::reach) + " columns";
        }
#endif
    }

    void unpack(float* weight) const override {
        std::fill_n(weight, static_cast<std::size_t>(outputs_) * inputs_, 0.0f);
        for (int n = 0; n < sets_; ++n)
            for (std::int64_t s = starts_[n]; s < starts_[n + 1]; ++s)
                for (int r = 0; r < together && n * together + r < outputs_; ++r)
                    if (const float w = weights_.get()[s * together + r]; w != 0.0f)
                        weight[static_cast<std::ptrdiff_t>(order_[n * together + r]) * inputs_ + at_.get()[s * together + r]] = w;
    }

    bool run(const float* x, const float* add, float* y, std::int64_t batch, int threads) const override {
        Call call{this, x, add, y, batch, std::min(std::max(1, threads), (outputs_ + near - 1) / near)};
        if (batch && outputs_) parallel(call.shares, call.shares, [](void* context, int i) {
            const Call& c = *static_cast<Call*>(context);
            c.kernel->part(c, i);
        }, &call);
        return any_nan(or_odd(zero(), x, batch * inputs_));
    }

   private:
    struct Call {
        const Rows* kernel;
        const float *x, *add;
        float* y;
        std::int64_t batch;
        int shares;
    };

    void part(const Call& c, int i) const {
        // as many nonzeros for each, not as many rows
        const auto from = [&](int share) {
            const std::int64_t wanted = starts_.back() * share / c.shares;
            const auto found = std::lower_bound(starts_.begin(), starts_.end(), wanted) - starts_.begin();
            return share == c.shares ? outputs_ : std::min(static_cast<int>(found) * together / near * near, outputs_);
        };
        const int first = i ? from(i) : 0, last = from(i + 1);  // rows
        if (c.batch <= (windows() ? 0 : few)) {
            for (std::int64_t b = 0; b < c.batch; ++b)
                for (int n = first / together; n * together < last; ++n) {
                    alignas(64) float sum[together];
                    gather(at_.get() + starts_[n] * together, weights_.get() + starts_[n] * together,
                           starts_[n + 1] - starts_[n], c.x + b * inputs_, sum);
                    for (int r = 0; r < together && n * together + r < outputs_; ++r) {
                        const int o = order_[n * together + r];
                        const std::ptrdiff_t to = b * outputs_ + o;
                        c.y[to] = finished(sum[r] + (bias_.empty() ? 0.0f : bias_[o]), c.add, to, relu_);
                    }
                }
            return;
        }
        constexpr int widest = 16 / lanes > 2 ? 16 / lanes : 2;  // vectors of inputs at a time
        for (std::int64_t b = 0; b < c.batch;) {
#if defined(GRACILE_LOOK_UP)
            if (windows() && c.batch - b <= several) return looked_up(c, b, first, last);
#endif
            const int vectors = static_cast<int>(std::min<std::int64_t>(widest, (c.batch - b + lanes - 1) / lanes));
            const int many = static_cast<int>(std::min<std::int64_t>(c.batch - b, vectors * lanes));
            chunk(c, b, many, vectors, first, last);
            b += many;
        }
    }

    bool windows() const {
#if defined(GRACILE_LOOK_UP)
        return windows_.has_value();
#else
        return false;
#endif
    }

#if defined(GRACILE_LOOK_UP)
    // Inputs from b on.
    void looked_up(const Call& c, std::int64_t b, int first, int last) const {
        float* const x = scratch(static_cast<std::size_t>(inputs_) + Windows::reach);
        std::fill_n(x + inputs_, static_cast<int>(Windows::reach), 0.0f);
        for (; b < c.batch; ++b) {
            std::copy_n(c.x + b * inputs_, inputs_, x);
            for (int at = first; at < last; at += lanes) {
                alignas(64) float sum[lanes];
                windows_->multiply(at / lanes, x, sum);
                for (int r = 0; r < std::min(lanes, outputs_ - at); ++r) {
                    const int o = order_[at + r];
                    const std::ptrdiff_t to = b * outputs_ + o;
                    c.y[to] = finished(sum[r] + (bias_.empty() ? 0.0f : bias_[o]), c.add, to, relu_);
                }
            }
        }
    }
#endif

    void chunk(const Call& c, std::int64_t b, int many, int vectors, int first, int last) const {
        const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(vectors) * lanes;
        float* const x = scratch(static_cast<std::size_t>(inputs_ + near + together) * step);
        float* const sums = x + inputs_ * step;
        transpose(c.x + b * inputs_, x, many, step);
        for (int home = first; home < last; home += near) {
            const int end = std::min(home + near, last);
            for (int n = home / together; n * together < end; ++n) rows(n, home, vectors, x, sums);
            write(c, b, many, step, sums, home, end);
        }
    }

    // The results of `many` inputs from `home` to `end`, whose sums stand row by row.
    void write(const Call& c, std::int64_t b, int many, std::ptrdiff_t step, const float* sums, int home, int end) const {
        for (int o = home; o < end; o += lanes) {
            const int some = std::min(lanes, end - o);
            const Lanes mask = between(0, some);
            const Vector bias = bias_.empty() ? zero() : load_some(bias_.data() + o, mask);
            for (int k = 0; k < many; k += 4) {
                Vector v[4];
                four_columns(sums + (o - home) * step + k, step, v);
                GRACILE_UNROLL
                for (int j = 0; j < 4; ++j) {
                    if (k + j >= many) break;
                    const std::ptrdiff_t to = (b + k + j) * outputs_ + o;
                    Vector sum = gracile::GRACILE_SET::add(v[j], bias);
                    if (c.add) sum = gracile::GRACILE_SET::add(sum, load_some(c.add + to, mask));
                    store_first(c.y + to, relu_ ? relu(sum) : sum, some);
                }
            }
        }
    }

    // The sums of sixteen rows, each row's where it belongs among those around `home`.
    void rows(int n, int home, int vectors, const float* x, float* sums) const {
        const Index* at = at_.get() + starts_[n] * together;
        const float* w = weights_.get() + starts_[n] * together;
        const std::int64_t steps = starts_[n + 1] - starts_[n];
        float* to[together];
        for (int r = 0; r < together; ++r) {  // rows that do not exist go behind all others
            const int o = n * together + r < outputs_ ? order_[n * together + r] - home : near;
            to[r] = sums + static_cast<std::ptrdiff_t>(o) * vectors * lanes;
        }
        constexpr int R1 = accumulators >= 16 ? 16 : 8, R2 = accumulators >= 16 ? 8 : 4;
        constexpr int R4 = accumulators >= 16 ? 4 : 2;
        if (vectors == 1)
            for (int r = 0; r < together; r += R1) multiply_many<R1, 1>(at + r, w + r, steps, x, to + r);
        else if (vectors == 2)
            for (int r = 0; r < together; r += R2) multiply_many<R2, 2>(at + r, w + r, steps, x, to + r);
        else if (vectors == 3)
            for (int r = 0; r < together; r += R4) multiply_many<R4, 3>(at + r, w + r, steps, x, to + r);
        else
            for (int r = 0; r < together; r += R4) multiply_many<R4, 4>(at + r, w + r, steps, x, to + r);
    }
    void transpose(const float* from, float* to, int many, std::ptrdiff_t step) const {
        if (many < step) std::fill_n(to, inputs_ * step, 0.0f);
        for (int i = 0; i < inputs_; i += 16)  // lines of both stay in cache
            for (int k = 0; k < many; ++k)
                for (int j = i; j < std::min(inputs_, i + 16); ++j)
                    to[j * step + k] = from[static_cast<std::ptrdiff_t>(k) * inputs_ + j];
    }

    int outputs_, inputs_, sets_;
    bool relu_;
    std::vector<int> order_;
    std::vector<std::int64_t> starts_;  // of every sixteen rows, in entries of one row
    Aligned<Index> at_;
    Aligned<float> weights_;
    std::vector<float> bias_;
#if defined(GRACILE_LOOK_UP)
    std::optional<Windows> windows_;
#endif
};

// Runs of 16 outputs: the vector runs over outputs, inputs are broadcast, nothing is transposed.
class Runs final : public Kernel {
   public:
    explicit Runs(const Convolution& c) : outputs_(c.outputs), inputs_(c.inputs), relu_(c.relu) {
        sets_ = (outputs_ + together - 1) / together;
        std::vector<float> kept;
        starts_.push_back(0);
        for (int n = 0; n < sets_; ++n) {
            const int first = n * together, last = std::min(outputs_, first + together);
            for (int i = 0; i < inputs_; ++i) {
                bool any = false;
                for (int o = first; o < last; ++o) any |= c.weight[static_cast<std::ptrdiff_t>(o) * inputs_ + i] != 0.0f;
                if (!any) continue;
                at_.push_back(i);
                for (int o = first; o < first + together; ++o)
                    kept.push_back(o < last ? c.weight[static_cast<std::ptrdiff_t>(o) * inputs_ + i] : 0.0f);
            }
            starts_.push_back(static_cast<std::int64_t>(at_.size()));
        }
        at_.shrink_to_fit();
        slots = kept.size();
        weights_ = aligned<float>(slots);
        std::copy(kept.begin(), kept.end(), weights_.get());
        if (c.bias) bias_.assign(c.bias, c.bias + outputs_);
        bytes = slots * sizeof(float) + at_.size() * sizeof(std::int32_t) + starts_.size() * sizeof(std::int64_t) +
                bias_.size() * sizeof(float);
        tiling = "runs of 16 outputs";
    }

    void unpack(float* weight) const override {
        std::fill_n(weight, static_cast<std::size_t>(outputs_) * inputs_, 0.0f);
        for (int n = 0; n < sets_; ++n)
            for (std::int64_t s = starts_[n]; s < starts_[n + 1]; ++s)
                for (int r = 0; r < together && n * together + r < outputs_; ++r)
                    weight[static_cast<std::ptrdiff_t>(n * together + r) * inputs_ + at_[s]] = weights_.get()[s * together + r];
    }

    bool run(const float* x, const float* add, float* y, std::int64_t batch, int threads) const override {
        Call call{this, x, add, y, batch, std::min(std::max(1, threads), sets_)};
        if (batch) parallel(call.shares, call.shares, [](void* context, int i) {
            const Call& c = *static_cast<Call*>(context);
            const int sets = c.kernel->sets_;
            for (int n = sets * i / c.shares; n < sets * (i + 1) / c.shares; ++n) c.kernel->set(c, n);
        }, &call);
        return any_nan(or_odd(zero(), x, batch * inputs_));
    }

   private:
    struct Call {
        const Runs* kernel;
        const float *x, *add;
        float* y;
        std::int64_t batch;
        int shares;
    };
    static constexpr int parts = together / lanes;

    void set(const Call& c, int n) const {
        std::int64_t b = 0;
        for (; b + 4 <= c.batch; b += 4) some<4, 1>(c, n, b);
        for (; b < c.batch; ++b) some<1, (parts > 2 ? 1 : 4)>(c, n, b);
    }

    // P inputs; S sums for each, so that additions of one input do not wait for each other
    template <int P, int S>
    void some(const Call& c, int n, std::int64_t b) const {
        Vector sum[P * S * parts];
        GRACILE_UNROLL
        for (int i = 0; i < P * S * parts; ++i) sum[i] = zero();
        const float* const x = c.x + b * inputs_;
        const auto step = [&](std::int64_t s, int k) __attribute__((always_inline)) {
            const float* const w = weights_.get() + s * together;
            GRACILE_UNROLL
            for (int p = 0; p < P; ++p) {
                const Vector one = broadcast(x[static_cast<std::ptrdiff_t>(p) * inputs_ + at_[s]]);
                GRACILE_UNROLL
                for (int v = 0; v < parts; ++v) {
                    Vector& to = sum[(p * S + k) * parts + v];
                    to = fma(load(w + v * lanes), one, to);
                }
            }
        };
        std::int64_t s = starts_[n];
        for (; s + S <= starts_[n + 1]; s += S) {
            GRACILE_UNROLL
            for (int k = 0; k < S; ++k) step(s + k, k);
        }
        for (; s < starts_[n + 1]; ++s) step(s, 0);
        alignas(64) float all[together];
        for (int p = 0; p < P; ++p) {
            for (int v = 0; v < parts; ++v) {
                Vector whole = sum[p * S * parts + v];
                for (int k = 1; k < S; ++k) whole = gracile::GRACILE_SET::add(whole, sum[(p * S + k) * parts + v]);
                store(all + v * lanes, whole);
            }
            for (int r = 0; r < together && n * together + r < outputs_; ++r) {
                const int o = n * together + r;
                const std::ptrdiff_t to = (b + p) * outputs_ + o;
                c.y[to] = finished(all[r] + (bias_.empty() ? 0.0f : bias_[o]), c.add, to, relu_);
            }
        }
    }

    int outputs_, inputs_, sets_;
    bool relu_;
    std::vector<std::int32_t> at_;
    std::vector<std::int64_t> starts_;
    Aligned<float> weights_;
    std::vector<float> bias_;
};

// 2^n by its bits and a polynomial for the rest: a few 1e-7 of the value, and loops over it become vectors.
GRACILE_INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;  // NaN stays
    const float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const std::int32_t bits = (static_cast<std::int32_t>(n == n ? n : 0.0f) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}
GRACILE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
GRACILE_INLINE float tangent(float x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); }

}  // namespace

std::unique_ptr<Kernel> sparse_matrix(const Convolution& c) {
    if (c.inputs <= 65536) return std::make_unique<Rows<std::uint16_t>>(c);
    return std::make_unique<Rows<std::int32_t>>(c);
}

std::unique_ptr<Kernel> block_matrix(const Convolution& c) { return std::make_unique<Runs>(c); }

// One step of a layer's cells: gates (batch, 4 hidden) in the order i f g o.
void lstm_cells(const float* gates, float* c, float* h, std::int64_t batch, int hidden) {
    for (std::int64_t b = 0; b < batch; ++b) {
        const float* const g = gates + b * 4 * hidden;
        float* const state = c + b * hidden;
        float* const out = h + b * hidden;
        for (int i = 0; i < hidden; ++i) {
            const float next = sigmoid(g[hidden + i]) * state[i] + sigmoid(g[i]) * tangent(g[2 * hidden + i]);
            state[i] = next;
            out[i] = sigmoid(g[3 * hidden + i]) * tangent(next);
        }
    }
}

}  // namespace gracile::GRACILE_SET
