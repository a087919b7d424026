// Attention of blocks of queries to listed keys on a CPU, and scores alone; `native_blocks.py` calls them, and
// `listed.py` defines the former.
//
// A tile is up to 64 queries of one block. Its scores lie transposed, a row of vectors of queries for each key, so that
// any keys fill the vectors: keys and values are read where they lie, and nothing is gathered. Products are summed in
// registers, a few keys (or columns of values) by a few vectors of queries at a time, which no row of scores leaves.

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <new>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, GROUP = 4;  // floats of a vector, vectors of queries multiplied at a time
#else
constexpr int LANES = 8, GROUP = 2;
#endif
constexpr int KEYS = 6, COLUMNS = 4;  // keys, and columns of values, multiplied by a group at a time
constexpr int CHUNK = 96;             // keys whose scores are held
constexpr int WIDTH = 64;             // queries of a tile at most

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

template <class V, class X>
inline V filled(X x) {
    return x - V{};
}

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0, within 2e-7 of it, 0 below 2^-126, and NaN of NaN: the polynomial of the fraction from -1/2 to 1/2,
// whose exponent is then raised.
inline Vec exp2(Vec x) {
    const Vec least = filled<Vec>(-127.0f), round = filled<Vec>(12582912.0f);  // 1.5 x 2^23 has no room for fractions
    x = x < least ? least : x;
    const Vec whole = (x + round) - round, f = x - whole;
    Vec p = filled<Vec>(1.5403530e-4f);
    for (float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 0.24022651f, 0.69314718f, 1.0f}) p = p * f + c;
    return p * (Vec)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

// scores[j][a] = sum_c query[c][a] keys[j][c] for N keys and G of W vectors of queries.
template <int W, int G, int N>
inline void multiply(const Vec* query, const float* const* keys, int64_t d, Vec* scores) {
    const float* key[N];
    Vec sum[N][G] = {};
    for (int j = 0; j < N; j++) key[j] = keys[j];
    for (int64_t c = 0; c < d; c++)
        for (int j = 0; j < N; j++)
            for (int a = 0; a < G; a++) sum[j][a] += query[c * W + a] * key[j][c];
    for (int j = 0; j < N; j++)
        for (int a = 0; a < G; a++) scores[j * W + a] = sum[j][a];
}

template <int W>
inline void all_scores(const Vec* query, const float* const* keys, int n, int64_t d, Vec* scores) {
    constexpr int G = W < GROUP ? W : GROUP;
    int j = 0;
    for (; j + KEYS <= n; j += KEYS)
        for (int a = 0; a < W; a += G) multiply<W, G, KEYS>(query + a, keys + j, d, scores + j * W + a);
    for (; j < n; j++)
        for (int a = 0; a < W; a += G) multiply<W, G, 1>(query + a, keys + j, d, scores + j * W + a);
}

// acc[c][a] = shrink[a] acc[c][a] + sum_j weights[j][a] values[j][c] for N columns and G of W vectors of queries.
template <int W, int G, int N>
inline void add(const Vec* weights, const float* const* values, int n, int64_t column, const Vec* shrink, Vec* acc) {
    Vec sum[N][G] = {};
    for (int j = 0; j < n; j++) {
        const float* value = values[j] + column;
        for (int c = 0; c < N; c++)
            for (int a = 0; a < G; a++) sum[c][a] += weights[j * W + a] * value[c];
    }
    for (int c = 0; c < N; c++)
        for (int a = 0; a < G; a++) acc[c * W + a] = acc[c * W + a] * shrink[a] + sum[c][a];
}

template <int W>
inline void add_all(const Vec* weights, const float* const* values, int n, int64_t d, const Vec* shrink, Vec* acc) {
    constexpr int G = W < GROUP ? W : GROUP;
    int64_t c = 0;
    for (; c + COLUMNS <= d; c += COLUMNS)
        for (int a = 0; a < W; a += G) add<W, G, COLUMNS>(weights + a, values, n, c, shrink + a, acc + c * W + a);
    for (; c < d; c++)
        for (int a = 0; a < W; a += G) add<W, G, 1>(weights + a, values, n, c, shrink + a, acc + c * W + a);
}

// query[c][i] = factor x[i][c] for the rows `first` to `last` - 1 of `width`; lanes of others repeat one of these.
void transpose(const float* x, int64_t row, int64_t d, int first, int last, int width, float factor, Vec* query) {
    auto* lanes = reinterpret_cast<float*>(query);
    for (int i = 0; i < width; i++) {
        const float* from = x + (i < first ? first : i < last ? i : last - 1) * row;
        for (int64_t c = 0; c < d; c++) lanes[c * width + i] = from[c] * factor;
    }
}

// `count` vectors, or null.
Vec* reserve(int64_t count) {
    return static_cast<Vec*>(::operator new(count * sizeof(Vec), std::align_val_t(sizeof(Vec)), std::nothrow));
}

void release(Vec* memory) { ::operator delete(memory, std::align_val_t(sizeof(Vec))); }

}  // namespace

