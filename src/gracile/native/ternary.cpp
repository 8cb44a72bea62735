// Ternary numbers: see ternary.h for how they lie in memory. Every function is a loop over columns of blocks, `lanes`
// of them at a time; multiplications and additions are kept apart (-ffp-contract=off), so that all instruction sets
// and the twin on torch give the same bits.
#include "ternary.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "vector.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gracile::GRACILE_SET {
namespace {

constexpr int bytes = lanes * 4;
typedef std::uint32_t Words __attribute__((vector_size(bytes)));
typedef std::int32_t Signed __attribute__((vector_size(bytes)));
typedef std::uint64_t Wide __attribute__((vector_size(bytes)));  // every second column, in the lower half of a lane
typedef float Floats __attribute__((vector_size(bytes)));

template <class V, class T>
GRACILE_INLINE V read(const T* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class T>
GRACILE_INLINE void write(T* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
GRACILE_INLINE Words all(std::uint32_t x) { return x - Words{}; }
GRACILE_INLINE Floats every(float x) { return x - Floats{}; }
GRACILE_INLINE Floats magnitude(Floats x) { return (Floats)((Words)x & all(0x7fffffffu)); }

GRACILE_INLINE Wide product(Wide a, std::uint32_t b) {  // of the lower halves
#if defined(GRACILE_AVX512)
    return (Wide)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(GRACILE_AVX2)
    return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__x86_64__)
    return (Wide)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xffffffffu) * static_cast<std::uint64_t>(b);
#endif
}

// digit + 1 where u < x, digit - 1 where x < -u; NaN changes nothing.
GRACILE_INLINE Words step_by(Words digits, Floats u, Floats x, const Words& one) {
#if defined(GRACILE_AVX512)
    const __m512i bit = (__m512i)one;
    const __m512 minus = _mm512_xor_ps((__m512)x, _mm512_set1_ps(-0.0f));
    __m512i sum = _mm512_mask_add_epi32((__m512i)digits, _mm512_cmp_ps_mask((__m512)u, (__m512)x, _CMP_LT_OQ),
                                        (__m512i)digits, bit);
    sum = _mm512_mask_sub_epi32(sum, _mm512_cmp_ps_mask((__m512)u, minus, _CMP_LT_OQ), sum, bit);
    __asm__("" : "+v"(sum));  // one row after the other: there are few mask registers
    return (Words)sum;
#else
    return digits + ((Words)(u < x) & one) - ((Words)(u < -x) & one);
#endif
}

// What stays the same in a call, in whole vectors: read from memory they cost nothing beside the arithmetic.
struct Stream {
    Wide layer, step, lane, key[drawing_rounds][2];
    Words column, bit[16];
    explicit Stream(const Random& random) {
        layer = random.layer - Wide{}, step = random.step - Wide{}, lane = random.lane - Wide{};
        std::uint32_t keys[2] = {static_cast<std::uint32_t>(random.seed),
                                 static_cast<std::uint32_t>(random.seed >> 32)};
        for (int i = 0; i < drawing_rounds; ++i, keys[0] += 0x9E3779B9u, keys[1] += 0xBB67AE85u)
            for (int k = 0; k < 2; ++k) key[i][k] = static_cast<std::uint64_t>(keys[k]) - Wide{};
        for (int i = 0; i < lanes; ++i) column[i] = static_cast<std::uint32_t>(i);
        for (int i = 0; i < 16; ++i) bit[i] = all(1u << (2 * i));
    }
};

// Four words of 32 random bits for each of the columns that start at `index`.
struct Four {
    Words word[4];
};
GRACILE_INLINE Four philox(std::uint32_t index, const Stream& stream) {
    const Words count = stream.column + index;
    Wide x[2][4];  // even columns, odd columns
    for (int odd = 0; odd < 2; ++odd) {
        x[odd][0] = odd ? (Wide)count >> 32 : (Wide)count;
        x[odd][1] = stream.layer, x[odd][2] = stream.step, x[odd][3] = stream.lane;
    }
    GRACILE_UNROLL
    for (int round = 0; round < drawing_rounds; ++round) {
        for (int odd = 0; odd < 2; ++odd) {
            Wide* const s = x[odd];
            const Wide a = product(s[0], 0xD2511F53u), b = product(s[2], 0xCD9E8D57u);
            s[0] = (b >> 32) ^ s[1] ^ stream.key[round][0];
            s[1] = b;
            s[2] = (a >> 32) ^ s[3] ^ stream.key[round][1];
            s[3] = a;
        }
    }
    Four found;
    for (int i = 0; i < 4; ++i) found.word[i] = (Words)((x[0][i] & 0xffffffffu) | (x[1][i] << 32));
    return found;
}

// Whole numbers from 0 to 2^24 - 1, for row h of eight.
GRACILE_INLINE Floats uniform(const Four& random, int h) {
    Words word = random.word[h / 2];
    if (h % 2) word = (word << 16) | (word >> 16);
    return __builtin_convertvector((Signed)(word >> 8), Floats);
}

// Call whole(p, i) for every block i; a last part is first copied between zeros.
template <class Whole>
GRACILE_INLINE void blocks_of(const float* x, std::int64_t count, Whole whole) {
    std::int64_t i = 0;
    for (; (i + 1) * block_size <= count; ++i) whole(x + i * block_size, i);
    if (i * block_size == count) return;
    float rest[block_size] = {};
    std::copy_n(x + i * block_size, count - i * block_size, rest);
    whole(rest, i);
}

double squares(const float* x, std::int64_t count, float* largest) {
    Floats most{};
    double total = 0;
    blocks_of(x, count, [&](const float* p, std::int64_t) {
        Floats sums[4] = {}, tops[4] = {};  // apart, not to wait for each other
        for (int i = 0; i < block_size; i += 4 * lanes)
            GRACILE_UNROLL
            for (int k = 0; k < 4; ++k) {
                const Floats v = read<Floats>(p + i + k * lanes), size = magnitude(v);
                sums[k] += v * v;
                tops[k] = tops[k] > size ? tops[k] : size;
            }
        for (int k = 0; k < 4; ++k) most = most > tops[k] ? most : tops[k];
        const Floats sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int k = 0; k < lanes; ++k) total += sum[k];
    });
    *largest = 0;
    for (int k = 0; k < lanes; ++k) *largest = std::max(*largest, most[k]);
    return total;
}

