// bench_gpt.c -- the training step of train_gpt_style.c: time, throughput, its share of the rate of its own matrix products, memory.
//
//     bench_gpt [NAME [SECONDS]]          (make bench, and dev/bench/gpt.sh beside its peers)
//         no name: 6 layers, 6 heads, 384 channels, T 256, B 8, vocabulary 256, one row
//         tiny     the tiny preset, B 32                 124M     the 124M preset, B 4, T 64
//         layers   that model with 2, 4, 8 and 16 layers   context  that model with T 128 to 2,048, always 2,048 tokens a step
//     SECONDS: at least so long for each row (default 10)
// CSV on stdout. A row alternates between blocks of whole steps and blocks of each of the step's matrix products alone, on
// operands of the same shapes, so that other work on the machine meets both. Medians, p10 and p90 over steps.
//     step_gflops        floating-point operations of a step (step_flops in train_gpt_style.c) / median step
//     products_gflops    the step's products alone: operations / sum of their median times
//     share              step_gflops / products_gflops
//     gemm_gflops        the same products inside the steps, where their operands are not in the cache
//     gemm_1024_gflops   the product of two 1024 x 1024 matrices in the same run, median
//     attention_ms       all of attention, forward and backward, alone
//     peak_mib           largest resident size of the process so far
// Checks before it times anything that the loss of the untrained model is ln(vocabulary), and afterwards that training lowered it.
#define TESTING
#include "../../train_gpt_style.c"
#include "../timing.h"


enum { MAX_SAMPLES = 4096, MAX_PRODUCTS = 16 };

typedef struct samples {
    int n;
    double v[MAX_SAMPLES];
} samples;

static void add_sample(samples *s, double v) {
    if (s->n < MAX_SAMPLES) s->v[s->n++] = v;
}
static timing timing_of(samples *s) { return summarise(s->v, s->n); }

// One shape of product and how often a step has it.
typedef struct shape {
    int trans_a, trans_b, M, N, K, count;
    samples seconds;
} shape;

// The three products of a linear layer: forward, and the gradients of its weights and of its input.
static int add_linear(shape *s, int n, int rows, int in, int out, int count) {
    const shape all[3] = {{0, 1, rows, out, in, count, {0}}, {1, 0, out, in, rows, count, {0}}, {0, 0, rows, in, out, count, {0}}};
    memcpy(s + n, all, sizeof all);
    return n + 3;
}

// One pass over m->tokens and m->targets: adds the gradient of scale * (sum of losses). Returns the sum of losses.
static double forward_backward(model *m, int B, int T, double scale) {
    double hits = 0;
    forward(m, B, T, 0);
    const double loss = loss_forward_backward(m, B * T, scale, &hits);
    backward(m, B, T);
    m->accumulate = 1;
    return loss;
}

