// Direct convolution with runs of 16 output channels left out.
//
// The vector runs over output channels, so a pixel is broadcast and no lane is ever wasted, whatever the size of
// the map. A tile of pixels stays in registers for all nonzero runs of its 16 channels; then it is transposed
// into its planes.
#include <atomic>
#include <cmath>
#include <utility>

#include "aligned.h"
#include "map.h"

namespace gracile::GRACILE_SET {
namespace {

constexpr int together = 16;                          // output channels
constexpr int parts = together / lanes;               // vectors of a run
constexpr int most = accumulators / parts;       // pixels of a tile

struct Tile {
    const float* in;             // the tile's first pixel
    std::ptrdiff_t line;         // floats from row to row of the input
    const std::int32_t* offsets;
    const float* weights;        // 16 for each offset
    int count;
    const float* bias;           // 16 or null
    const float* add;            // the tile's first pixel, or null
    float* y;
    std::ptrdiff_t plane, row;   // floats from channel to channel, from row to row of the output
    int channels;                // at most 16
    bool relu;
};

// Results of `count` pixels that follow each other in the output, 16 channels each, into the channels' planes.
__attribute__((noinline)) void deliver(const Tile& t, const float* from, int count, std::ptrdiff_t at) {
    for (int i = 0; i < count; i += lanes, from += lanes * together) {
        const int some = std::min(lanes, count - i);
        for (int c = 0; c < t.channels; c += 4) {
            Vector b[4];
            four_columns(from + c, together, b);
            GRACILE_UNROLL
            for (int k = 0; k < 4; ++k) {
                if (c + k >= t.channels) break;
                const std::ptrdiff_t to = at + i + (c + k) * t.plane;
                Vector v = b[k];
                if (t.add) v = add(v, load_some(t.add + to, between(0, some)));
                if (t.add && t.relu) v = relu(v);
                store_first(t.y + to, v, some);
            }
        }
    }
}

template <int R, int P>
void tile(const Tile& t) {
    Vector sum[R * P * parts];
    GRACILE_UNROLL
    for (int i = 0; i < R * P * parts; ++i) sum[i] = t.bias ? load_any(t.bias + i % parts * lanes) : zero();
    const float* w = t.weights;
    for (int n = 0; n < t.count; ++n, w += together) {
        const float* const p = t.in + t.offsets[n];
        Vector weight[parts];
        GRACILE_UNROLL
        for (int v = 0; v < parts; ++v) weight[v] = load(w + v * lanes);
        GRACILE_UNROLL
        for (int r = 0; r < R; ++r) {
            const float* const q = p + r * t.line;
            GRACILE_UNROLL
            for (int i = 0; i < P; ++i) {
                const Vector x = broadcast(q[i]);
                GRACILE_UNROLL
                for (int v = 0; v < parts; ++v) {
                    Vector& s = sum[(r * P + i) * parts + v];
                    s = fma(weight[v], x, s);
                }
            }
        }
    }
    // pixels beyond the last are delivered nowhere
    alignas(64) float all[(R * P + lanes) * together];
    const bool now = t.relu && !t.add;
    GRACILE_UNROLL
    for (int i = 0; i < R * P * parts; ++i) store(all + i * lanes, now ? relu(sum[i]) : sum[i]);
    if (t.row == P) return deliver(t, all, R * P, 0);
    for (int r = 0; r < R; ++r) deliver(t, all + r * P * together, P, r * t.row);
}

using Run = void (*)(const Tile&);

template <int R, int... P>
Run pick(int pixels, std::integer_sequence<int, P...>) {
    static constexpr Run table[] = {tile<R, P + 1>...};
    return table[pixels - 1];
}

template <int R>
Run of_pixels(int pixels) {
    return pick<R>(pixels, std::make_integer_sequence<int, most / R>());
}

Run choose(int rows, int pixels) {
    switch (rows) {
        case 1: return of_pixels<1>(pixels);
        case 2: return of_pixels<most >= 2 ? 2 : 1>(pixels);
        default: return of_pixels<most >= 4 ? 4 : 1>(pixels);
    }
}

class Blocks final : public Kernel {
   public:
    explicit Blocks(const Convolution& c)
        : down_(c, 0), across_(c, 1), phases_(down_, across_), groups_(c.groups), inputs_(c.inputs), outputs_(c.outputs / c.groups),
          size_(c.size[0] * c.size[1]), relu_(c.relu) {
        flat_ = c.kernel[0] == 1 && c.kernel[1] == 1 && c.stride[0] == 1 && c.stride[1] == 1 &&
                c.padding[0] == 0 && c.padding[1] == 0;
        rows_ = flat_ ? 1 : down_.out;
        width_ = flat_ ? size_ : across_.out;
        line_ = flat_ ? size_ : across_.out + across_.high - across_.low;
        height_ = flat_ ? 1 : down_.out + down_.high - down_.low;
        blocks_ = (outputs_ + together - 1) / together;
        cut(c);
        pack(c);
        if (!flat_) span();
        bytes = offsets_.size() * sizeof(std::int32_t) + slots * sizeof(float) + starts_.size() * sizeof(std::int64_t) +
                bias_.size() * sizeof(float);
        tiling = "runs of 16 channels, " + std::to_string(tall_) + " x " + std::to_string(broad_) + " pixels";
    }