// What `_Call` in native_blocks.py holds, with strides in floats.
struct Call {
    const float *q, *k, *v;
    float *out, *lse;
    const int32_t *near, *listed, *columns, *offsets;
    int64_t q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row;
    int64_t heads, group, queries, length, blocks, block_q, block_k, lead, sinks, window;
    int64_t n_listed, n_columns, n_offsets, d, d_v;
    float factor;
};

namespace {

// A running softmax in base 2 of W vectors of queries: the largest score `top`, the sum `total` of 2^(s - top) and the
// weighted sum `acc` of values, to which keys are added by `see`, and by `flush` at the end.
template <int W>
class Tile {
   public:
    Tile(const Call& call, Vec* memory)
        : call(call), query(memory), acc(query + call.d * W), scores(acc + call.d_v * W) {}

    void attend(int64_t owner, int64_t block, int64_t part);

   private:
    const Call& call;
    Vec *query, *acc, *scores;
    Vec top[W], total[W];
    Ints place[W];
    const float *k, *v, *keys[CHUNK], *values[CHUNK];
    int32_t tokens[CHUNK];
    int count;
    bool masked;

    void see(int64_t token) {
        tokens[count] = static_cast<int32_t>(token);
        keys[count] = k + token * call.k_row;
        values[count] = v + token * call.v_row;
        if (++count == CHUNK) flush();
    }

    void see_lists(int64_t owner, int64_t block, int64_t before);
    void see_lines(int64_t owner, int64_t start, int64_t before);
    void mask();
    void flush();
};

template <int W>
void Tile<W>::see_lists(int64_t owner, int64_t block, int64_t before) {
    const int32_t* list = call.listed + (owner * call.blocks + block) * call.n_listed;
    for (int64_t i = 0; i < call.n_listed; i++) {
        if (list[i] < 0) continue;
        const int64_t begin = call.sinks + list[i] * call.block_k, end = begin + call.block_k;
        for (int64_t token = begin; token < (end < before ? end : before); token++) see(token);
    }
}

// The keys of columns and offsets in rising order, those of both once.
template <int W>
void Tile<W>::see_lines(int64_t owner, int64_t start, int64_t before) {
    const int32_t* columns = call.columns + owner * call.n_columns;
    const int32_t* offsets = call.offsets + owner * call.n_offsets;
    int64_t i = 0, j = call.n_offsets - 1;
    while (i < call.n_columns && columns[i] < 0) i++;
    while (j >= 0 && offsets[j] > start) j--;
    while (true) {
        const int64_t column = i < call.n_columns ? columns[i] : before;
        const int64_t diagonal = j >= 0 && offsets[j] >= 0 ? start - offsets[j] : before;
        const int64_t token = column < diagonal ? column : diagonal;
        if (token >= before) return;
        see(token);
        i += column == token;
        j -= diagonal == token;
    }
}

template <int W>
void Tile<W>::mask() {
    for (int j = 0; j < count; j++)
        for (int a = 0; a < W; a++) {
            const Ints distance = place[a] - tokens[j];
            const Ints reach = filled<Ints>(tokens[j] < call.sinks ? INT32_MAX : static_cast<int32_t>(call.window));
            const Ints sees = (distance >= 0) & (distance < reach);
            scores[j * W + a] = sees ? scores[j * W + a] : filled<Vec>(-INFINITY);
        }
}

template <int W>
void Tile<W>::flush() {
    Vec base[W], shrink[W], sum[W] = {};
    all_scores<W>(query, keys, count, call.d, scores);
    if (masked) mask();
    for (int a = 0; a < W; a++) base[a] = top[a];
    for (int j = 0; j < count; j++)
        for (int a = 0; a < W; a++) base[a] = larger(scores[j * W + a], base[a]);
    for (int a = 0; a < W; a++) {
        const Vec best = base[a];
        base[a] = best == -INFINITY ? Vec{} : best;  // rows that have seen nothing yet: weights of 0, never NaN
        shrink[a] = exp2(top[a] - base[a]);
        top[a] = best;
    }
    for (int j = 0; j < count; j++)
        for (int a = 0; a < W; a++) {
            const Vec weight = exp2(scores[j * W + a] - base[a]);
            scores[j * W + a] = weight;
            sum[a] += weight;
        }
    for (int a = 0; a < W; a++) total[a] = total[a] * shrink[a] + sum[a];
    add_all<W>(scores, values, count, call.d_v, shrink, acc);
    count = 0;
}

template <int W>
void Tile<W>::attend(int64_t owner, int64_t block, int64_t part) {
    const int64_t past = call.length - call.queries, start = past - call.lead + block * call.block_q;
    const int64_t tile = start + part * W * LANES, first = tile < past ? past : tile;
    int64_t end = tile + W * LANES < start + call.block_q ? tile + W * LANES : start + call.block_q;
    if (end > call.length) end = call.length;
    if (end <= first) return;

    const int64_t batch = owner / call.heads, head = owner % call.heads, low = call.near[owner * call.blocks + block];
    const int64_t before = low < start ? low : start;  // what all rows of the block see ends here
    const float* q = call.q + batch * call.q_batch + head * call.q_head + (tile - past) * call.q_row;
    k = call.k + batch * call.k_batch + head / call.group * call.k_head;
    v = call.v + batch * call.v_batch + head / call.group * call.v_head;
    transpose(q, call.q_row, call.d, first - tile, end - tile, W * LANES, call.factor, query);
    for (int64_t i = 0; i < call.d_v * W; i++) acc[i] = Vec{};
    for (int a = 0; a < W; a++) {
        top[a] = filled<Vec>(-INFINITY);
        total[a] = Vec{};
        for (int i = 0; i < LANES; i++) place[a][i] = static_cast<int32_t>(tile + a * LANES + i);
    }

    count = 0;
    masked = false;
    for (int64_t token = 0; token < (call.sinks < before ? call.sinks : before); token++) see(token);
    see_lists(owner, block, before);
    see_lines(owner, start, before);
    const int64_t whole = low > end - call.window ? low : end - call.window;  // from here to `first` all rows see all
    for (int64_t token = whole; token <= first; token++) see(token);
    if (count) flush();
    masked = true;
    for (int64_t token = low; token < end; token++) {
        if (token == whole && whole <= first) token = first + 1;
        if (token < end && (token < call.sinks || first - token < call.window)) see(token);
    }
    if (count) flush();

    const float *sums = reinterpret_cast<float*>(acc), *tops = reinterpret_cast<float*>(top),
                *totals = reinterpret_cast<float*>(total);
    for (int64_t i = first - tile; i < end - tile; i++) {
        const int64_t row = owner * call.queries + tile - past + i;
        const float inverse = totals[i] == 0 ? 0 : 1 / totals[i];
        for (int64_t c = 0; c < call.d_v; c++) call.out[row * call.d_v + c] = sums[c * W * LANES + i] * inverse;
        call.lse[row] = totals[i] == 0 ? -INFINITY : (tops[i] + std::log2(totals[i])) * 0.6931471805599453f;
    }
}

template <int W>
int attend_all(const Call& call, int64_t begin, int64_t end) {
    Vec* memory = reserve((call.d + call.d_v + CHUNK) * W);
    if (!memory) return 1;
    Tile<W> tile(call, memory);
    const int64_t parts = (call.block_q + W * LANES - 1) / (W * LANES);
    for (int64_t i = begin; i < end; i++)
        for (int64_t part = 0; part < parts; part++) tile.attend(i / call.blocks, i % call.blocks, part);
    release(memory);
    return 0;
}

}  // namespace