static int bench(const char *name, const config *c, int B, double at_least) {
    static model m;
    static shape shapes[MAX_PRODUCTS], square;
    static samples steps, attentions;
    char err[256];
    const int T = c->context, N = B * T, C = c->channels, L = c->layers, V = c->vocabulary;
    int n_shapes = 0;
    if (model_create(&m, c, B, 1, err, sizeof err)) {
        fprintf(stderr, "bench_gpt: %s\n", err);
        return 1;
    }
    model_init(&m, c);
    for (int i = 0; i < N; i++) {
        m.tokens[i] = (int)rng_below(rng_word_at(1, rng_stream(RNG_TEST, 1), (uint64_t)i), (uint32_t)V);
        m.targets[i] = (m.tokens[i] * 3 + 1) % V;
    }
    memset(shapes, 0, sizeof shapes);
    memset(&square, 0, sizeof square);
    steps.n = attentions.n = 0;
    n_shapes = add_linear(shapes, n_shapes, N, C, 3 * C, L);
    n_shapes = add_linear(shapes, n_shapes, N, C, C, L);
    n_shapes = add_linear(shapes, n_shapes, N, C, 4 * C, L);
    n_shapes = add_linear(shapes, n_shapes, N, 4 * C, C, L);
    n_shapes = add_linear(shapes, n_shapes, N, C, V, 1);
    square.M = square.N = square.K = 1024;
    size_t widest = 1024 * 1024;
    for (int i = 0; i < n_shapes; i++) {
        const size_t sizes[3] = {(size_t)shapes[i].M * (size_t)shapes[i].K, (size_t)shapes[i].K * (size_t)shapes[i].N, (size_t)shapes[i].M * (size_t)shapes[i].N};
        for (int k = 0; k < 3; k++) widest = sizes[k] > widest ? sizes[k] : widest;
    }
    const double start = log_seconds();
    double first = 0, last = 0;
    int64_t step = 0;
    // Memory of a step, before the operands of the single products are there.
    for (int warm = 0; warm < 2; warm++, step++) {
        zero_gradients(&m);
        last = forward_backward(&m, B, T, 1.0 / N) / N;
        if (warm == 0) first = last;
        update(&m, c, 3e-4, step);
    }
    const long peak_mib = log_peak_mib();
    if (!(fabs(first / log(V) - 1) < 0.05)) {
        fprintf(stderr, "bench_gpt: the first loss is %g, not ln %d\n", first, V);
        return 1;
    }
    real *A = alloc_reals(widest), *W = alloc_reals(widest), *Y = alloc_reals(widest);
    for (size_t i = 0; i < widest; i++) {
        A[i] = (real)((double)(i % 1013) / 506 - 1);
        W[i] = (real)((double)(i % 997) / 498 - 1);
    }
    for (int round = 0; round < 4 || log_seconds() - start < at_least; round++) {
        for (int k = 0; k < 5; k++, step++) {
            m.gemm.timed = 1;
            const double t = log_seconds();
            zero_gradients(&m);
            last = forward_backward(&m, B, T, 1.0 / N) / N;
            update(&m, c, 3e-4, step);
            add_sample(&steps, log_seconds() - t);
            m.gemm.timed = 0;
        }
        for (int i = 0; i <= n_shapes; i++)
            for (int k = 0; k < 4; k++) {
                shape *s = i < n_shapes ? &shapes[i] : &square;
                const double t = log_seconds();
                product(&m.gemm, s->trans_a, s->trans_b, s->M, s->N, s->K, 1, A, s->trans_a ? s->M : s->K, W, s->trans_b ? s->K : s->N, 0, Y, s->N);
                if (k > 0) add_sample(&s->seconds, log_seconds() - t);
            }
        for (int k = 0; k < 2; k++) {
            const double t = log_seconds();
            attention(&m, &m.a[L - 1], B, T, 0);
            attention_backward(&m, &m.a[L - 1], m.dw.block[L - 1].qkv_b, B, T);
            add_sample(&attentions, log_seconds() - t);
        }
    }
    if (!(last < first)) {
        fprintf(stderr, "bench_gpt: the loss went from %g to %g\n", first, last);
        return 1;
    }
    double flops = 0, seconds = 0;
    for (int i = 0; i < n_shapes; i++) {
        flops += 2.0 * shapes[i].M * shapes[i].N * shapes[i].K * shapes[i].count;
        seconds += shapes[i].count * timing_of(&shapes[i].seconds).median;
    }
    const timing t = timing_of(&steps);
    const double rate = 1e-9 * step_flops(&m, B, T) / t.median, products = 1e-9 * flops / seconds;
    printf("%s,%d,%d,%d,%d,%d,%d,%d,%d,%.2f,%.2f,%.2f,%.0f,%.0f,%.0f,%.3f,%.0f,%.0f,%.2f,%ld\n", name, L, c->heads, C, T, B, V, m.threads, steps.n, 1e3 * t.median,
           1e3 * t.p10, 1e3 * t.p90, N / t.median, rate, products, rate / products,
           1e-9 * m.gemm.flops / m.gemm.seconds, 2e-9 * 1024 * 1024 * 1024 / timing_of(&square.seconds).median, 1e3 * L * timing_of(&attentions).median, peak_mib);
    fflush(stdout);
    free(A);
    free(W);
    free(Y);
    model_free(&m);
    return 0;
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "small";
    message_guard("bench_gpt");
    const double at_least = argc > 2 ? atof(argv[2]) : 10;
    char device[256], row[32];
    config c = default_config();
    device_describe(device, sizeof device);
    printf("# %s, %s\n", device, gemm_backend());
    printf("name,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,step_gflops,products_gflops,share,"
           "gemm_gflops,gemm_1024_gflops,attention_ms,peak_mib\n");
    c.layers = 6;
    c.heads = 6;
    c.channels = 384;
    c.context = 256;
    c.vocabulary = 256;
    if (!strcmp(name, "tiny")) {
        c.layers = 4;
        c.heads = 4;
        c.channels = 128;
        c.context = 128;
        return bench(name, &c, 32, at_least);
    }
    if (!strcmp(name, "124M")) {
        c.layers = 12;
        c.heads = 12;
        c.channels = 768;
        c.context = 64;
        c.vocabulary = 50257;
        return bench(name, &c, 4, at_least);
    }
    for (int x = !strcmp(name, "layers") ? 2 : 128; !strcmp(name, "layers") ? x <= 16 : !strcmp(name, "context") && x <= 2048; x *= 2) {
        if (!strcmp(name, "layers")) c.layers = x;
        else c.context = x;
        snprintf(row, sizeof row, "%s %d", name, x);
        if (bench(row, &c, 2048 / c.context, at_least)) return 1;
    }
    return !strcmp(name, "small") ? bench(name, &c, 8, at_least) : strcmp(name, "layers") && strcmp(name, "context");
}
