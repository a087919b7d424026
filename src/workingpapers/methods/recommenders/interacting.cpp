// Layers of attention between the fields of a row on a CPU, forward and back; `interacting.py` calls it.
//
// As many rows as a vector has lanes are computed side by side: once they are turned round, every number of a row is a
// vector, and whatever the sizes no lane idles and nothing is summed across lanes. What the rows of a group need of
// each other stays in the cache.

#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

#include "native.h"

namespace {

constexpr int BLOCK = LANES == 16 ? 4 : 3;  // vectors of either side multiplied at a time
constexpr int64_t PART = 24;                // queries whose weights are held
constexpr size_t LINE = 64;                 // bytes to which memory is aligned

// A matrix that lies in memory with any strides.
template <class T>
struct View {
    T* start;
    int64_t row, column;

    View turned() const { return {start, column, row}; }
    View from(int64_t i, int64_t j) const { return {start + i * row + j * column, row, column}; }
    T& at(int64_t i, int64_t j) const { return start[i * row + j * column]; }
};
typedef View<Vec> Lanes;          // a matrix for each lane
typedef View<const float> Shared;  // one for all

// c[i][j] (+)= sum_k a[i][k] b[j][k] for I rows of a and J of b, summed in registers, where GCC keeps the sums only if
// it is told to unroll the loops.
template <int I, int J, class B>
void multiply(Lanes a, B b, Lanes c, int64_t n, bool add) {
    Vec sum[I][J];
#pragma GCC unroll 4
    for (int i = 0; i < I; i++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) sum[i][j] = add ? c.at(i, j) : Vec{};
    for (int64_t k = 0; k < n; k++) {
        Vec left[I];
#pragma GCC unroll 4
        for (int i = 0; i < I; i++) left[i] = a.at(i, k);
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) {
            const auto right = b.at(j, k);
#pragma GCC unroll 4
            for (int i = 0; i < I; i++) sum[i][j] += left[i] * right;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < I; i++)
#pragma GCC unroll 4
        for (int j = 0; j < J; j++) c.at(i, j) = sum[i][j];
}

template <class B, int... P>
void multiply(int64_t i, int64_t j, Lanes a, B b, Lanes c, int64_t n, bool add, std::integer_sequence<int, P...>) {
    static constexpr void (*all[])(Lanes, B, Lanes, int64_t, bool) = {multiply<P / BLOCK + 1, P % BLOCK + 1, B>...};
    all[(i - 1) * BLOCK + j - 1](a, b, c, n, add);
}

// The same for any numbers of rows, which are split as evenly as blocks allow.
template <class B>
void product(int64_t rows, int64_t columns, int64_t n, Lanes a, B b, Lanes c, bool add = false) {
    for (int64_t i = 0, di; i < rows; i += di) {
        const int64_t left = (rows - i + BLOCK - 1) / BLOCK;
        di = (rows - i + left - 1) / left;
        for (int64_t j = 0, dj; j < columns; j += dj) {
            const int64_t more = (columns - j + BLOCK - 1) / BLOCK;
            dj = (columns - j + more - 1) / more;
            multiply(di, dj, a.from(i, 0), b.from(j, 0), c.from(i, j), n, add,
                     std::make_integer_sequence<int, BLOCK * BLOCK>());
        }
    }
}

template <int S, size_t... L>
inline void swap(Vec& a, Vec& b, std::index_sequence<L...>) {
    const Vec x = a, y = b;
#ifdef __clang__
    a = __builtin_shufflevector(x, y, (L & S ? L - S + LANES : L)...);
    b = __builtin_shufflevector(x, y, (L & S ? L + LANES : L + S)...);
#else
    a = __builtin_shuffle(x, y, Ints{(L & S ? L - S + LANES : L)...});
    b = __builtin_shuffle(x, y, Ints{(L & S ? L + LANES : L + S)...});
#endif
}

// Turn a square of vectors round, by squares of half the size within those of S lanes and vectors.
template <int S = LANES / 2>
inline void turn(Vec* square) {
    for (int i = 0; i < LANES; i++)
        if (!(i & S)) swap<S>(square[i], square[i + S], std::make_index_sequence<LANES>());
    if constexpr (S > 1) turn<S / 2>(square);
}

// Take rows of n numbers into lanes, n vectors; lanes without a row are 0.
void take(const float* rows, int64_t count, int64_t n, Vec* lanes) {
    for (int64_t c = 0; c < n; c += LANES) {
        const int64_t width = n - c < LANES ? n - c : LANES;
        Vec square[LANES] = {};
        for (int64_t i = 0; i < count; i++)
            if (width == LANES)
                std::memcpy(&square[i], rows + i * n + c, sizeof(Vec));
            else
                std::memcpy(&square[i], rows + i * n + c, width * sizeof(float));
        turn(square);
        for (int64_t i = 0; i < width; i++) lanes[c + i] = square[i];
    }
}

// Give lanes back as rows.
void give(const Vec* lanes, int64_t count, int64_t n, float* rows) {
    for (int64_t c = 0; c < n; c += LANES) {
        const int64_t width = n - c < LANES ? n - c : LANES;
        Vec square[LANES] = {};
        for (int64_t i = 0; i < width; i++) square[i] = lanes[c + i];
        turn(square);
        for (int64_t i = 0; i < count; i++)
            if (width == LANES)
                std::memcpy(rows + i * n + c, &square[i], sizeof(Vec));
            else
                std::memcpy(rows + i * n + c, &square[i], width * sizeof(float));
    }
}

}  // namespace

