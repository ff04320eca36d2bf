// bench_gpt.c -- the training step of train_gpt_style.c: time, throughput, share of its matrix products' rate, memory.
//
//     bench_gpt [NAME [SECONDS]]          (make bench, and dev/bench/gpt.sh beside its peers)
//         no name: 6 layers, 6 heads, 384 channels, T 256, B 8, vocabulary 256, one row
//         tiny     the tiny preset, B 32                 124M     the 124M preset, B 4, T 64
//         layers   no name's model with 2, 4, 8 and 16 layers
//         context  no name's model with T 128 to 2,048, always 2,048 tokens a step
//     SECONDS: at least so long for each row (default 10)
// CSV on stdout. A row alternates between blocks of whole steps and blocks of each of the step's matrix products alone,
// on operands of the same shapes, so that other work on the machine meets both. Medians, p10 and p90 over steps.
//     step_gflops        floating-point operations of a step (step_flops in train_gpt_style.c) / median step
//     products_gflops    the step's products alone: operations / sum of their median times
//     share              step_gflops / products_gflops
//     gemm_gflops        the same products inside the steps, where their operands are not in the cache
//     gemm_1024_gflops   the product of two 1024 x 1024 matrices in the same run, median
//     attention_ms       all of attention, forward and backward, alone
//     peak_mib           largest resident size of the process so far
// Checks that the loss of the untrained model is ln(vocabulary), and after the timing that training lowered it.
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
    const shape all[3] = {
        {0, 1, rows, out, in, count, {0}},
        {1, 0, out, in, rows, count, {0}},
        {0, 0, rows, in, out, count, {0}},
    };
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

// The products of one step; returns how many shapes there are.
static int step_products(shape *s, const config *c, int rows) {
    const int C = c->channels, L = c->layers;
    int n = 0;
    n = add_linear(s, n, rows, C, 3 * C, L);
    n = add_linear(s, n, rows, C, C, L);
    n = add_linear(s, n, rows, C, 4 * C, L);
    n = add_linear(s, n, rows, 4 * C, C, L);
    return add_linear(s, n, rows, C, c->vocabulary, 1);
}
// Elements of the largest operand.
static size_t largest_operand(const shape *s, int n) {
    size_t most = 0;
    for (int i = 0; i < n; i++) {
        const size_t M = (size_t)s[i].M, N = (size_t)s[i].N, K = (size_t)s[i].K, sizes[3] = {M * K, K * N, M * N};
        for (int k = 0; k < 3; k++) most = sizes[k] > most ? sizes[k] : most;
    }
    return most;
}

// Tokens that a model can learn to foresee: the next is a function of the last.
static void draw_tokens(model *m, int n, int V) {
    for (int i = 0; i < n; i++) {
        m->tokens[i] = (int)rng_below(rng_word_at(1, rng_stream(RNG_TEST, 1), (uint64_t)i), (uint32_t)V);
        m->targets[i] = (m->tokens[i] * 3 + 1) % V;
    }
}
// One training step; returns the mean loss.
static double train_once(model *m, const config *c, int B, int64_t step) {
    const int n = B * c->context;
    zero_gradients(m);
    const double loss = forward_backward(m, B, c->context, 1.0 / n) / n;
    update(m, c, 3e-4, step);
    return loss;
}

// Every product alone, four times; the first warms the caches.
static void time_products(model *m, shape *shapes, int n, const real *A, const real *W, real *Y) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < 4; k++) {
            shape *s = &shapes[i];
            const int lda = s->trans_a ? s->M : s->K;
            const int ldw = s->trans_b ? s->K : s->N;
            const double t = log_seconds();
            real_product(&m->gemm, s->trans_a, s->trans_b, s->M, s->N, s->K, 1, A, lda, W, ldw, 0, Y, s->N);
            if (k > 0) add_sample(&s->seconds, log_seconds() - t);
        }
}
static void time_attention(model *m, const config *c, int B, samples *to) {
    const int last = c->layers - 1;
    for (int k = 0; k < 2; k++) {
        const double t = log_seconds();
        attention(m, &m->a[last], B, c->context, 0);
        attention_backward(m, &m->a[last], m->dw.block[last].qkv_b, B, c->context);
        add_sample(to, log_seconds() - t);
    }
}

