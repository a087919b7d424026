// What the C++ files of the methods share: vectors as wide as the processor has them, their powers of 2, and threads.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

// OpenMP as torch has loaded it, if it has.
extern "C" {
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
int omp_get_thread_num() __attribute__((weak));
int omp_get_num_threads() __attribute__((weak));
}

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;  // floats of a vector
#else
constexpr int LANES = 8;
#endif

// GCC and Clang let pointers to floats reach the elements of such a vector.
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

template <class V = Vec, class X>
inline V filled(X x) {
    return x - V{};
}

// `count` numbers from memory and to it, as many as there is room for; beyond them a vector holds 0.
inline Vec load(const float* x, int64_t count) {
    Vec found = {};
    if (count >= LANES)
        std::memcpy(&found, x, sizeof(Vec));
    else
        std::memcpy(&found, x, count * sizeof(float));
    return found;
}

inline void store(const Vec& x, float* place, int64_t count) {
    if (count >= LANES)
        std::memcpy(place, &x, sizeof(Vec));
    else
        std::memcpy(place, &x, count * sizeof(float));
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0, within 3e-7 of itself, 0 below 2^-126, and NaN of NaN: the polynomial of the fraction from -1/2 to 1/2,
// whose exponent is then raised.
inline Vec exp2(Vec x) {
    const Vec least = filled(-127.0f), round = filled(12582912.0f);  // 1.5 x 2^23 has no room for fractions
    x = x < least ? least : x;
    const Vec whole = (x + round) - round, f = x - whole;
    Vec p = filled(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f}) p = p * f + c;
    return p * (Vec)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

// Call work(call, thread, of how many) by up to `threads` threads: those of torch, which wait for work, or this one alone.
template <class Call, void work(Call&, int64_t, int64_t)>
inline void spread(Call* call, int64_t threads) {
    if (threads > 1 && GOMP_parallel && omp_get_thread_num && omp_get_num_threads)
        GOMP_parallel([](void* data) { work(*static_cast<Call*>(data), omp_get_thread_num(), omp_get_num_threads()); },
                      call, static_cast<unsigned>(threads), 0);
    else
        work(*call, 0, 1);
}

}  // namespace
