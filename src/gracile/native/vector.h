// One vector of floats, as wide as the instruction set has it. A source file is compiled once for each set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(GRACILE_AVX512) || defined(GRACILE_AVX2)
#include <immintrin.h>
#endif

#if defined(GRACILE_AVX512)
#define GRACILE_SET avx512
#elif defined(GRACILE_AVX2)
#define GRACILE_SET avx2
#else
#define GRACILE_SET portable
#endif

// Accumulators are arrays of vectors: they live in registers only if every loop over them is unrolled.
#define GRACILE_UNROLL _Pragma("GCC unroll 32")
#define GRACILE_INLINE inline __attribute__((always_inline))

namespace gracile::GRACILE_SET {

#if defined(GRACILE_AVX512)

constexpr int lanes = 16;
constexpr int accumulators = 28;  // of 32 registers
using Vector = __m512;
using Lanes = __mmask16;  // the lanes that are meant

GRACILE_INLINE Vector zero() { return _mm512_setzero_ps(); }
GRACILE_INLINE Vector broadcast(float x) { return _mm512_set1_ps(x); }
GRACILE_INLINE Vector load(const float* p) { return _mm512_load_ps(p); }
GRACILE_INLINE Vector load_any(const float* p) { return _mm512_loadu_ps(p); }
GRACILE_INLINE void store(float* p, Vector v) { _mm512_store_ps(p, v); }
GRACILE_INLINE void store_any(float* p, Vector v) { _mm512_storeu_ps(p, v); }
GRACILE_INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
GRACILE_INLINE Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
GRACILE_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
// max(NaN, 0) is NaN, as in a dense engine: the second operand is returned when one is NaN.
GRACILE_INLINE Vector relu(Vector v) { return _mm512_max_ps(zero(), v); }
// The larger; NaN where either is.
GRACILE_INLINE Vector maximum(Vector a, Vector b) {
    return _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}
GRACILE_INLINE Lanes between(int from, int to) {
    return static_cast<Lanes>((to >= 16 ? 0xffffu : (1u << to) - 1u) & ~((1u << from) - 1u));
}
GRACILE_INLINE Lanes bits(std::uint32_t b) { return static_cast<Lanes>(b); }
// Lanes outside are neither read nor written: a pointer may lead out of its array there.
GRACILE_INLINE Vector load_some(const float* p, Lanes m) { return _mm512_maskz_loadu_ps(m, p); }
GRACILE_INLINE void store_some(float* p, Vector v, Lanes m) { _mm512_mask_storeu_ps(p, m, v); }
GRACILE_INLINE Vector keep(Vector v, Lanes m) { return _mm512_maskz_mov_ps(m, v); }  // 0 elsewhere
// lane i gets lane i + 1; the last one next's first. Only lanes in m, the others become 0.
GRACILE_INLINE Vector shift_down(Vector v, Vector next, Lanes m) {
    return _mm512_castsi512_ps(
        _mm512_maskz_alignr_epi32(m, _mm512_castps_si512(next), _mm512_castps_si512(v), 1));
}
// lane i gets lane i - 1; the first one previous' last.
GRACILE_INLINE Vector shift_up(Vector v, Vector previous, Lanes m) {
    return _mm512_castsi512_ps(
        _mm512_maskz_alignr_epi32(m, _mm512_castps_si512(v), _mm512_castps_si512(previous), 15));
}
// NaN in lanes where odd is NaN or v is not finite. A chain of these waits one cycle for each, not four.
GRACILE_INLINE Vector or_odd(Vector odd, Vector v) { return _mm512_or_ps(odd, _mm512_mul_ps(v, zero())); }
GRACILE_INLINE bool any_nan(Vector v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q) != 0; }
// Pieces of four floats, `step` apart.
GRACILE_INLINE Vector fours(const float* p, std::ptrdiff_t step) {
    Vector v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + step), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * step), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * step), 3);
}
// Within each piece of four: a0 b0 a1 b1 or a2 b2 a3 b3; by pairs a0 a1 b0 b1 or a2 a3 b2 b3.
GRACILE_INLINE Vector mix_low(Vector a, Vector b) { return _mm512_unpacklo_ps(a, b); }
GRACILE_INLINE Vector mix_high(Vector a, Vector b) { return _mm512_unpackhi_ps(a, b); }
GRACILE_INLINE Vector pair_low(Vector a, Vector b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
GRACILE_INLINE Vector pair_high(Vector a, Vector b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
}
// The first `count` lanes; the fastest way to write a part.
GRACILE_INLINE void store_first(float* p, Vector v, int count) { store_some(p, v, between(0, count)); }
// lane i gets number at[i] of the 2 lanes floats low, high
#define GRACILE_LOOK_UP
GRACILE_INLINE Vector look_up(Vector low, Vector high, const std::uint8_t* at) {
    const __m512i i = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
    return _mm512_permutex2var_ps(low, i, high);
}
// of 2 lanes floats the even and the odd ones
GRACILE_INLINE void split(Vector a, Vector b, Vector* even, Vector* odd) {
    const __m512i e = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, e, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(e, _mm512_set1_epi32(1)), b);
}

