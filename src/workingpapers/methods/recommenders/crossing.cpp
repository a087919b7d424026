// DCN-V2's crosses and the product of their output with its weights on a CPU, forward and back; `crossing.py` says what
// is computed, and calls it.
//
// A block of rows goes through all crosses at once, so that what is between two products stays in the cache.

#include <cstdint>

#include "native.h"

// What `_Call` in crossing.py holds: x_0 (rows, width) and w (width); for each cross its matrix (width, width), which on
// the way forward is turned round, its bias (width), the matrix' product with x and, but for the last, the next x (rows,
// width); out (rows). For the way back their gradients: those of matrices zero at first, those of biases and w (layers +
// 1, width) for each block of rows and zero at first; and space of a block for each thread.
struct Call {
    const float *first, *weight, *matrices, *biases;
    float *ys, *xs, *out;
    const float* grad;
    float *grad_first, *grad_ys, *grad_matrices, *sums, *space;
    int64_t rows, width, layers, block, threads;
};

namespace {

constexpr int ROWS = LANES == 16 ? 8 : 4, COLUMNS = LANES == 16 ? 3 : 2;  // numbers by vectors multiplied at a time
constexpr int64_t SUMMED = 256;  // rows that are summed over in registers; few enough to stay in the cache

// c[i][j] (+)= sum_k a[i][k] b[k][j], or with TURNED of a[k][i], for I rows of c and J vectors of b, whose rows are all
// `width` apart; summed in registers, where GCC keeps the sums only if it is told to unroll the loops.
template <bool TURNED, int I, int J>
void multiply(const float* a, const float* b, float* c, int64_t width, int64_t n, int64_t count, bool add) {
    Vec sum[I][J];
#pragma GCC unroll 8
    for (int i = 0; i < I; i++)
#pragma GCC unroll 3
        for (int j = 0; j < J; j++) sum[i][j] = add ? load(c + i * width + j * LANES, count) : Vec{};
    for (int64_t k = 0; k < n; k++) {
        Vec right[J];
#pragma GCC unroll 3
        for (int j = 0; j < J; j++) right[j] = load(b + k * width + j * LANES, J > 1 ? LANES : count);
#pragma GCC unroll 8
        for (int i = 0; i < I; i++) {
            const float left = TURNED ? a[k * width + i] : a[i * width + k];
#pragma GCC unroll 3
            for (int j = 0; j < J; j++) sum[i][j] += left * right[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < I; i++)
#pragma GCC unroll 3
        for (int j = 0; j < J; j++) store(sum[i][j], c + i * width + j * LANES, count);
}

// The same for any number of rows, and all columns.
template <bool TURNED>
void product(int64_t rows, int64_t n, const float* a, const float* b, float* c, int64_t width, bool add) {
    for (int64_t j = 0; j < width;) {
        const bool wide = width - j >= COLUMNS * LANES;
        for (int64_t i = 0; i < rows;) {
            const bool high = rows - i >= ROWS;
            const auto one = high ? wide ? multiply<TURNED, ROWS, COLUMNS> : multiply<TURNED, ROWS, 1>
                                  : wide ? multiply<TURNED, 1, COLUMNS> : multiply<TURNED, 1, 1>;
            one(a + (TURNED ? i : i * width), b + j, c + i * width + j, width, n, width - j, add);
            i += high ? ROWS : 1;
        }
        j += wide ? COLUMNS * LANES : LANES;
    }
}

inline void add(const Vec& x, float* place, int64_t count) { store(load(place, count) + x, place, count); }

void forward(const Call& call, int64_t begin, int64_t count) {
    const int64_t n = call.width, size = call.rows * n;
    const float *first = call.first + begin * n, *x = first;
    for (int64_t l = 0; l < call.layers; l++) {
        const bool last = l == call.layers - 1;
        float *y = call.ys + l * size + begin * n, *next = call.xs + l * size + begin * n;
        product<false>(count, n, x, call.matrices + l * n * n, y, n, false);
        for (int64_t i = 0; i < count; i++) {
            Vec sum = {};
            for (int64_t j = 0, k = i * n; j < n; j += LANES, k += LANES) {
                const Vec found = load(x + k, n - j) +
                                  load(first + k, n - j) * (load(y + k, n - j) + load(call.biases + l * n + j, n - j));
                if (last)
                    sum += found * load(call.weight + j, n - j);
                else
                    store(found, next + k, n - j);
            }
            if (!last) continue;
            float total = 0;
            for (int k = 0; k < LANES; k++) total += sum[k];
            call.out[begin + i] = total;
        }
        x = next;
    }
}

void backward(const Call& call, int64_t begin, int64_t count, float* later) {
    const int64_t n = call.width, size = call.rows * n;
    const float *first = call.first + begin * n, *grads = call.grad + begin;
    float* grad_first = call.grad_first + begin * n;
    float* sums = call.sums + begin / call.block * (call.layers + 1) * n;
    for (int64_t l = call.layers - 1; l >= 0; l--) {
        const bool last = l == call.layers - 1;
        const float *x = l ? call.xs + (l - 1) * size + begin * n : first, *ys = call.ys + l * size + begin * n;
        float* grad_y = call.grad_ys + l * size + begin * n;
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0, k = i * n; j < n; j += LANES, k += LANES) {
                const int64_t some = n - j;
                const Vec x0 = load(first + k, some), y = load(ys + k, some) + load(call.biases + l * n + j, some);
                Vec grad = grads[i] * load(call.weight + j, some), given = {};
                if (last)
                    add(grads[i] * (load(x + k, some) + x0 * y), sums + call.layers * n + j, some);
                else
                    grad += load(later + k, some), given = load(grad_first + k, some);
                store(grad * x0, grad_y + k, some);
                add(grad * x0, sums + l * n + j, some);
                store(given + grad * (l ? y : y + 1.0f), grad_first + k, some);  // x_0 is a factor, and at last x_l too
            }
        product<false>(count, n, grad_y, call.matrices + l * n * n, l ? later : grad_first, n, !(l && last));
    }
}

void work(Call& call, int64_t thread, int64_t threads) {
    const int64_t blocks = (call.rows + call.block - 1) / call.block;
    for (int64_t i = blocks * thread / threads; i < blocks * (thread + 1) / threads; i++) {
        const int64_t begin = i * call.block, left = call.rows - begin, count = left < call.block ? left : call.block;
        if (call.grad)
            backward(call, begin, count, call.space + thread * call.block * call.width);
        else
            forward(call, begin, count);
    }
}

// Compute the gradients of some rows of the matrices, which blocks would have to add up.
void weigh(Call& call, int64_t thread, int64_t threads) {
    const int64_t n = call.width, groups = (n + ROWS - 1) / ROWS, size = call.rows * n;
    const int64_t begin = groups * thread / threads * ROWS, end = groups * (thread + 1) / threads * ROWS;
    for (int64_t l = 0; l < call.layers; l++) {
        const float *x = l ? call.xs + (l - 1) * size : call.first, *grad_y = call.grad_ys + l * size + begin;
        float* grad = call.grad_matrices + (l * n + begin) * n;
        for (int64_t i = 0; i < call.rows; i += SUMMED) {
            const int64_t count = call.rows - i < SUMMED ? call.rows - i : SUMMED;
            product<true>((end < n ? end : n) - begin, count, grad_y + i * n, x + i * n, grad, n, true);
        }
    }
}

}  // namespace

// Compute the crosses, or where `grad` is given the way back.
extern "C" void cross(Call* call) {
    spread<Call, work>(call, call->threads);
    if (call->grad) spread<Call, weigh>(call, call->threads);
}
