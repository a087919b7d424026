// Attention of blocks of queries to listed keys on a CPU, and the search of HiP for such keys; `native_blocks.py` calls
// them, `listed.py` and `hip.py` define what they do.
//
// A tile is up to 64 queries of one block. Its scores lie transposed, a row of vectors of queries for each key, so that
// any keys fill the vectors: keys and values are read where they lie, and nothing is gathered. Products are summed in
// registers, a few keys (or columns of values) by a few vectors of queries at a time, which no row of scores leaves.

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "native.h"

namespace {

constexpr int GROUP = LANES == 16 ? 4 : 2;  // vectors of queries multiplied at a time
constexpr int KEYS = 6, COLUMNS = 4;        // keys, and columns of values, multiplied by a group at a time
constexpr int CHUNK = 96;                   // keys whose scores are held
constexpr int WIDTH = 64;                   // queries of a tile at most

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
        for (int64_t token = begin; token < std::min(end, before); token++) see(token);
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
        const int64_t token = std::min(column, diagonal);
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
            scores[j * W + a] = sees ? scores[j * W + a] : filled(-INFINITY);
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
    const int64_t tile = start + part * W * LANES, first = std::max(tile, past);
    const int64_t end = std::min({tile + W * LANES, start + call.block_q, call.length});
    if (end <= first) return;

    const int64_t batch = owner / call.heads, head = owner % call.heads, low = call.near[owner * call.blocks + block];
    const int64_t before = std::min(low, start);  // what all rows of the block see ends here
    const float* q = call.q + batch * call.q_batch + head * call.q_head + (tile - past) * call.q_row;
    k = call.k + batch * call.k_batch + head / call.group * call.k_head;
    v = call.v + batch * call.v_batch + head / call.group * call.v_head;
    transpose(q, call.q_row, call.d, first - tile, end - tile, W * LANES, call.factor, query);
    for (int64_t i = 0; i < call.d_v * W; i++) acc[i] = Vec{};
    for (int a = 0; a < W; a++) {
        top[a] = filled(-INFINITY);
        total[a] = Vec{};
        for (int i = 0; i < LANES; i++) place[a][i] = static_cast<int32_t>(tile + a * LANES + i);
    }

    count = 0;
    masked = false;
    for (int64_t token = 0; token < std::min(call.sinks, before); token++) see(token);
    see_lists(owner, block, before);
    see_lines(owner, start, before);
    const int64_t whole = std::max(low, end - call.window);  // from here to `first` all rows see all
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
void attend_all(const Call& call, int64_t begin, int64_t end) {
    const std::unique_ptr<Vec[]> memory(new Vec[(call.d + call.d_v + CHUNK) * W]);
    Tile<W> tile(call, memory.get());
    const int64_t parts = (call.block_q + W * LANES - 1) / (W * LANES);
    for (int64_t i = begin; i < end; i++)
        for (int64_t part = 0; part < parts; part++) tile.attend(i / call.blocks, i % call.blocks, part);
}

}  // namespace

// Attend with the blocks `begin` to `end` - 1 of all, counted (b H + h) M + m. Returns 1 if there is no memory, else 0.
extern "C" int attend(const Call* call, int64_t begin, int64_t end) try {
    const int64_t rows = std::min(call->block_q, call->queries + call->lead);
    if (rows > WIDTH / 2)
        attend_all<WIDTH / LANES>(*call, begin, end);
    else if (rows > WIDTH / 4)
        attend_all<WIDTH / 2 / LANES>(*call, begin, end);
    else
        attend_all<WIDTH / 4 / LANES>(*call, begin, end);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}

// What `_Search` in native_blocks.py holds. Candidate c of block b, of total[b], is the run of rows of x that begins at
// first[b] + c run step; `found` gets the n candidates that each block finds.
struct Search {
    const float *q, *x;
    const int64_t *first, *total;
    int64_t* found;
    int64_t queries, n, run, step, d, rounds, center;
};

namespace {

// The search of a block: n nodes part its candidates evenly, and each time all are halved, the n best halves are kept.
// Nodes stay in the order of the candidates. No score is below LEAST, which is above that of a node without candidates.
class Tree {
   public:
    explicit Tree(const Search& search)
        : search(search), tiles((search.queries + 15) / 16), query(new Vec[tiles * search.d * W]),
          scores(new Vec[CHUNK * W]), start(2 * search.n), size(2 * search.n), places(2 * search.n),
          best(2 * search.n), fresh(2 * search.n) {}

    void descend(int64_t block);