void ternarize(const float* x, std::int64_t count, float scale, Random random, std::int64_t first,
               std::uint32_t* out) {
    const float factor = scale >= 0x1p-100f ? 0x1p24f / scale : 0.0f;
    const Stream stream(random);
    blocks_of(x, count, [&](const float* p, std::int64_t i) {
        for (int c = 0; c < across; c += lanes)
            for (int word = 0; word < 2; ++word) {
                Words digits = all(0x55555555u);
                GRACILE_UNROLL
                for (int half = 0; half < 2; ++half) {
                    const int group = 2 * word + half;
                    const auto index = static_cast<std::uint32_t>((first + i) * 64 + group * across + c);
                    const Four drawn = philox(index, stream);
                    GRACILE_UNROLL
                    for (int h = 0; h < 8; ++h) {
                        const Floats v = read<Floats>(p + (group * 8 + h) * across + c) * factor;
                        digits = step_by(digits, uniform(drawn, h), v, stream.bit[half * 8 + h]);
                    }
                }
                write(out + (i * 2 + word) * across + c, digits);
            }
    });
}

void round(const float* x, std::int64_t count, float scale, Random random, std::int64_t first, std::uint32_t* out) {
    const float factor = scale >= 0x1p-100f ? 7.0f / scale : 0.0f;
    const Stream stream(random);
    blocks_of(x, count, [&](const float* p, std::int64_t i) {
        for (int c = 0; c < across; c += lanes)
            for (int group = 0; group < 4; ++group) {  // 8 rows are one word
                const auto index = static_cast<std::uint32_t>((first + i) * 64 + group * across + c);
                const Four drawn = philox(index, stream);
                Words digits{};
                GRACILE_UNROLL
                for (int h = 0; h < 8; ++h) {
                    Floats v = read<Floats>(p + (group * 8 + h) * across + c) * factor;
                    v = v < -7.0f ? every(-7.0f) : v, v = v > 7.0f ? every(7.0f) : v;
                    v = (v + 7.0f) + uniform(drawn, h) * 0x1p-24f;  // from 0 to 15
                    const Signed digit = __builtin_convertvector(v, Signed);
                    digits |= (Words)(digit > 14 ? Signed{} + 14 : digit) << (4 * h);
                }
                write(out + (i * 4 + group) * across + c, digits);
            }
    });
}

