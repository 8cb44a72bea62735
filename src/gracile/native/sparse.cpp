// Direct convolution with single zeros left out, by shifted accumulators.
//
// out[x] = sum over shifts s of (sum of the nonzeros with this shift, w * in[x + s]). The inner sums are made
// with aligned loads at lane x + s; then all accumulators move by one lane. Horner's scheme over the shifts:
// those to the right from the farthest inwards, those to the left likewise, and those in place last. A tile of
// rows stays in registers for all nonzeros of a filter and a block of channels, whose pixels stay in L1.
#include <atomic>
#include <cmath>
#include <utility>

#include "map.h"

namespace gracile::GRACILE_SET {
namespace {

struct Entry {
    std::int32_t offset;  // floats from the tile's first vector
    float value;
};

// What the loop over the filters of one tile and one block of channels needs.
struct Tile {
    const float* in;
    const Entry* entries;
    const std::int32_t* counts;  // left + right + 1 for each filter
    int first, last;             // filters
    int right, left;
    Lanes keep_down, keep_up;
    float* sums;  // of earlier blocks, vectors in a row; null when there is one block
    std::ptrdiff_t sums_step;
    bool begin, end;  // first and last block
    // where results go
    const Map* map;
    int row, piece;
    const float* bias;
    const float* add;
    float* y;
    bool relu;
};

template <int R, int E>
GRACILE_INLINE void accumulate(Vector (&sum)[R * E], const float* in, const Entry* e, int count) {
    const Entry* const end = e + count;
    // An addition takes as long as four can be begun: few accumulators would wait for their own, so there are two sets.
    constexpr bool few = R * E <= 6;
    if constexpr (few) {
        Vector other[R * E];
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) other[i] = zero();
        for (; end - e >= 2; e += 2) {
            const Vector v = broadcast(e[0].value), w = broadcast(e[1].value);
            const float *const p = in + e[0].offset, *const q = in + e[1].offset;
            GRACILE_UNROLL
            for (int i = 0; i < R * E; ++i) {
                sum[i] = fma(v, load(p + i * lanes), sum[i]);
                other[i] = fma(w, load(q + i * lanes), other[i]);
            }
        }
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) sum[i] = add(sum[i], other[i]);
    }
    for (; e != end; ++e) {
        const Vector w = broadcast(e->value);
        const float* const p = in + e->offset;
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) sum[i] = fma(w, load(p + i * lanes), sum[i]);
    }
}

template <int R, int E>
GRACILE_INLINE void finish(const Tile& t, int filter, const Vector (&sum)[R * E]) {
    const Map& m = *t.map;
    const std::ptrdiff_t plane = static_cast<std::ptrdiff_t>(filter) * m.pixels;
    const Vector bias = broadcast(t.bias ? t.bias[filter] : 0.0f);
    const int first = t.row * E * lanes;
    if (m.solid && first + R * E * lanes <= m.pixels) {
        float* const y = t.y + plane + first;
        Vector v[R * E];
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) v[i] = add(sum[i], bias);
        if (t.add) {
            const float* const other = t.add + plane + first;
            GRACILE_UNROLL
            for (int i = 0; i < R * E; ++i) v[i] = add(v[i], load_any(other + i * lanes));
        }
        if (t.relu) {
            GRACILE_UNROLL
            for (int i = 0; i < R * E; ++i) v[i] = relu(v[i]);
        }
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) store_any(y + i * lanes, v[i]);
        return;
    }
    const auto put = [&](std::ptrdiff_t at, int from, int to, Vector v) __attribute__((always_inline)) {
        const Lanes some = between(from, to);
        v = add(v, bias);
        if (t.add) v = add(v, load_some(t.add + plane + at, some));
        store_some(t.y + plane + at, t.relu ? relu(v) : v, some);
    };
    if (m.flat) {
        GRACILE_UNROLL
        for (int r = 0; r < R; ++r) {
            const int at = (t.row + r) * lanes;
            if (at < m.pixels) put(at, 0, std::min(lanes, m.pixels - at), sum[r * E]);
        }
        return;
    }
    if (m.folds > 1) {
        for (int f = 0; f < m.folds; ++f) {
            GRACILE_UNROLL
            for (int r = 0; r < R; ++r) {
                const int y = f * m.rows + t.row + r, lane = f * m.period;
                if (t.row + r < m.rows && y < m.down.out)
                    put(static_cast<std::ptrdiff_t>(y) * m.across.out - lane, lane, lane + m.across.out,
                        sum[r * E]);
            }
        }
        return;
    }
    const int x = t.piece * m.step, count = std::min(m.step, m.across.out - x);
    GRACILE_UNROLL
    for (int r = 0; r < R; ++r) {
        if (t.row + r >= m.rows) break;
        const std::ptrdiff_t line = static_cast<std::ptrdiff_t>(t.row + r) * m.across.out + x - m.margin;
        GRACILE_UNROLL
        for (int v = 0; v < E; ++v) {
            const int from = std::max(0, m.margin - v * lanes);
            const int to = std::min(lanes, m.margin + count - v * lanes);
            if (from < to) put(line + v * lanes, from, to, sum[r * E + v]);
        }
    }
}