// shapes: n of a step and, behind them, 1024 x 1024 x 1024.
static void print_row(const char *name, model *m, const config *c, int B, samples *steps, shape *shapes, int n,
                      samples *attentions, long peak_mib) {
    const int T = c->context, L = c->layers;
    double flops = 0, seconds = 0;
    for (int i = 0; i < n; i++) {
        flops += 2.0 * shapes[i].M * shapes[i].N * shapes[i].K * shapes[i].count;
        seconds += shapes[i].count * timing_of(&shapes[i].seconds).median;
    }
    const timing t = timing_of(steps);
    const double rate = 1e-9 * step_flops(m, B, T) / t.median, products = 1e-9 * flops / seconds;
    const double square = 2e-9 * 1024 * 1024 * 1024 / timing_of(&shapes[n].seconds).median;
    printf("%s,%d,%d,%d,%d,%d,%d,%d,%d,%.2f,%.2f,%.2f,%.0f,", name, L, c->heads, c->channels, T, B, c->vocabulary,
           m->threads, steps->n, 1e3 * t.median, 1e3 * t.p10, 1e3 * t.p90, B * T / t.median);
    printf("%.0f,%.0f,%.3f,%.0f,%.0f,%.2f,%ld\n", rate, products, rate / products,
           1e-9 * m->gemm.flops / m->gemm.seconds, square, 1e3 * L * timing_of(attentions).median, peak_mib);
    fflush(stdout);
}

static int bench(const char *name, const config *c, int B, double at_least) {
    static model m;
    static shape shapes[MAX_PRODUCTS];
    static samples steps, attentions;
    char err[256];
    double first = 0, last = 0;
    int64_t step = 0;
    if (model_create(&m, c, B, 1, err, sizeof err)) {
        fprintf(stderr, "bench_gpt: %s\n", err);
        return 1;
    }
    model_init(&m, c);
    draw_tokens(&m, B * c->context, c->vocabulary);
    memset(shapes, 0, sizeof shapes);
    steps.n = attentions.n = 0;
    const int n = step_products(shapes, c, B * c->context);
    shapes[n].M = shapes[n].N = shapes[n].K = 1024;
    const size_t widest = largest_operand(shapes, n + 1);
    const double start = log_seconds();
    first = train_once(&m, c, B, step++);
    last = train_once(&m, c, B, step++);
    const long peak_mib = log_peak_mib();  // of a step, before the operands of the single products are there
    if (!(fabs(first / log(c->vocabulary) - 1) < 0.05)) {
        fprintf(stderr, "bench_gpt: the first loss is %g, not ln %d\n", first, c->vocabulary);
        return 1;
    }
    real *A = alloc_reals(widest), *W = alloc_reals(widest), *Y = alloc_reals(widest);
    for (size_t i = 0; i < widest; i++) {
        A[i] = (real)((double)(i % 1013) / 506 - 1);
        W[i] = (real)((double)(i % 997) / 498 - 1);
    }
    for (int round = 0; round < 4 || log_seconds() - start < at_least; round++) {
        m.gemm.timed = 1;
        for (int k = 0; k < 5; k++) {
            const double t = log_seconds();
            last = train_once(&m, c, B, step++);
            add_sample(&steps, log_seconds() - t);
        }
        m.gemm.timed = 0;
        time_products(&m, shapes, n + 1, A, W, Y);
        time_attention(&m, c, B, &attentions);
    }
    if (!(last < first)) {
        fprintf(stderr, "bench_gpt: the loss went from %g to %g\n", first, last);
        return 1;
    }
    print_row(name, &m, c, B, &steps, shapes, n, &attentions, peak_mib);
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
    printf("name,layers,heads,channels,context,batch,vocabulary,threads,runs,step_ms,p10,p90,tokens_per_s,"
           "step_gflops,products_gflops,share,gemm_gflops,gemm_1024_gflops,attention_ms,peak_mib\n");
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
    for (int x = !strcmp(name, "layers") ? 2 : 128;
         !strcmp(name, "layers") ? x <= 16 : !strcmp(name, "context") && x <= 2048; x *= 2) {
        if (!strcmp(name, "layers")) c.layers = x;
        else c.context = x;
        snprintf(row, sizeof row, "%s %d", name, x);
        if (bench(row, &c, 2048 / c.context, at_least)) return 1;
    }
    return !strcmp(name, "small") ? bench(name, &c, 8, at_least) : strcmp(name, "layers") && strcmp(name, "context");
}
