// Vectors of LANES 32-bit values, in GCC's and clang's vector extension, which has the arithmetic, the comparisons
// (true = all bits set) and `mask ? a : b`. Here stands only what it has not, written for the instruction set that
// the including file is compiled for. Everything is local to that file: a function with external linkage could be
// merged by the linker with another instruction set's.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
using LaneBits = uint16_t;
#else
constexpr int LANES = 8;
using LaneBits = uint8_t;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES)));

template <class To, class From>
inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class Vector, class Element>
inline Vector load(const Element* from) {
    Vector v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class Vector, class Element>
inline void store(Element* to, Vector v) {
    memcpy(to, &v, sizeof v);
}

// Asks for what is read a while later: loads of table rows fill the window in which a CPU looks ahead by itself. And for
// the place of what is written later, so that stores do not wait for it.
template <class Element>
inline void ask_for_later(const Element* from) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + 1024);
}
inline void ask_for_later(const uint8_t* bits) { __builtin_prefetch(bits + 128); }
template <class Element>
inline void ask_for_place(Element* to) {
    __builtin_prefetch(reinterpret_cast<const char*>(to) + 1024, 1);
}

inline Floats all(float value) { return value - Floats{}; }
inline Ints all(int32_t value) { return value - Ints{}; }

// a * b + c, rounded once where the CPU can.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    for (int i = 0; i < LANES; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

// The mask of the lanes whose bit is set in the next LANES / 8 bytes.
inline Ints lanes_of(const uint8_t* bytes) {
    LaneBits packed;
    memcpy(&packed, bytes, sizeof packed);
#if defined(__AVX512F__)
    return same_bits<Ints>(_mm512_movm_epi32(packed));
#else
    const Ints position = {1, 2, 4, 8, 16, 32, 64, 128};
    return (all(int32_t{packed}) & position) == position;
#endif
}

// The other way round: bit i is that of lane i of a mask.
inline LaneBits bits_of(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(same_bits<__m512i>(mask));
#elif defined(__AVX2__)
    return LaneBits(_mm256_movemask_ps(same_bits<__m256>(mask)));
#else
    unsigned packed = 0;
    for (int i = 0; i < LANES; ++i) packed |= (mask[i] & 1u) << i;
    return LaneBits(packed);
#endif
}

// Bit i is the sign of lane i.
inline LaneBits signs_of(Floats v) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(same_bits<__m512i>(v));
#elif defined(__AVX2__)
    return LaneBits(_mm256_movemask_ps(v));
#else
    return bits_of(same_bits<Ints>(v) < 0);
#endif
}

// `size` in the lanes whose bit is set in the next LANES / 8 bytes, -size in the others.
inline Floats signed_by(const uint8_t* bytes, float size) {
#if defined(__AVX2__) && !defined(__AVX512F__)  // the bit becomes the sign: five instructions, of which these are three
    const Ints to_sign = {31, 30, 29, 28, 27, 26, 25, 24};
    const __m256i bits = _mm256_sllv_epi32(_mm256_set1_epi8(char(*bytes)), same_bits<__m256i>(to_sign));
    return same_bits<Floats>((same_bits<Ints>(bits) & INT32_MIN) ^ same_bits<Ints>(all(-size)));
#else
    return lanes_of(bytes) ? all(size) : all(-size);
#endif
}

// The sum of all lanes: of the two halves, of the halves of that, and so on, in every instruction set. By way of memory
// the narrower loads would wait for the wider stores before them.
inline float sum_of_lanes(Floats v) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
#else
    const __m256 eight = v;
#endif
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
#endif
}

// The nearest whole numbers, even ones of two that are as near.
inline Ints nearest(Floats v) {
#if defined(__AVX512F__)
    return same_bits<Ints>(_mm512_cvtps_epi32(v));
#elif defined(__AVX2__)
    return same_bits<Ints>(_mm256_cvtps_epi32(v));
#else
    typedef uint32_t Words __attribute__((vector_size(4 * LANES)));  // of numbers below 2^22; others wrap around
    return same_bits<Ints>(same_bits<Words>(v + 0x1.8p23f) - 0x4b400000u);
#endif
}