template <int R, int E>
void filters(const Tile& t) {
    const Entry* e = t.entries;
    const std::int32_t* count = t.counts;
    const int groups = t.right + t.left + 1;
    for (int filter = t.first; filter < t.last; ++filter, count += groups) {
        Vector sum[R * E];
        GRACILE_UNROLL
        for (int i = 0; i < R * E; ++i) sum[i] = zero();
        bool any = false;
        for (int s = 0; s < t.right; ++s) {
            if (count[s]) accumulate<R, E>(sum, t.in, e, count[s]), e += count[s], any = true;
            if (!any) continue;
            GRACILE_UNROLL
            for (int r = 0; r < R; ++r) {
                GRACILE_UNROLL
                for (int v = 0; v < E; ++v) {
                    const Vector next = v + 1 < E ? sum[r * E + (v + 1 < E ? v + 1 : v)] : zero();
                    sum[r * E + v] = shift_down(sum[r * E + v], next, t.keep_down);
                }
            }
        }
        alignas(64) float kept[R * E * lanes];
        const std::int32_t* const to_left = count + t.right;
        bool more = false;
        for (int s = 0; s < t.left; ++s) more |= to_left[s] != 0;
        if (more) {
            if (any) {
                GRACILE_UNROLL
                for (int i = 0; i < R * E; ++i) store(kept + i * lanes, sum[i]), sum[i] = zero();
            }
            for (int s = 0; s < t.left; ++s) {
                accumulate<R, E>(sum, t.in, e, to_left[s]), e += to_left[s];
                GRACILE_UNROLL
                for (int r = 0; r < R; ++r) {
                    GRACILE_UNROLL
                    for (int v = E - 1; v >= 0; --v) {
                        const Vector previous = v ? sum[r * E + (v ? v - 1 : 0)] : zero();
                        sum[r * E + v] = shift_up(sum[r * E + v], previous, t.keep_up);
                    }
                }
            }
            if (any) {
                GRACILE_UNROLL
                for (int i = 0; i < R * E; ++i) sum[i] = add(sum[i], load(kept + i * lanes));
            }
        }
        const int here = count[t.right + t.left];
        accumulate<R, E>(sum, t.in, e, here), e += here;
        float* const sums = t.sums + (filter - t.first) * t.sums_step;
        if (!t.begin) {
            GRACILE_UNROLL
            for (int i = 0; i < R * E; ++i) sum[i] = add(sum[i], load(sums + i * lanes));
        }
        if (t.end) {
            finish<R, E>(t, filter, sum);
        } else {
            GRACILE_UNROLL
            for (int i = 0; i < R * E; ++i) store(sums + i * lanes, sum[i]);
        }
    }
}

using Filters = void (*)(const Tile&);

template <int E, int... R>
Filters pick(int rows, std::integer_sequence<int, R...>) {
    static constexpr Filters table[] = {filters<R + 1, E>...};
    return table[rows - 1];
}

template <int E>
Filters of_rows(int rows) {
    return pick<E>(rows, std::make_integer_sequence<int, accumulators / E>());
}

Filters choose(int rows, int vectors) {
    switch (vectors) {
        case 1: return of_rows<1>(rows);
        case 2: return of_rows<2>(rows);
        case 3: return of_rows<3>(rows);
        default: return of_rows<4>(rows);
    }
}

class Sparse final : public Kernel {
   public:
    explicit Sparse(const Convolution& c) : map_(c), groups_(c.groups), inputs_(c.inputs), relu_(c.relu) {
        outputs_ = c.outputs / c.groups;
        size_ = c.size[0] * c.size[1];
        cut(c);
        pack(c);
        if (c.bias) bias_.assign(c.bias, c.bias + c.outputs);
        bytes = entries_.size() * sizeof(Entry) + counts_.size() * sizeof(std::int32_t) +
                starts_.size() * sizeof(std::int64_t) + bias_.size() * sizeof(float);
        slots = entries_.size();
        tiling = std::to_string(tall_) + " rows of " + std::to_string(map_.vectors) + " vectors, " +
                 std::to_string(channels_) + " channels at a time" +
                 (map_.folds > 1 ? ", " + std::to_string(map_.folds) + " rows in a vector" : "");
    }