// What `_Layer` in interacting.py holds: x (rows, fields, in), weights (width, in), out (rows, fields, width), and for
// the way back their gradients, those of the weights `threads` times.
struct Layer {
    const float *x, *weights[4];  // of queries, keys, values and, or null, the residual
    float* out;
    const float* grad;
    float *grad_x, *grad_weights;
    int64_t rows, fields, in, width, heads, threads;
    float scale;
    int failed;
};

namespace {

class Group {
   public:
    static int64_t size(const Layer& layer, bool back) {
        const int64_t part = PART * layer.fields, wide = layer.fields * layer.width;
        return back ? 2 * part + 2 * layer.fields * layer.in + 7 * wide + 4 * layer.width * layer.in
                    : part + layer.fields * layer.in + 4 * wide;
    }

    Group(const Layer& layer, Vec* memory)
        : layer(layer), m(layer.fields), d(layer.in), w(layer.width), memory(memory) {
        x = matrix(m, d), out = matrix(m, w), weights = matrix(PART, m);
        for (Lanes& made : projected) made = matrix(m, w);
    }

    void forward(int64_t group);
    void backward_start();
    void backward(int64_t group);
    void sum(float* total) const;

   private:
    const Layer& layer;
    const int64_t m, d, w;
    Vec* memory;
    Lanes x, out, weights, projected[3];
    Lanes grad_x, slopes, grads[4], sums[4];