// The nearest whole number, as a float.
inline Floats whole_number(Floats v) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return __builtin_convertvector(nearest(v), Floats);
#endif
}

// v * 2^n, rounded once, for whole numbers n.
inline Floats scaled(Floats v, Floats n) {
#if defined(__AVX512F__)
    return _mm512_scalef_ps(v, n);
#else
    const Ints whole = nearest(n), half = whole >> 1;  // twice, since one power of 2 may be none
    return v * same_bits<Floats>((half + 127) << 23) * same_bits<Floats>((whole - half + 127) << 23);
#endif
}

inline Floats square_root(Floats v) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(v);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(v);
#else
    for (int i = 0; i < LANES; ++i) v[i] = __builtin_sqrtf(v[i]);
    return v;
#endif
}

// The larger one; b if there is a NaN.
inline Floats larger(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

inline Ints larger(Ints a, Ints b) {
#if defined(__AVX512F__)
    return same_bits<Ints>(_mm512_max_epi32(same_bits<__m512i>(a), same_bits<__m512i>(b)));
#elif defined(__AVX2__)
    return same_bits<Ints>(_mm256_max_epi32(same_bits<__m256i>(a), same_bits<__m256i>(b)));
#else
    return a > b ? a : b;
#endif
}

// The smaller one; b if there is a NaN.
inline Floats smaller(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// The whole number of `low` to `high` that is nearest.
inline Ints between(Ints v, int32_t low, int32_t high) {
#if defined(__AVX512F__)  // one instruction each, of which GCC makes two or three
    const __m512i from = _mm512_max_epi32(same_bits<__m512i>(v), _mm512_set1_epi32(low));
    return same_bits<Ints>(_mm512_min_epi32(from, _mm512_set1_epi32(high)));
#elif defined(__AVX2__)
    const __m256i from = _mm256_max_epi32(same_bits<__m256i>(v), _mm256_set1_epi32(low));
    return same_bits<Ints>(_mm256_min_epi32(from, _mm256_set1_epi32(high)));
#else
    v = v < low ? all(low) : v;
    return v > high ? all(high) : v;
#endif
}

// table[i] of a table of four.
inline Floats one_of_four(const float* table, Ints i) {
#if defined(__AVX512F__)
    return _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table)), same_bits<__m512i>(i));
#elif defined(__AVX2__)
    return _mm256_permutevar_ps(_mm256_broadcast_ps(reinterpret_cast<const __m128*>(table)), same_bits<__m256i>(i));
#else
    Floats v;
    for (int lane = 0; lane < LANES; ++lane) v[lane] = table[i[lane]];
    return v;
#endif
}

// table[i] of a table of eight.
inline Floats one_of_eight(const float* table, Ints i) {
#if defined(__AVX512F__)
    return _mm512_permutexvar_ps(same_bits<__m512i>(i), _mm512_castps256_ps512(_mm256_loadu_ps(table)));
#elif defined(__AVX2__)
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), same_bits<__m256i>(i));
#else
    Floats v;
    for (int lane = 0; lane < LANES; ++lane) v[lane] = table[i[lane]];
    return v;
#endif
}

#if defined(__AVX512F__)
// table[i % 32] of a table of thirty-two, which stands in two registers.
inline Floats one_of_32(const float* table, Ints i) {
    return _mm512_permutex2var_ps(_mm512_loadu_ps(table), same_bits<__m512i>(i), _mm512_loadu_ps(table + 16));
}

// The magnitude of a number without its power of 2: from 1 up to 2.
inline Floats mantissa(Floats v) { return _mm512_getmant_ps(v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero); }

// The sign and the exponent.
inline Ints exponent(Floats v) { return same_bits<Ints>(_mm512_srli_epi32(same_bits<__m512i>(v), 23)); }