   private:
    static constexpr int W = 16 / LANES;
    static constexpr float LEAST = -std::numeric_limits<float>::max();
    const Search& search;
    const int64_t tiles;
    const std::unique_ptr<Vec[]> query, scores;
    std::vector<int64_t> start, size, places;
    std::vector<float> best, fresh;

    void place(int64_t block, int64_t i, int64_t node);
    void look(int64_t count);
    void raise(const Vec* tile, int64_t count);
    void keep();
};

void Tree::descend(int64_t block) {
    const int64_t n = search.n, total = search.total[block];
    const float* q = search.q + block * search.queries * search.d;
    for (int64_t t = 0; t < tiles; t++) {
        const int rows = static_cast<int>(std::min<int64_t>(16, search.queries - 16 * t));
        transpose(q + 16 * t * search.d, search.d, search.d, 0, rows, 16, 1.0f, query.get() + t * search.d * W);
    }
    for (int64_t i = 0; i < n; i++) {
        start[i] = i * total / n;
        size[i] = (i + 1) * total / n - start[i];
        place(block, i, i);
    }
    if (!search.center) look(n);
    std::copy(fresh.begin(), fresh.begin() + n, best.begin());
    for (int64_t round = 0; round < search.rounds; round++) {
        for (int64_t i = n - 1; i >= 0; i--) {  // from the last on, for halves of node i take places 2 i and 2 i + 1
            const int64_t half = size[i] / 2;
            start[2 * i + 1] = start[i] + half, size[2 * i + 1] = size[i] - half;
            start[2 * i] = start[i], size[2 * i] = half, best[2 * i] = best[i];
        }
        const int64_t every = search.center ? 1 : 2, skip = every - 1;  // a first half has the score of the whole
        for (int64_t i = skip; i < 2 * n; i += every) place(block, i / every, i);
        look(2 * n / every);
        for (int64_t i = skip; i < 2 * n; i += every) best[i] = fresh[i / every];
        for (int64_t i = 0; i < 2 * n; i++)
            if (size[i] == 0) best[i] = -INFINITY;
        keep();
    }
    std::copy(start.begin(), start.begin() + n, search.found + block * n);
}

// Let places[i] be the first row of a node's representative.
void Tree::place(int64_t block, int64_t i, int64_t node) {
    const int64_t candidate = start[node] + (search.center ? size[node] / 2 : 0);
    places[i] = search.first[block] + candidate * search.run * search.step;
}

// Let fresh[i] be the largest product of any query with any row of the run at places[i], for i < count.
void Tree::look(int64_t count) {
    std::fill(fresh.begin(), fresh.begin() + count, LEAST);
    for (int64_t t = 0; t < tiles; t++) raise(query.get() + t * search.d * W, count);
}

void Tree::raise(const Vec* tile, int64_t count) {
    const float* keys[CHUNK];
    const int64_t run = search.run;
    for (int64_t first = 0; first < count * run; first += CHUNK) {
        const int n = static_cast<int>(std::min<int64_t>(CHUNK, count * run - first));
        int64_t i = first / run, part = first % run;
        for (int j = 0; j < n; j++) {
            keys[j] = search.x + (places[i] + part * search.step) * search.d;
            if (++part == run) part = 0, i++;
        }
        all_scores<W>(tile, keys, n, search.d, scores.get());
        i = first / run, part = first % run;
        for (int j = 0; j < n; part = 0, i++) {
            Vec top = scores[j * W];
            for (; part < run && j < n; part++, j++)
                for (int a = 0; a < W; a++) top = larger(scores[j * W + a], top);
            for (int lane = 0; lane < LANES; lane++) fresh[i] = std::max(fresh[i], top[lane]);
        }
    }
}

// Keep the n best of 2 n nodes, of equal ones the first.
void Tree::keep() {
    const int64_t n = search.n;
    fresh = best;
    std::nth_element(fresh.begin(), fresh.begin() + n - 1, fresh.end(), std::greater<float>());
    const float last = fresh[n - 1];
    int64_t equal = n - std::count_if(fresh.begin(), fresh.begin() + n, [last](float x) { return x > last; }), kept = 0;
    for (int64_t i = 0; i < 2 * n; i++) {
        if (best[i] < last || (best[i] == last && equal-- <= 0)) continue;
        start[kept] = start[i], size[kept] = size[i], best[kept++] = best[i];
    }
}

}  // namespace

// Search for the blocks `begin` to `end` - 1. Returns 1 if there is no memory, else 0.
extern "C" int search(const Search* search, int64_t begin, int64_t end) try {
    Tree tree(*search);
    for (int64_t block = begin; block < end; block++) tree.descend(block);
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