    bool run(const float* x, const float* add, float* y, std::int64_t batch, int threads) const override {
        const std::int64_t work = batch * groups_;
        const int shares = static_cast<int>(
            std::min<std::int64_t>(blocks_, (threads + work - 1) / std::max<std::int64_t>(1, work)));
        Call call{this, x, add, y, std::max(1, shares), {false}};
        parallel(static_cast<int>(work * call.shares), threads, [](void* context, int i) {
            Call& c = *static_cast<Call*>(context);
            if (c.kernel->part(c, i)) c.odd.store(true, std::memory_order_relaxed);
        }, &call);
        return call.odd.load();
    }
    void unpack(float* weight) const override {
        const int kernel = down_.kernel * across_.kernel;
        std::fill_n(weight, static_cast<std::size_t>(groups_) * outputs_ * inputs_ * kernel, 0.0f);
        for (int g = 0; g < groups_; ++g)
            for (int b = 0; b < blocks_; ++b)
                for (std::int64_t n = starts_[g * blocks_ + b]; n < starts_[g * blocks_ + b + 1]; ++n)
                    for (int k = 0; k < kernel; ++k)
                        if (offset(k) == offsets_[n] % floats())
                            for (int o = b * together; o < std::min(outputs_, (b + 1) * together); ++o)
                                weight[(static_cast<std::ptrdiff_t>(g * outputs_ + o) * inputs_ + offsets_[n] / floats()) *
                                           kernel + k] = weights_.get()[n * together + o % together];
    }

   private:
    struct Call {
        const Blocks* kernel;
        const float *x, *add;
        float* y;
        int shares;
        std::atomic<bool> odd;
    };

    int floats() const { return static_cast<int>(phases_.planes.size()) * height_ * line_; }  // of a channel
    int offset(int k) const {
        if (flat_) return 0;
        const int y = down_.shift[k / across_.kernel] - down_.low, x = across_.shift[k % across_.kernel] - across_.low;
        return (phases_.plane[k] * height_ + y) * line_ + x;
    }

    // The tile that leaves the fewest half-filled ones: each nonzero run costs a load and its pixels.
    void cut(const Convolution& c) {
        double least = 0.0;
        tall_ = 0;
        for (const int rows : {1, 2, 4}) {
            if (rows > most || rows > rows_ || (c.rows && rows != c.rows && c.rows <= 2)) continue;
            for (int pixels = 1; pixels <= std::min(most / rows, width_); ++pixels) {
                const double tiles = ((rows_ + rows - 1) / rows) * std::ceil(static_cast<double>(width_) / pixels);
                const double cost = tiles * (rows * pixels + 2.0 + 0.5 * rows);
                if (!tall_ || cost < least) least = cost, tall_ = rows, broad_ = pixels;
            }
        }
        if (!tall_) tall_ = 1, broad_ = std::min(most, width_);
    }

    void pack(const Convolution& c) {
        const int kernel = down_.kernel * across_.kernel;
        const auto at = [&](int g, int o, int i, int k) {
            return c.weight[(static_cast<std::ptrdiff_t>(g * outputs_ + o) * inputs_ + i) * kernel + k];
        };
        std::vector<float> kept;
        starts_.push_back(0);
        for (int g = 0; g < groups_; ++g)
            for (int b = 0; b < blocks_; ++b) {
                const int first = b * together, last = std::min(outputs_, first + together);
                for (int i = 0; i < inputs_; ++i)
                    for (int k = 0; k < kernel; ++k) {
                        bool any = false;
                        for (int o = first; o < last; ++o) any |= at(g, o, i, k) != 0.0f;
                        if (!any) continue;
                        offsets_.push_back(i * floats() + offset(k));
                        for (int o = first; o < first + together; ++o)
                            kept.push_back(o < last ? at(g, o, i, k) : 0.0f);
                    }
                starts_.push_back(static_cast<std::int64_t>(offsets_.size()));
            }
        offsets_.shrink_to_fit();
        slots = kept.size();
        weights_ = aligned<float>(kept.size());
        std::copy(kept.begin(), kept.end(), weights_.get());
        if (c.bias) {
            bias_.assign(static_cast<std::size_t>(groups_) * blocks_ * together, 0.0f);
            for (int g = 0; g < groups_; ++g)
                std::copy_n(c.bias + g * outputs_, outputs_, bias_.begin() + g * blocks_ * together);
        }
    }