// a in the lanes whose bit is set, b in the others; and of such lanes those where a > b.
inline Floats choose(LaneBits lanes, Floats a, Floats b) { return _mm512_mask_blend_ps(lanes, b, a); }
inline LaneBits where_greater(LaneBits lanes, Floats a, Floats b) {
    return _mm512_mask_cmp_ps_mask(lanes, a, b, _CMP_GT_OQ);
}
#endif

// table[i] of a table of any size.
inline Floats lookup(const float* table, Ints i) {
#if defined(__AVX512F__)
    return _mm512_i32gather_ps(same_bits<__m512i>(i), table, 4);
#elif defined(__AVX2__)
    return _mm256_i32gather_ps(table, same_bits<__m256i>(i), 4);
#else
    Floats v;
    for (int lane = 0; lane < LANES; ++lane) v[lane] = table[i[lane]];
    return v;
#endif
}

#if defined(__AVX2__)
// A vector of what part(0), part(4), ... has for LANES / 4 times four lanes, the first of which is told.
template <class Part>
__attribute__((always_inline)) inline Floats by_fours(Part part) {
#if defined(__AVX512F__)
    const __m512 low = _mm512_insertf32x4(_mm512_castps128_ps512(part(0)), part(4), 1);
    return _mm512_insertf32x4(_mm512_insertf32x4(low, part(8), 2), part(12), 3);
#else
    return _mm256_insertf128_ps(_mm256_castps128_ps256(part(0)), part(4), 1);
#endif
}

// Of each four numbers two of a and two of b, as the immediate of a shuffle chooses them.
template <int CHOICE>
inline Floats shuffled(Floats a, Floats b) {
#if defined(__AVX512F__)
    return _mm512_shuffle_ps(a, b, CHOICE);
#else
    return _mm256_shuffle_ps(a, b, CHOICE);
#endif
}
#endif

#if defined(__AVX2__)
// Two neighbouring numbers.
__attribute__((always_inline)) inline uint64_t numbers_of(Ints i, int lane) {
#if defined(__AVX512F__)
    const __m512i v = same_bits<__m512i>(i);
    const __m128i part = lane < 4 ? _mm512_castsi512_si128(v) : lane < 8 ? _mm512_extracti32x4_epi32(v, 1) : lane < 12 ? _mm512_extracti32x4_epi32(v, 2) : _mm512_extracti32x4_epi32(v, 3);
#else
    const __m256i v = same_bits<__m256i>(i);
    const __m128i part = lane < 4 ? _mm256_castsi256_si128(v) : _mm256_extracti128_si256(v, 1);
#endif
    return lane % 4 ? _mm_extract_epi64(part, 1) : _mm_cvtsi128_si64(part);
}
#endif

// Four numbers for each lane, those of row number(lane) of a table, as a vector of each. Gathers take two to four times
// as long as a load of each row and a transposition.
struct Rows {
    Floats column[4];
};
template <class Number>
__attribute__((always_inline)) inline Rows rows_of_four(const float* table, Number number) {
#if defined(__AVX2__)
    const auto rows = [&](int first) __attribute__((always_inline)) {
        return by_fours([&](int lane) __attribute__((always_inline)) {
            return _mm_loadu_ps(table + 4 * number(first + lane));
        });
    };
    const Floats a = rows(0), b = rows(1), c = rows(2), d = rows(3);
    const Floats ab_low = shuffled<0x44>(a, b), ab_high = shuffled<0xee>(a, b);
    const Floats cd_low = shuffled<0x44>(c, d), cd_high = shuffled<0xee>(c, d);
    return {{shuffled<0x88>(ab_low, cd_low), shuffled<0xdd>(ab_low, cd_low), shuffled<0x88>(ab_high, cd_high),
             shuffled<0xdd>(ab_high, cd_high)}};
#else
    Rows rows;
    for (int lane = 0; lane < LANES; ++lane)
        for (int i = 0; i < 4; ++i) rows.column[i][lane] = table[4 * number(lane) + i];
    return rows;
#endif
}
// Those of row i.
__attribute__((always_inline)) inline Rows rows_of_four(const float* table, Ints i) {
    return rows_of_four(table, [=](int lane) __attribute__((always_inline)) {
#if defined(__AVX2__)
        const uint64_t two = numbers_of(i, lane & ~1);
        return lane % 2 ? two >> 32 : uint64_t{uint32_t(two)};
#else
        return uint64_t(i[lane]);
#endif
    });
}