// Sums of 2-bit digits in all rows of some columns: added up in bytes, which hold 127 messages.
struct Rows {
    Words row[deep];
};
GRACILE_INLINE void add_up(const std::uint32_t* const* messages, int n, std::int64_t at, Rows* sums) {
    for (int start = 0; start < n; start += 127) {
        Words byte[2][4] = {};
        for (int m = start; m < std::min(n, start + 127); ++m)
            GRACILE_UNROLL
            for (int word = 0; word < 2; ++word) {
                const Words digits = read<Words>(messages[m] + at + word * across);
                GRACILE_UNROLL
                for (int j = 0; j < 4; ++j) byte[word][j] += (digits >> (2 * j)) & 0x03030303u;
            }
        GRACILE_UNROLL
        for (int r = 0; r < deep; ++r) {
            const Words part = (byte[r / 16][r % 4] >> (r % 16 / 4 * 8)) & 0xffu;
            sums->row[r] = start ? sums->row[r] + part : part;
        }
    }
}

template <int width>
GRACILE_INLINE void pack_rows(const Rows& sums, std::uint32_t* out) {
    Words words[width] = {};
    GRACILE_UNROLL
    for (int r = 0; r < deep; ++r) {
        constexpr int size = 32;
        const int at = r * width, shift = at % size;
        words[at / size] |= sums.row[r] << shift;
        if (shift + width > size) words[at / size + 1] |= sums.row[r] >> (size - shift);
    }
    for (int i = 0; i < width; ++i) write(out + i * across, words[i]);
}

template <int width>
GRACILE_INLINE void unpack_rows(const std::uint32_t* in, Rows* digits) {
    Words words[width];
    for (int i = 0; i < width; ++i) words[i] = read<Words>(in + i * across);
    GRACILE_UNROLL
    for (int r = 0; r < deep; ++r) {
        constexpr int size = 32;
        const int at = r * width, shift = at % size;
        Words field = words[at / size] >> shift;
        if (shift + width > size) field |= words[at / size + 1] << (size - shift);
        digits->row[r] = field & ((1u << width) - 1u);
    }
}

template <int width>
void add_in(const std::uint32_t* const* messages, int n, std::int64_t blocks, std::uint32_t* out) {
    for (std::int64_t i = 0; i < blocks; ++i)
        for (int c = 0; c < across; c += lanes) {
            Rows sums;
            add_up(messages, n, i * 2 * across + c, &sums);
            pack_rows<width>(sums, out + i * width * across + c);
        }
}

// What will not stay in the cache anyway is written past it, if whole lines can be.
constexpr std::int64_t large = 1 << 20;
GRACILE_INLINE void write_past(float* p, Floats v) {
#if defined(GRACILE_AVX512)
    _mm512_stream_ps(p, (__m512)v);
#else
    write(p, v);
#endif
}