    bool run(const float* x, const float* add, float* y, std::int64_t batch, int threads) const override {
        const std::int64_t work = batch * groups_ * map_.pieces;
        // Filters are shared out only when there is nothing else: each thread copies all pixels it reads.
        const int parts = static_cast<int>(
            std::min<std::int64_t>(std::max(1, outputs_), (threads + work - 1) / std::max<std::int64_t>(1, work)));
        Call call{this, x, add, y, parts, {false}};
        parallel(static_cast<int>(work * parts), threads, [](void* context, int i) {
            Call& c = *static_cast<Call*>(context);
            if (c.kernel->part(c, i)) c.odd.store(true, std::memory_order_relaxed);
        }, &call);
        return call.odd.load();
    }

    void unpack(float* weight) const override {
        const int kernel = static_cast<int>(map_.phases.plane.size());
        std::fill_n(weight, static_cast<std::size_t>(groups_) * outputs_ * inputs_ * kernel, 0.0f);
        const Entry* e = entries_.data();
        const std::int32_t* count = counts_.data();
        for (int g = 0; g < groups_; ++g)
            for (int b = 0; b < blocks_; ++b)
                for (int o = 0; o < outputs_; ++o)
                    for (int s = 0; s < map_.right + map_.left + 1; ++s, ++count)
                        for (const Entry* const end = e + *count; e != end; ++e)
                            for (int k = 0; k < kernel; ++k)
                                if (segment(k) == s && offset(k) == e->offset % map_.floats())
                                    weight[(static_cast<std::ptrdiff_t>(g * outputs_ + o) * inputs_ + b * channels_ +
                                            e->offset / map_.floats()) * kernel + k] = e->value;
    }

   private:
    // Where a kernel position's nonzeros stand among the shifts, and its pixels in a channel.
    int segment(int k) const {
        const int s = map_.across.shift[k % map_.across.kernel];
        return s > 0 ? map_.right - s : s < 0 ? map_.right + map_.left + s : map_.right + map_.left;
    }
    int offset(int k) const {
        const int down = map_.down.shift[k / map_.across.kernel] - map_.down.low;
        return (map_.phases.plane[k] * map_.height + down) * map_.vectors * lanes;
    }

    struct Call {
        const Sparse* kernel;
        const float *x, *add;
        float* y;
        int parts;
        std::atomic<bool> odd;
    };

    // Rows of a tile and channels of a block that a model of the inner loop takes for fastest. In steps of one
    // vector: each nonzero costs a broadcast and its accumulators, slower the farther the pixels outgrow L1; each
    // filter, block and tile costs shifts, sums and a branch that is not foreseen. Fitted on two processors; it
    // orders the choices, no more.
    void cut(const Convolution& c) {
        const int kernel = map_.down.kernel * map_.across.kernel, most = accumulators / map_.vectors;
        std::size_t nonzeros = 0;
        const std::size_t all = static_cast<std::size_t>(c.outputs) * c.inputs * kernel;
        for (std::size_t i = 0; i < all; ++i) nonzeros += c.weight[i] != 0.0f;
        const double density = all ? static_cast<double>(nonzeros) / static_cast<double>(all) : 0.0;
        const int shifts = map_.left + map_.right + (map_.left && map_.right ? 2 : 0);
        double least = 0.0;
        tall_ = channels_ = 0;
        for (int tiles = 1; tiles <= map_.rows; ++tiles) {
            const int tall = c.rows ? std::min(c.rows, most) : (map_.rows + tiles - 1) / tiles;
            if (tall > most) continue;
            for (int blocks = 1; blocks <= std::max(1, c.inputs); blocks += 1 + blocks / 4) {
                const int channels = c.channels ? std::min(c.channels, c.inputs) : (c.inputs + blocks - 1) / blocks;
                const double many = (c.inputs + channels - 1) / channels, vectors = tall * map_.vectors;
                const double bytes = 4.0 * lanes * map_.vectors * static_cast<double>(map_.phases.planes.size()) * channels *
                                     std::min(map_.height, tall + map_.down.high - map_.down.low);
                double load = 1.0 + (bytes > fast_bytes ? 0.3 * std::log2(bytes / fast_bytes) : 0.0);
                if (vectors > 20) load *= 1.15;
                const double each = density * channels * kernel * (vectors * load + 1.5) + 25.0 +
                                    vectors * (shifts + (many > 1 ? 2.5 : 1.5));
                const double cost = each * many * ((map_.rows + tall - 1) / tall);
                if (!tall_ || cost < least) least = cost, tall_ = tall, channels_ = channels;
                if (c.channels) break;
            }
            if (c.rows || tall == 1) break;
        }
        tiles_ = (map_.rows + tall_ - 1) / tall_;
        blocks_ = (c.inputs + channels_ - 1) / channels_;
    }