#elif defined(GRACILE_AVX2)

constexpr int lanes = 8;
constexpr int accumulators = 13;  // of 16 registers
using Vector = __m256;
using Lanes = __m256i;

GRACILE_INLINE Vector zero() { return _mm256_setzero_ps(); }
GRACILE_INLINE Vector broadcast(float x) { return _mm256_set1_ps(x); }
GRACILE_INLINE Vector load(const float* p) { return _mm256_load_ps(p); }
GRACILE_INLINE Vector load_any(const float* p) { return _mm256_loadu_ps(p); }
GRACILE_INLINE void store(float* p, Vector v) { _mm256_store_ps(p, v); }
GRACILE_INLINE void store_any(float* p, Vector v) { _mm256_storeu_ps(p, v); }
GRACILE_INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
GRACILE_INLINE Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
GRACILE_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
GRACILE_INLINE Vector relu(Vector v) { return _mm256_max_ps(zero(), v); }
GRACILE_INLINE Vector maximum(Vector a, Vector b) {
    return _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
GRACILE_INLINE Lanes between(int from, int to) {
    const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_andnot_si256(
        _mm256_cmpgt_epi32(_mm256_set1_epi32(from), i), _mm256_cmpgt_epi32(_mm256_set1_epi32(to), i));
}
GRACILE_INLINE Lanes bits(std::uint32_t b) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(b)), bit), bit);
}
GRACILE_INLINE Vector load_some(const float* p, Lanes m) { return _mm256_maskload_ps(p, m); }
GRACILE_INLINE void store_some(float* p, Vector v, Lanes m) { _mm256_maskstore_ps(p, m, v); }
GRACILE_INLINE Vector keep(Vector v, Lanes m) { return _mm256_and_ps(v, _mm256_castsi256_ps(m)); }
GRACILE_INLINE Vector shift_down(Vector v, Vector next, Lanes m) {
    const __m256 mixed = _mm256_blend_ps(v, next, 1);
    const __m256 turned = _mm256_permutevar8x32_ps(mixed, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
    return _mm256_and_ps(turned, _mm256_castsi256_ps(m));
}
GRACILE_INLINE Vector shift_up(Vector v, Vector previous, Lanes m) {
    const __m256 mixed = _mm256_blend_ps(v, previous, 128);
    const __m256 turned = _mm256_permutevar8x32_ps(mixed, _mm256_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6));
    return _mm256_and_ps(turned, _mm256_castsi256_ps(m));
}
GRACILE_INLINE Vector or_odd(Vector odd, Vector v) { return _mm256_or_ps(odd, _mm256_mul_ps(v, zero())); }
GRACILE_INLINE bool any_nan(Vector v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)) != 0; }
GRACILE_INLINE Vector fours(const float* p, std::ptrdiff_t step) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + step), 1);
}
GRACILE_INLINE Vector mix_low(Vector a, Vector b) { return _mm256_unpacklo_ps(a, b); }
GRACILE_INLINE Vector mix_high(Vector a, Vector b) { return _mm256_unpackhi_ps(a, b); }
GRACILE_INLINE Vector pair_low(Vector a, Vector b) {
    return _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
GRACILE_INLINE Vector pair_high(Vector a, Vector b) {
    return _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(a), _mm256_castps_pd(b)));
}
GRACILE_INLINE void store_first(float* p, Vector v, int count) {  // a masked store is slow on some
    if (count >= lanes) return store_any(p, v);
    __m128 rest = _mm256_castps256_ps128(v);
    if (count & 4) _mm_storeu_ps(p, rest), rest = _mm256_extractf128_ps(v, 1), p += 4;
    if (count & 2) _mm_storel_pi(reinterpret_cast<__m64*>(p), rest), rest = _mm_movehl_ps(rest, rest), p += 2;
    if (count & 1) _mm_store_ss(p, rest);
}
#define GRACILE_LOOK_UP
GRACILE_INLINE Vector look_up(Vector low, Vector high, const std::uint8_t* at) {
    const __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    const __m256 from_low = _mm256_permutevar8x32_ps(low, i), from_high = _mm256_permutevar8x32_ps(high, i);
    return _mm256_blendv_ps(from_low, from_high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));  // bit 3
}
GRACILE_INLINE void split(Vector a, Vector b, Vector* even, Vector* odd) {
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(low, high, 0x88);
    *odd = _mm256_shuffle_ps(low, high, 0xdd);
}

#else