// Write factor * (digit - offset) for all numbers; `digits(i, c, rows)` tells those of some columns of a block.
template <class Digits>
GRACILE_INLINE void numbers(std::int64_t count, int offset, float factor, float* out, Digits digits) {
    alignas(64) float rest[block_size];
    const bool past = count >= large && reinterpret_cast<std::uintptr_t>(out) % 64 == 0;
    for (std::int64_t i = 0; i * block_size < count; ++i) {
        const std::int64_t left = count - i * block_size;
        float* to = left < block_size ? rest : out + i * block_size;
        for (int c = 0; c < across; c += lanes) {
            Rows found;
            digits(i, c, &found);
            GRACILE_UNROLL
            for (int r = 0; r < deep; ++r) {
                const Floats v = __builtin_convertvector((Signed)found.row[r] - offset, Floats) * factor;
                past ? write_past(to + r * across + c, v) : write(to + r * across + c, v);
            }
        }
        if (left < block_size) std::copy_n(rest, left, out + i * block_size);
    }
#if defined(GRACILE_AVX512)
    if (past) _mm_sfence();
#endif
}

template <int width>
void decode_from(const std::uint32_t* in, std::int64_t count, int offset, float factor, float* out) {
    numbers(count, offset, factor, out, [&](std::int64_t i, int c, Rows* found) {
        unpack_rows<width>(in + i * width * across + c, found);
    });
}

template <int... width>
constexpr auto adders(std::integer_sequence<int, width...>) {
    return std::array{&add_in<width + 2>...};
}
template <int... width>
constexpr auto decoders(std::integer_sequence<int, width...>) {
    return std::array{&decode_from<width + 2>...};
}
using Widths = std::make_integer_sequence<int, widest - 1>;  // 2 to widest

void add(const std::uint32_t* const* messages, int n, std::int64_t blocks, int width, std::uint32_t* out) {
    static constexpr auto by_width = adders(Widths{});
    by_width[static_cast<std::size_t>(width - 2)](messages, n, blocks, out);
}

void decode(const std::uint32_t* in, std::int64_t count, int width, int offset, float factor, float* out) {
    static constexpr auto by_width = decoders(Widths{});
    by_width[static_cast<std::size_t>(width - 2)](in, count, offset, factor, out);
}

void mean(const std::uint32_t* const* messages, int n, std::int64_t count, float factor, float* out) {
    numbers(count, n, factor, out, [&](std::int64_t i, int c, Rows* found) {
        add_up(messages, n, i * 2 * across + c, found);
    });
}

void to_base3(const std::uint32_t* in, std::int64_t fives, std::uint32_t* out) {
    for (std::int64_t i = 0; i < fives; ++i, in += 10 * across, out += 8 * across)
        for (int c = 0; c < across; c += lanes)
            for (int word = 0; word < 2; ++word)
                GRACILE_UNROLL
                for (int j = 0; j < 4; ++j) {
                    Words sum{};
                    for (int digit = 4; digit >= 0; --digit) {
                        const Words four = read<Words>(in + (digit * 2 + word) * across + c) >> (2 * j);
                        sum = sum + sum + sum + (four & 0x03030303u);  // no byte exceeds 242
                    }
                    write(out + (word * 4 + j) * across + c, sum);
                }
}

void from_base3(const std::uint32_t* in, std::int64_t fives, std::uint32_t* out) {
    for (std::int64_t i = 0; i < fives; ++i, in += 8 * across, out += 10 * across)
        for (int c = 0; c < across; c += lanes)
            for (int word = 0; word < 2; ++word) {
                Words found[5] = {};
                GRACILE_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const Words four = read<Words>(in + (word * 4 + j) * across + c);
                    Words half[2] = {four & 0x00ff00ffu, (four >> 8) & 0x00ff00ffu};
                    for (int digit = 0; digit < 5; ++digit)
                        for (int k = 0; k < 2; ++k) {
                            const Words third = ((half[k] * 171u) >> 9) & 0x007f007fu;  // of numbers below 256
                            found[digit] |= (half[k] - third * 3u) << (8 * k + 2 * j);
                            half[k] = third;
                        }
                }
                for (int digit = 0; digit < 5; ++digit)
                    write(out + (digit * 2 + word) * across + c, found[digit]);
            }
}

}  // namespace

const Ternary& ternary() {
    static constexpr Ternary all_of{squares, ternarize, round, add, decode, mean, to_base3, from_base3};
    return all_of;
}

}  // namespace gracile::GRACILE_SET