// table[2 * i] and table[2 * i + 1], as a vector of each.
struct Pairs {
    Floats first, second;
};
__attribute__((always_inline)) inline Pairs pairs_of_two(const float* table, Ints i) {
#if defined(__AVX2__)
    const auto two_of_four = [=](int first) {
        return by_fours([=](int lane) {
            const uint64_t two = numbers_of(i, first + lane);
            const auto row = [=](uint64_t at) { return reinterpret_cast<const double*>(table) + at; };
            return _mm_castpd_ps(_mm_loadh_pd(_mm_load_sd(row(uint32_t(two))), row(two >> 32)));
        });
    };
    const Floats a = two_of_four(0), b = two_of_four(2);
    return {shuffled<0x88>(a, b), shuffled<0xdd>(a, b)};
#else
    return {lookup(table, i + i), lookup(table + 1, i + i)};
#endif
}

inline Ints widen(Shorts v) {
#if defined(__AVX512F__)
    return same_bits<Ints>(_mm512_cvtepu16_epi32(same_bits<__m256i>(v)));
#elif defined(__AVX2__)  // one instruction, of which GCC makes four
    return same_bits<Ints>(_mm256_cvtepu16_epi32(same_bits<__m128i>(v)));
#else
    return __builtin_convertvector(v, Ints);
#endif
}
inline Shorts narrow(Ints v) { return __builtin_convertvector(v, Shorts); }

// The upper halves of 32 bits.
inline Shorts upper(Ints v) {
#if defined(__AVX512F__)
    return same_bits<Shorts>(_mm512_cvtepi32_epi16(_mm512_srli_epi32(same_bits<__m512i>(v), 16)));
#elif defined(__AVX2__)  // two instructions behind the shift, of which GCC makes three
    const __m256i shifted = _mm256_srli_epi32(same_bits<__m256i>(v), 16);
    return same_bits<Shorts>(_mm_packus_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1)));
#else
    return narrow(v >> 16);
#endif
}

// a in the lanes of the mask, b in the others.
inline Floats either(Ints mask, Floats a, Floats b) { return mask ? a : b; }
inline Shorts either(Ints mask, Shorts a, Shorts b) {
#if defined(__AVX512F__)
    return same_bits<Shorts>(_mm256_mask_blend_epi16(bits_of(mask), same_bits<__m256i>(b), same_bits<__m256i>(a)));
#else
    const Shorts narrow_mask = upper(mask);
    return (a & narrow_mask) | (b & ~narrow_mask);
#endif
}

// One octet of bits: bit i says whether first <= x[i] <= first + span.
template <class Word>
inline uint8_t in_range_octet(const Word* x, int count, Word first, Word span) {
    unsigned octet = 0;
    for (int i = 0; i < count; ++i) octet |= unsigned{Word(x[i] - first) <= span} << i;
    return uint8_t(octet);
}

inline uint8_t in_range8(const uint32_t* x, uint32_t first, uint32_t span) {
#if defined(__AVX512F__)
    const __m256i shifted = _mm256_sub_epi32(load<__m256i>(x), _mm256_set1_epi32(int32_t(first)));
    return _mm256_cmple_epu32_mask(shifted, _mm256_set1_epi32(int32_t(span)));
#elif defined(__AVX2__)
    const __m256i shifted = _mm256_sub_epi32(load<__m256i>(x), _mm256_set1_epi32(int32_t(first)));
    const __m256i clipped = _mm256_min_epu32(shifted, _mm256_set1_epi32(int32_t(span)));
    return uint8_t(_mm256_movemask_ps(same_bits<__m256>(_mm256_cmpeq_epi32(clipped, shifted))));
#else
    return in_range_octet(x, 8, first, span);
#endif
}