// The compiler's own vectors: SSE2 on any x86-64, NEON on ARM.
constexpr int lanes = 4;
constexpr int accumulators = 12;
typedef float Vector __attribute__((vector_size(16)));
typedef std::int32_t Lanes __attribute__((vector_size(16)));

GRACILE_INLINE Vector zero() { return Vector{0, 0, 0, 0}; }
GRACILE_INLINE Vector broadcast(float x) { return Vector{x, x, x, x}; }
GRACILE_INLINE Vector load_any(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
GRACILE_INLINE Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
GRACILE_INLINE void store_any(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
GRACILE_INLINE void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
GRACILE_INLINE Vector add(Vector a, Vector b) { return a + b; }
GRACILE_INLINE Vector multiply(Vector a, Vector b) { return a * b; }
GRACILE_INLINE Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
GRACILE_INLINE Vector relu(Vector v) {
    return v < zero() ? zero() : v;  // false for NaN
}
GRACILE_INLINE Vector maximum(Vector a, Vector b) { return ((a <= b) | (b != b)) ? b : a; }
GRACILE_INLINE Lanes between(int from, int to) {
    const Lanes i{0, 1, 2, 3};
    return (i >= from) & (i < to);
}
GRACILE_INLINE Lanes bits(std::uint32_t b) {
    const Lanes bit{1, 2, 4, 8};
    const auto c = static_cast<std::int32_t>(b);
    return (Lanes{c, c, c, c} & bit) == bit;
}
GRACILE_INLINE Vector load_some(const float* p, Lanes m) {
    Vector v = zero();
    for (int i = 0; i < lanes; ++i)
        if (m[i]) v[i] = p[i];
    return v;
}
GRACILE_INLINE void store_some(float* p, Vector v, Lanes m) {
    for (int i = 0; i < lanes; ++i)
        if (m[i]) p[i] = v[i];
}
GRACILE_INLINE Vector keep(Vector v, Lanes m) { return m ? v : zero(); }
GRACILE_INLINE Vector shift_down(Vector v, Vector next, Lanes m) {
    const Vector turned = __builtin_shufflevector(v, next, 1, 2, 3, 4);
    return m ? turned : zero();
}
GRACILE_INLINE Vector shift_up(Vector v, Vector previous, Lanes m) {
    const Vector turned = __builtin_shufflevector(previous, v, 3, 4, 5, 6);
    return m ? turned : zero();
}
GRACILE_INLINE Vector fours(const float* p, std::ptrdiff_t) { return load_any(p); }
GRACILE_INLINE Vector mix_low(Vector a, Vector b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
GRACILE_INLINE Vector mix_high(Vector a, Vector b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
GRACILE_INLINE Vector pair_low(Vector a, Vector b) { return __builtin_shufflevector(a, b, 0, 1, 4, 5); }
GRACILE_INLINE Vector pair_high(Vector a, Vector b) { return __builtin_shufflevector(a, b, 2, 3, 6, 7); }
GRACILE_INLINE void store_first(float* p, Vector v, int count) {
    if (count >= lanes) return store_any(p, v);
    for (int i = 0; i < count; ++i) p[i] = v[i];
}
GRACILE_INLINE Vector or_odd(Vector odd, Vector v) {
    const Vector product = v * zero();
    return reinterpret_cast<Vector>(reinterpret_cast<Lanes>(odd) | reinterpret_cast<Lanes>(product));
}
GRACILE_INLINE bool any_nan(Vector v) {
    for (int i = 0; i < lanes; ++i)
        if (v[i] != v[i]) return true;
    return false;
}
GRACILE_INLINE void split(Vector a, Vector b, Vector* even, Vector* odd) {
    *even = __builtin_shufflevector(a, b, 0, 2, 4, 6);
    *odd = __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

#endif

constexpr int wide = 4;  // vectors in a row of a tile, at most

// The same for `count` floats.
inline Vector or_odd(Vector odd, const float* x, std::ptrdiff_t count) {
    std::ptrdiff_t i = 0;
    for (; i + lanes <= count; i += lanes) odd = or_odd(odd, load_any(x + i));
    for (; i < count; ++i) odd = or_odd(odd, broadcast(x[i]));
    return odd;
}

// Four columns of `lanes` rows that are `step` apart, beginning at p.
GRACILE_INLINE void four_columns(const float* p, std::ptrdiff_t step, Vector* column) {
    Vector a[4];
    GRACILE_UNROLL
    for (int i = 0; i < 4; ++i) a[i] = fours(p + i * step, 4 * step);
    const Vector low0 = mix_low(a[0], a[1]), low1 = mix_low(a[2], a[3]);
    const Vector high0 = mix_high(a[0], a[1]), high1 = mix_high(a[2], a[3]);
    column[0] = pair_low(low0, low1), column[1] = pair_high(low0, low1);
    column[2] = pair_low(high0, high1), column[3] = pair_high(high0, high1);
}

}  // namespace gracile::GRACILE_SET