    bool part(const Call& call, int i) const {
        const int share = i % call.shares;
        i /= call.shares;
        const int g = i % groups_;
        const std::int64_t image = i / groups_;
        const float* x = call.x + (image * groups_ + g) * static_cast<std::ptrdiff_t>(inputs_) * size_;
        Vector odd = zero();
        const float* in = x;
        if (flat_) {
            odd = or_odd(odd, x, static_cast<std::ptrdiff_t>(inputs_) * size_);
        } else {
            float* const copy = scratch(static_cast<std::size_t>(inputs_) * floats() + lanes);
            for (int c = 0; c < inputs_; ++c)
                odd = fill(x + static_cast<std::ptrdiff_t>(c) * size_, copy + static_cast<std::ptrdiff_t>(c) * floats(), odd);
            in = copy;
        }
        const std::ptrdiff_t pixels = static_cast<std::ptrdiff_t>(rows_) * width_;
        Tile t;
        t.line = line_, t.plane = pixels, t.row = width_, t.relu = relu_;
        const int begin = blocks_ * share / call.shares, end = blocks_ * (share + 1) / call.shares;
        for (int b = begin; b < end; ++b) {
            const int number = g * blocks_ + b, first = b * together;
            t.offsets = offsets_.data() + starts_[number];
            t.weights = weights_.get() + starts_[number] * together;
            t.count = static_cast<int>(starts_[number + 1] - starts_[number]);
            t.bias = bias_.empty() ? nullptr : bias_.data() + number * together;
            t.channels = std::min(together, outputs_ - first);
            const std::ptrdiff_t out = ((image * groups_ + g) * outputs_ + first) * pixels;
            for (int y = 0, rows; y < rows_; y += rows) {
                rows = tall_;
                while (rows > rows_ - y) rows /= 2;
                for (int p = 0; p < width_; p += broad_) {
                    t.in = in + static_cast<std::ptrdiff_t>(y) * line_ + p;
                    t.y = call.y + out + static_cast<std::ptrdiff_t>(y) * width_ + p;
                    t.add = call.add ? call.add + (t.y - call.y) : nullptr;
                    choose(rows, std::min(broad_, width_ - p))(t);
                }
            }
        }
        return any_nan(odd);
    }

    // One channel with zeros around, columns taken apart by phase. A line is written in whole vectors: what goes
    // over its end is written again by the next.
    Vector fill(const float* x, float* to, Vector odd) const {
        const Span* plane = spans_.data();
        for (const int p : phases_.planes) {
            const int py = p / across_.stride, px = p % across_.stride;
            for (int r = 0; r < height_; ++r, to += line_) {
                const int y = (r + down_.low) * down_.stride + py;
                if (y < 0 || y >= down_.size) {
                    for (int j = 0; j < vectors_; ++j) store_any(to + j * lanes, zero());
                    continue;
                }
                const float* const line = x + static_cast<std::ptrdiff_t>(y) * across_.size + px;
                for (int j = 0; j < vectors_; ++j) {
                    const Span& s = plane[j];
                    const Vector v = across_.stride == 1 ? load_some(line + s.column, s.lanes)
                                                         : across_.take(line, s.column, s.from, s.until, px);
                    odd = or_odd(odd, v);
                    store_any(to + j * lanes, v);
                }
            }
            plane += vectors_;
        }
        return odd;
    }

    // Lanes of one vector that are read from a line.
    struct Span {
        int column;  // of lane 0
        int from, until;
        Lanes lanes;
    };

    void span() {
        vectors_ = (line_ + lanes - 1) / lanes;
        for (const int p : phases_.planes)
            for (int j = 0; j < vectors_; ++j) {
                const int column = j * lanes + across_.low, from = std::max(0, -column);
                const int until = std::min({lanes, across_.columns(p % across_.stride) - column, line_ - j * lanes});
                spans_.push_back({column, from, std::max(from, until), from < until ? between(from, until) : between(0, 0)});
            }
    }

    Axis down_, across_;
    Phases phases_;
    int groups_, inputs_, outputs_, size_;
    bool relu_, flat_;
    int rows_, width_, height_, blocks_, tall_, broad_;
    int line_, vectors_ = 0;  // of the padded map
    std::vector<Span> spans_;  // of every phase and vector of its lines
    std::vector<std::int32_t> offsets_;
    std::vector<std::int64_t> starts_;
    Aligned<float> weights_;
    std::vector<float> bias_;
};

}  // namespace

std::unique_ptr<Kernel> block_convolution(const Convolution& c) { return std::make_unique<Blocks>(c); }

}  // namespace gracile::GRACILE_SET