// Attend with the blocks `begin` to `end` - 1 of all, counted (b H + h) M + m. Returns 1 if there is no memory, else 0.
extern "C" int attend(const Call* call, int64_t begin, int64_t end) {
    const int64_t rows = call->block_q < call->queries + call->lead ? call->block_q : call->queries + call->lead;
    if (rows > WIDTH / 2) return attend_all<WIDTH / LANES>(*call, begin, end);
    if (rows > WIDTH / 4) return attend_all<WIDTH / 2 / LANES>(*call, begin, end);
    return attend_all<WIDTH / 4 / LANES>(*call, begin, end);
}

namespace {

float largest(Vec x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

// Raise best[0 .. n - 1] to the largest scores that a tile of queries gives to runs of keys, the run `i` being the rows
// places[i], places[i] + step, ... of x.
template <int W>
void raise(const Vec* query, Vec* scores, const float* x, const int64_t* places, int64_t n, int64_t run, int64_t step,
           int64_t d, float* best) {
    const float* keys[CHUNK];
    for (int64_t first = 0; first < n * run; first += CHUNK) {
        const int count = first + CHUNK < n * run ? CHUNK : static_cast<int>(n * run - first);
        int64_t i = first / run, part = first % run;
        for (int j = 0; j < count; j++) {
            keys[j] = x + (places[i] + part * step) * d;
            if (++part == run) part = 0, i++;
        }
        all_scores<W>(query, keys, count, d, scores);
        i = first / run, part = first % run;
        for (int j = 0; j < count;) {
            Vec top = scores[j * W];
            for (; part < run && j < count; part++, j++)
                for (int a = 0; a < W; a++) top = larger(scores[j * W + a], top);
            const float found = largest(top);
            if (found > best[i]) best[i] = found;
            part = 0, i++;
        }
    }
}

}  // namespace

// best[b][i] = the largest product of any of the queries q[b] with any row of run i of block b, see `raise`. Returns 1 if
// there is no memory, else 0.
extern "C" int best_scores(const float* q, const float* x, const int64_t* places, float* best, int64_t blocks,
                           int64_t queries, int64_t n, int64_t run, int64_t step, int64_t d) {
    constexpr int W = 16 / LANES;
    Vec* query = reserve((d + CHUNK) * W);
    if (!query) return 1;
    for (int64_t i = 0; i < blocks * n; i++) best[i] = -INFINITY;
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t begin = 0; begin < queries; begin += 16) {
            const int rows = queries - begin < 16 ? static_cast<int>(queries - begin) : 16;
            transpose(q + (b * queries + begin) * d, d, d, 0, rows, 16, 1.0f, query);
            raise<W>(query, query + d * W, x, places + b * n, n, run, step, d, best + b * n);
        }
    release(query);
    return 0;
}
