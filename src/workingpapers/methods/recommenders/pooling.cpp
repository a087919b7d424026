// What follows a convolution along fields on a CPU, forward and back; `pooling.py` says what is computed, and calls it.
//
// Channels lie next to each other, and those of all coordinates of a field form a line. A line is computed on as it
// lies, with factors repeated to its length, and what is between the steps is computed again rather than kept.

#include <cstdint>
#include <cstring>
#include <new>

#include "native.h"

namespace {

constexpr int64_t ROWS = 8;  // whose float32 sums are added up before they go on as float64

// The hyperbolic tangent: where it would cancel, by a polynomial of the square.
inline Vec tanh(Vec x) {
    const Ints sign = (Ints)x & INT32_MIN;
    const Vec size = (Vec)((Ints)x ^ sign), e = exp2(size * -2.8853901f), square = x * x;
    Vec p = filled(-6.1049478e-3f);
    for (float c : {2.1003641e-2f, -5.3852497e-2f, 0.13332782f, -0.33333329f}) p = p * square + c;
    const Vec large = (Vec)((Ints)((1.0f - e) / (1.0f + e)) | sign);
    return size < 0.625f ? x + x * square * p : large;
}

}  // namespace

// What `_Call` in pooling.py holds: y (rows, height, line), out and grad (rows, ceil(height / pool), line), factors
// (line), and the sums of each thread (2, line).
struct Call {
    const float *y, *scale, *shift, *center, *level, *slope, *grad;
    float *out, *grad_y;
    double* sums;
    int64_t rows, height, line, pool, threads;
    int step, failed;
};

namespace {

// The largest of a window's fields y, y + line, ... once they are scaled, and which it is: the first of equal ones.
struct Largest {
    Vec value;
    Ints place;

    Largest(const Call& call, const float* y, int64_t n, int64_t e, Vec scale, Vec shift) : place{} {
        value = load(y, call.line - e) * scale + shift;
        for (int64_t k = 1; k < n; k++) {
            const Vec next = load(y + k * call.line, call.line - e) * scale + shift;
            const Ints larger = (next > value) | (next != next);
            value = larger ? next : value;
            place = larger ? Ints{} + static_cast<int32_t>(k) : place;
        }
    }
};

// Add up y - center and its square, or on the way back slopes and slopes times y - center.
class Sums {
   public:
    Sums(double* total, int64_t line, float* memory) : total(total), line(line), memory(memory) { clear(); }

    void add(int64_t e, Vec first, Vec second) {
        const int64_t count = line - e;
        store(load(memory + e, count) + first, memory + e, count);
        store(load(memory + line + e, count) + second, memory + line + e, count);
    }
    void flush() {
        for (int64_t i = 0; i < 2 * line; i++) total[i] += memory[i];
        clear();
    }

   private:
    double* total;
    int64_t line;
    float* memory;

    void clear() { std::memset(memory, 0, 2 * line * sizeof(float)); }
};

void measure(const Call& call, int64_t row, int64_t e, Sums& sums) {
    const Vec center = load(call.center + e, call.line - e);
    Vec first = {}, second = {};
    for (int64_t i = 0; i < call.height; i++) {
        const Vec y = load(call.y + (row * call.height + i) * call.line + e, call.line - e) - center;
        first += y, second += y * y;
    }
    sums.add(e, first, second);
}

template <int STEP>
void window(const Call& call, int64_t row, int64_t e, Sums& sums) {
    const int64_t windows = (call.height + call.pool - 1) / call.pool, count = call.line - e;
    const Vec scale = load(call.scale + e, count), shift = load(call.shift + e, count);
    const Vec center = STEP > 1 ? load(call.center + e, count) : Vec{};
    const Vec level = STEP > 2 ? load(call.level + e, count) : Vec{};
    const Vec tilt = STEP > 2 ? load(call.slope + e, count) : Vec{};
    Vec first = {}, second = {};
    for (int64_t i = 0; i < windows; i++) {
        const int64_t left = call.height - i * call.pool, n = left < call.pool ? left : call.pool;
        const float* y = call.y + (row * call.height + i * call.pool) * call.line + e;
        const int64_t place = (row * windows + i) * call.line + e;
        const Largest largest(call, y, n, e, scale, shift);
        if (STEP == 1) {
            store(tanh(largest.value), call.out + place, count);
            continue;
        }
        const Vec out = load(call.out + place, count), slope = load(call.grad + place, count) * (1.0f - out * out);
        for (int64_t k = 0; k < n; k++) {
            const Vec own = largest.place == static_cast<int32_t>(k) ? slope : Vec{};
            const Vec distance = load(y + k * call.line, count) - center;
            first += own, second += own * distance;
            if (STEP == 3) {
                float* grad_y = call.grad_y + (y - call.y) + k * call.line;
                store(scale * own - level - tilt * distance, grad_y, count);
            }
        }
    }
    if (STEP == 2) sums.add(e, first, second);
}

void work(Call& call, int64_t thread, int64_t threads) {
    auto* memory = static_cast<float*>(::operator new(2 * call.line * sizeof(float), std::nothrow));
    if (!memory) {
        __atomic_store_n(&call.failed, 1, __ATOMIC_RELAXED);
        return;
    }
    const int64_t begin = call.rows * thread / threads, end = call.rows * (thread + 1) / threads;
    Sums sums(call.sums + thread * 2 * call.line, call.line, memory);
    for (int64_t row = begin; row < end; row++) {
        for (int64_t e = 0; e < call.line; e += LANES) {
            if (call.step == 0) measure(call, row, e, sums);
            if (call.step == 1) window<1>(call, row, e, sums);
            if (call.step == 2) window<2>(call, row, e, sums);
            if (call.step == 3) window<3>(call, row, e, sums);
        }
        if (call.step % 2 == 0 && ((row - begin) % ROWS == ROWS - 1 || row == end - 1)) sums.flush();
    }
    ::operator delete(memory);
}

}  // namespace

// Do a step: 0 sums of y, 1 the way forward, 2 sums of slopes, 3 the way back. Returns 1 if there is no memory, else 0.
extern "C" int pool(Call* call) {
    call->failed = 0;
    spread<Call, work>(call, call->threads);
    return call->failed;
}