    Lanes matrix(int64_t rows, int64_t columns) {
        Vec* start = memory;
        memory += rows * columns;
        return {start, columns, 1};
    }
    void project(int64_t group, int64_t count);
    void share(Lanes query, Lanes key, int64_t count, int64_t width);
};

void Group::project(int64_t group, int64_t count) {
    take(layer.x + group * LANES * m * d, count, m * d, x.start);
    for (int i = 0; i < 3; i++) product(m, w, d, x, Shared{layer.weights[i], d, 1}, projected[i]);
}

// The weights of some queries: the softmax along keys.
void Group::share(Lanes query, Lanes key, int64_t count, int64_t width) {
    const float factor = layer.scale * 1.4426950408889634f;
    product(count, m, width, query, key, weights);
    for (int64_t i = 0; i < count; i++) {
        Vec *row = &weights.at(i, 0), top = row[0], total = {};
        for (int64_t j = 1; j < m; j++) top = row[j] > top ? row[j] : top;
        for (int64_t j = 0; j < m; j++) {
            row[j] = exp2((row[j] - top) * factor);
            total += row[j];
        }
        total = 1.0f / total;
        for (int64_t j = 0; j < m; j++) row[j] *= total;
    }
}

void Group::forward(int64_t group) {
    const int64_t rest = layer.rows - group * LANES, count = rest < LANES ? rest : LANES, width = w / layer.heads;
    project(group, count);
    for (int64_t h = 0; h < w; h += width)
        for (int64_t i = 0; i < m; i += PART) {
            const int64_t part = m - i < PART ? m - i : PART;
            share(projected[0].from(i, h), projected[1].from(0, h), part, width);
            product(part, width, m, weights, projected[2].from(0, h).turned(), out.from(i, h));
        }
    if (layer.weights[3]) product(m, w, d, x, Shared{layer.weights[3], d, 1}, out, true);
    for (int64_t i = 0; i < m * w; i++) out.start[i] = out.start[i] < 0.0f ? Vec{} : out.start[i];
    give(out.start, count, m * w, layer.out + group * LANES * m * w);
}

void Group::backward_start() {
    grad_x = matrix(m, d), slopes = matrix(PART, m);
    for (int i = 0; i < 3; i++) grads[i] = matrix(m, w);
    grads[3] = out;
    for (Lanes& total : sums) total = matrix(w, d);
    std::memset(static_cast<void*>(sums[0].start), 0, 4 * w * d * sizeof(Vec));
}

void Group::backward(int64_t group) {
    const int64_t rest = layer.rows - group * LANES, count = rest < LANES ? rest : LANES, width = w / layer.heads;
    project(group, count);
    // What comes back, where the output is not 0; the output's place is not needed yet.
    take(layer.out + group * LANES * m * w, count, m * w, grads[0].start);
    take(layer.grad + group * LANES * m * w, count, m * w, out.start);
    for (int64_t i = 0; i < m * w; i++) out.start[i] = grads[0].start[i] <= 0.0f ? Vec{} : out.start[i];
    for (int64_t h = 0; h < w; h += width)
        for (int64_t i = 0; i < m; i += PART) {
            const int64_t part = m - i < PART ? m - i : PART;
            const Lanes query = projected[0].from(i, h), key = projected[1].from(0, h), value = projected[2].from(0, h);
            const Lanes grad = out.from(i, h);
            share(query, key, part, width);
            product(part, m, width, grad, value, slopes);
            for (int64_t r = 0; r < part; r++) {
                Vec *weight = &weights.at(r, 0), *slope = &slopes.at(r, 0), mean = {};
                for (int64_t j = 0; j < m; j++) mean += weight[j] * slope[j];
                for (int64_t j = 0; j < m; j++) slope[j] = weight[j] * (slope[j] - mean) * layer.scale;
            }
            product(part, width, m, slopes, key.turned(), grads[0].from(i, h));
            product(m, width, part, slopes.turned(), query.turned(), grads[1].from(0, h), i > 0);
            product(m, width, part, weights.turned(), grad.turned(), grads[2].from(0, h), i > 0);
        }
    for (int i = 0; i < 4; i++) {
        if (!layer.weights[i]) continue;
        product(m, d, w, grads[i], Shared{layer.weights[i], 1, d}, grad_x, i > 0);
        product(w, d, m, grads[i].turned(), x.turned(), sums[i], true);
    }
    give(grad_x.start, count, m * d, layer.grad_x + group * LANES * m * d);
}

void Group::sum(float* total) const {
    for (int64_t i = 0; i < 4 * w * d; i++) {
        total[i] = 0;
        for (int j = 0; j < LANES; j++) total[i] += sums[0].start[i][j];
    }
}

void work(Layer& layer, int64_t thread, int64_t threads) {
    const bool back = layer.grad;
    const int64_t groups = (layer.rows + LANES - 1) / LANES;
    const int64_t begin = groups * thread / threads, end = groups * (thread + 1) / threads;
    auto* memory = static_cast<Vec*>(
        ::operator new(Group::size(layer, back) * sizeof(Vec), std::align_val_t(LINE), std::nothrow));
    if (!memory) {
        __atomic_store_n(&layer.failed, 1, __ATOMIC_RELAXED);
        return;
    }
    Group group(layer, memory);
    if (back) {
        group.backward_start();
        for (int64_t i = begin; i < end; i++) group.backward(i);
        group.sum(layer.grad_weights + thread * 4 * layer.width * layer.in);
    } else {
        for (int64_t i = begin; i < end; i++) group.forward(i);
    }
    ::operator delete(memory, std::align_val_t(LINE));
}

}  // namespace

// Compute a layer, or where `grad` is given the way back. Returns 1 if there is no memory, else 0.
extern "C" int interact(Layer* layer) {
    layer->failed = 0;
    spread<Layer, work>(layer, layer->threads);
    return layer->failed;
}