inline uint8_t in_range8(const uint16_t* x, uint16_t first, uint16_t span) {
#if defined(__AVX512F__)
    const __m128i shifted = _mm_sub_epi16(load<__m128i>(x), _mm_set1_epi16(int16_t(first)));
    return _mm_cmple_epu16_mask(shifted, _mm_set1_epi16(int16_t(span)));
#elif defined(__AVX2__)
    const __m128i shifted = _mm_sub_epi16(load<__m128i>(x), _mm_set1_epi16(int16_t(first)));
    const __m128i inside = _mm_cmpeq_epi16(_mm_min_epu16(shifted, _mm_set1_epi16(int16_t(span))), shifted);
    return uint8_t(_mm_movemask_epi8(_mm_packs_epi16(inside, inside)));
#else
    return in_range_octet(x, 8, first, span);
#endif
}

// The formats: to float exactly, from float rounded to nearest even, a NaN staying one. TINY is the smallest normal
// number, MOST the largest, EPSILON the distance from 1 to the next one.
struct Float32 {
    using Vector = Floats;
    static constexpr float TINY = 0x1p-126f, MOST = 0x1.fffffep127f, EPSILON = 0x1p-23f;
    static Floats decode(Floats v) { return v; }
    static Floats encode(Floats v) { return v; }
};

struct BFloat16 {
    using Vector = Shorts;
    static constexpr float TINY = 0x1p-126f, MOST = 0x1.fep127f, EPSILON = 0x1p-7f;
    static Floats decode(Shorts v) { return same_bits<Floats>(widen(v) << 16); }
    static Shorts encode(Floats v) {
        typedef uint32_t Words __attribute__((vector_size(4 * LANES)));  // for some NaN the addition wraps around
        const Words pattern = same_bits<Words>(v);
        const Words rounded = pattern + 0x7fffu + ((pattern >> 16) & 1u);
        return upper(v == v ? same_bits<Ints>(rounded) : all(0x7fc00000));
    }
};

struct Float16 {
    using Vector = Shorts;
    static constexpr float TINY = 0x1p-14f, MOST = 65504.0f, EPSILON = 0x1p-10f;
    static Floats decode(Shorts v) {
#if defined(__AVX512F__)
        return _mm512_cvtph_ps(same_bits<__m256i>(v));
#elif defined(__AVX2__)
        return _mm256_cvtph_ps(same_bits<__m128i>(v));
#else
        const Ints wide = widen(v), magnitude = (wide & 0x7fff) << 13;
        const Ints finite = same_bits<Ints>(same_bits<Floats>(magnitude) * 0x1p112f);
        const Ints special = magnitude | 0x7f800000;
        return same_bits<Floats>((magnitude < (0x7c00 << 13) ? finite : special) | ((wide & 0x8000) << 16));
#endif
    }
    static Shorts encode(Floats v) {
#if defined(__AVX512F__)
        return same_bits<Shorts>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
        return same_bits<Shorts>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
#else
        const Ints pattern = same_bits<Ints>(v), magnitude = pattern & 0x7fffffff;
        const Ints normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
        // Adding 0.5 leaves a float whose last place is that of a subnormal half: the addition rounds.
        const Ints subnormal = same_bits<Ints>(same_bits<Floats>(magnitude) + 0.5f) - 0x3f000000;
        const Ints special = magnitude > 0x7f800000 ? all(0x7e00) : all(0x7c00);
        const Ints finite = magnitude < 0x38800000 ? subnormal : normal;
        return narrow((magnitude < 0x47800000 ? finite : special) | ((pattern >> 16) & 0x8000));
#endif
    }
};

}  // namespace