    void pack(const Convolution& c) {
        const int kernel = map_.down.kernel * map_.across.kernel, shifts = map_.right + map_.left + 1;
        std::vector<std::vector<Entry>> of(shifts);
        starts_.push_back(0);
        for (int g = 0; g < groups_; ++g)
            for (int b = 0; b < blocks_; ++b)
                for (int o = 0; o < outputs_; ++o) {
                    for (auto& some : of) some.clear();
                    const float* w = c.weight + static_cast<std::ptrdiff_t>(g * outputs_ + o) * inputs_ * kernel;
                    for (int i = b * channels_; i < std::min(inputs_, (b + 1) * channels_); ++i)
                        for (int k = 0; k < kernel; ++k) {
                            const float value = w[static_cast<std::ptrdiff_t>(i) * kernel + k];
                            if (value == 0.0f) continue;
                            of[segment(k)].push_back({(i - b * channels_) * map_.floats() + offset(k), value});
                        }
                    for (const auto& some : of) {
                        counts_.push_back(static_cast<std::int32_t>(some.size()));
                        entries_.insert(entries_.end(), some.begin(), some.end());
                    }
                    starts_.push_back(static_cast<std::int64_t>(entries_.size()));
                }
        entries_.shrink_to_fit();
        counts_.shrink_to_fit();
    }

    bool part(const Call& call, int i) const {
        const int p = i % call.parts;
        i /= call.parts;
        const int piece = i % map_.pieces;
        i /= map_.pieces;
        const int g = i % groups_;
        const std::int64_t image = i / groups_;
        const int first = static_cast<int>(static_cast<std::int64_t>(outputs_) * p / call.parts);
        const int last = static_cast<int>(static_cast<std::int64_t>(outputs_) * (p + 1) / call.parts);
        const int shifts = map_.right + map_.left + 1;
        const std::size_t block = static_cast<std::size_t>(channels_) * map_.floats();
        const std::size_t ahead = static_cast<std::size_t>(accumulators) * lanes;  // the last tile may read on
        const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(tiles_) * tall_ * map_.vectors * lanes;
        float* const in = scratch(block + ahead + (blocks_ > 1 ? (last - first) * step : 0));
        const std::ptrdiff_t at = (image * groups_ + g) * static_cast<std::ptrdiff_t>(outputs_) * map_.pixels;
        const float* x = call.x + (image * groups_ + g) * static_cast<std::ptrdiff_t>(inputs_) * size_;
        Tile t;
        t.right = map_.right, t.left = map_.left;
        const std::uint32_t ends = fold_ends();
        t.keep_down = bits(~ends), t.keep_up = bits(~(ends << 1));
        t.map = &map_, t.piece = piece, t.relu = relu_;
        t.first = first, t.last = last, t.sums_step = step;
        t.bias = bias_.empty() ? nullptr : bias_.data() + g * outputs_;
        t.add = call.add ? call.add + at : nullptr;
        t.y = call.y + at;
        Vector odd = zero();
        for (int b = 0; b < blocks_; ++b) {
            const int from = b * channels_, to = std::min(inputs_, from + channels_);
            for (int c = from; c < to; ++c)
                odd = map_.fill(x + static_cast<std::ptrdiff_t>(c) * size_,
                                in + static_cast<std::ptrdiff_t>(c - from) * map_.floats(), piece, odd);
            const std::int64_t row = (static_cast<std::int64_t>(g) * blocks_ + b) * outputs_ + first;
            t.entries = entries_.data() + starts_[row];
            t.counts = counts_.data() + row * shifts;
            t.begin = b == 0, t.end = b == blocks_ - 1;
            for (int n = 0; n < tiles_; ++n) {
                t.row = n * tall_;
                t.in = in + static_cast<std::ptrdiff_t>(t.row) * map_.vectors * lanes;
                t.sums = in + block + ahead + static_cast<std::ptrdiff_t>(t.row) * map_.vectors * lanes;
                choose(std::min(tall_, map_.rows - t.row), map_.vectors)(t);
            }
        }
        return any_nan(odd);
    }

    std::uint32_t fold_ends() const {
        std::uint32_t ends = 0;
        if (map_.folds > 1)
            for (int f = 1; f <= map_.folds; ++f) ends |= 1u << (f * map_.period - 1);
        return ends;
    }

    static constexpr double fast_bytes = 32 * 1024;  // of L1, at least

    Map map_;
    int groups_, inputs_, outputs_, size_;
    bool relu_;
    int tall_, tiles_, channels_, blocks_;
    std::vector<Entry> entries_;
    std::vector<std::int32_t> counts_;
    std::vector<std::int64_t> starts_;
    std::vector<float> bias_;
};

}  // namespace

std::unique_ptr<Kernel> sparse_convolution(const Convolution& c) { return std::make_unique<Sparse>(c); }

}  // namespace gracile::GRACILE_SET
