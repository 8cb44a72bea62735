// Numbers of two bits: gradients rounded at random to {-s, 0, s}, packed, summed and read again.
//
// A block is 512 numbers, seen as 32 rows of 16 columns. With fields of w bits, column c of a block is a stream of
// 32 w bits: row r has the bits r w to r w + w - 1. Word i of all 16 columns lie together, so a block is w times 64
// bytes and one vector instruction treats as many columns as it has lanes. A field holds a digit, what is meant plus
// an offset: 1 for ternary numbers, N for the sum of N of them. A last block may be partly used; the rest means 0.
#pragma once

#include <cstdint>

namespace gracile {

constexpr int deep = 32, across = 16, block_size = deep * across;  // rows, columns, numbers of a block
constexpr int widest = 12;  // bits of a field: sums of up to 2047 ternary numbers
constexpr int drawing_rounds = 7;  // the fewest that pass all tests of randomness (Salmon et al., 2011)

// The random numbers of one tensor: Philox4x32-7 with `seed` as key, counters (index, layer, step, lane). Index
// counts groups of 8 rows of a column, 64 to a block; the 8 rows take the halves of its four words, in order. The
// other half of the word follows as the lower bits, so that every number has 24 random bits.
struct Random {
    std::uint64_t seed;
    std::uint32_t layer, step, lane;
};

// What is compiled for each instruction set. Memory need not be aligned.
struct Ternary {
    // The sum of squares (not finite if a number is not), and the largest absolute value.
    double (*squares)(const float* x, std::int64_t count, float* largest);
    // Digits 0, 1, 2 of {-s, 0, s}, fields of 2 bits; P(+-s) = |x| / s, certain above s. First: number of the first
    // block within its tensor, which the random numbers depend on.
    void (*ternarize)(const float* x, std::int64_t count, float scale, Random, std::int64_t first, std::uint32_t* out);
    // Digits 0 to 14 of multiples of s / 7, fields of 4 bits: rounded at random to one of the two neighbors.
    void (*round)(const float* x, std::int64_t count, float scale, Random, std::int64_t first, std::uint32_t* out);
    // Sums of the digits of n messages of 2 bits, in fields of `width` bits.
    void (*add)(const std::uint32_t* const* messages, int n, std::int64_t blocks, int width, std::uint32_t* out);
    // out = factor * (digit - offset)
    void (*decode)(const std::uint32_t* in, std::int64_t count, int width, int offset, float factor, float* out);
    // The same of the sums of n messages of 2 bits; offset n.
    void (*mean)(const std::uint32_t* const* messages, int n, std::int64_t count, float factor, float* out);
    // Five blocks of 2 bits as 512 bytes, each of five digits to base 3; and back.
    void (*to_base3)(const std::uint32_t* in, std::int64_t fives, std::uint32_t* out);
    void (*from_base3)(const std::uint32_t* in, std::int64_t fives, std::uint32_t* out);
};

#define GRACILE_TERNARY(set)          \
    namespace set {                   \
    const Ternary& ternary();         \
    }
#if defined(__x86_64__)
GRACILE_TERNARY(avx512)
GRACILE_TERNARY(avx2)
#endif
GRACILE_TERNARY(portable)

}  // namespace gracile
