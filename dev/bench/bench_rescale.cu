// bench_rescale.cu -- the cost of exact rescaling beside one training step, and how well that step uses the machine.
//
//     make bench                           builds, runs, writes dev/bench/results/*.csv and prints tables
//     build/cpu/dev/bench/bench_rescale   this program alone; CSV on stdout. Arguments: [seconds per measurement] [net]
//
// For every net, PyTorch-default init, batch 128, SGD, random data:
//     step_ms        one training step (batch, forward, loss, backward, update); on a GPU by events over 64 steps
//     rescale_ms     exact PathCond as the trainer calls it (diag(G) + solve + apply), always from the initial weights
//     published_ms   the published algorithm, 10 sweeps unit by unit over all parameters, in plain C (this file),
//                    diag(G) not included; F_published and F_exact are the objectives reached, from the same diag(G)
//     arena_bytes    working memory of rescale_run
//     gemm_share     part of the step's time inside gemm()
//     step_gflops    2 m n k over the step's time;  gemm_gflops: over the time inside gemm()
//     ceiling_gflops the best rate of gemm() on 1024^3, measured in the same run
// Medians with p10 and p90, of at least 20 runs and one second. Not a test: it asserts nothing about time.
#define TESTING
#include "train_mlp.cu"
#include "bench.h"

// The published algorithm: sweeps over the hidden units in order, each minimised in closed form with all others fixed,
// the energies of all parameters stored and updated one by one. a[l], d[l]: squared forward and backward vectors.
// Returns F.
static double published_sweeps(const int *dim, int L, double *const *a, double *const *d, int sweeps, double *seconds) {
    double *E[MAX_LAYERS], *bias[MAX_LAYERS], total = 0, linear = 0, p = 0;
    for (int l = 0; l < L; l++) {  // E[l][o][i] = energy of weight [o][i], now; bias[l][o]
        E[l] = (double *)malloc((size_t)dim[l] * (size_t)dim[l + 1] * sizeof(double));
        bias[l] = (double *)malloc((size_t)dim[l + 1] * sizeof(double));
        for (int o = 0; o < dim[l + 1]; o++) {
            for (int i = 0; i < dim[l]; i++) total += E[l][(size_t)o * (size_t)dim[l] + i] = d[l][o] * a[l][i];
            total += bias[l][o] = d[l][o];
        }
        p += ((double)dim[l] + 1) * dim[l + 1];
    }
    const double start = log_seconds();
    for (int s = 0; s < sweeps; s++)
        for (int l = 0; l < L - 1; l++) {
            const int in = dim[l], units = dim[l + 1], out = dim[l + 2];
            const double n = (double)out - in - 1, c = n / p;
            for (int h = 0; h < units; h++) {
                double enter = bias[l][h], leave = 0;
                double *row = E[l] + (size_t)h * (size_t)in, *column = E[l + 1] + h;
                for (int i = 0; i < in; i++) enter += row[i];
                for (int o = 0; o < out; o++) leave += column[(size_t)o * (size_t)units];
                // stationarity: (leave x - enter / x) = c (rest + leave x + enter / x), a quadratic in x
                const double rest = total - enter - leave, A = leave * (1 - c), B = c * rest, C = enter * (1 + c);
                const double x = (B + sqrt(B * B + 4 * A * C)) / (2 * A);
                for (int i = 0; i < in; i++) row[i] /= x;
                for (int o = 0; o < out; o++) column[(size_t)o * (size_t)units] *= x;
                bias[l][h] /= x;
                total = rest + leave * x + enter / x;
                linear += n * log(x);
            }
        }
    *seconds = log_seconds() - start;
    for (int l = 0; l < L; l++) {
        free(E[l]);
        free(bias[l]);
    }
    return p * log(total) - linear;
}

// The sweeps on the current weights; squared forward and backward vectors by plain loops in double on a host copy.
static double time_published(const model *m, double *seconds) {
    const int L = m->n_layers, *dim = m->dim;
    double *a[MAX_LAYERS], *d[MAX_LAYERS];
    float *host = train_host_copy(m->net.params, m->net.n_params);
    for (int l = 0; l < L; l++) {
        a[l] = (double *)malloc((size_t)dim[l] * sizeof(double));
        d[l] = (double *)malloc((size_t)dim[l + 1] * sizeof(double));
        for (int i = 0; i < dim[0] && l == 0; i++) a[0][i] = 1;
    }
    for (int l = 0; l < L - 1; l++) {
        const float *w = host + (m->w[l] - m->net.params), *b = host + (m->b[l] - m->net.params);
        for (int o = 0; o < dim[l + 1]; o++) {
            a[l + 1][o] = (double)b[o] * b[o];
            for (int i = 0; i < dim[l]; i++)
                a[l + 1][o] += (double)w[(size_t)o * dim[l] + i] * w[(size_t)o * dim[l] + i] * a[l][i];
        }
    }
    for (int o = 0; o < dim[L]; o++) d[L - 1][o] = 1;
    for (int l = L - 1; l > 0; l--) {
        const float *w = host + (m->w[l] - m->net.params);
        for (int i = 0; i < dim[l]; i++) d[l - 1][i] = 0;
        for (int o = 0; o < dim[l + 1]; o++)
            for (int i = 0; i < dim[l]; i++)
                d[l - 1][i] += (double)w[(size_t)o * dim[l] + i] * w[(size_t)o * dim[l] + i] * d[l][o];
    }
    const double F = published_sweeps(dim, L, a, d, 10, seconds);
    for (int l = 0; l < L; l++) {
        free(a[l]);
        free(d[l]);
    }
    free(host);
    return F;
}

static void bench_net(const char *name, const int *dim, int n_dims, int task, double at_least) {
    static trainer t;
    char err[256];
    config c = default_config();
    rescale_report report;
    c.task = task;
    memset(&t, 0, sizeof t);
    dataset d = random_data(2048, 1, 1, dim[0], task == TASK_CLASSIFY ? dim[n_dims - 1] : 10);
    t.c = &c;
    t.ordered = -1;
    train_run_init(&t.run, "bench_rescale", VERSION, &c.train);
    train_set_length(&t.run, d.n);
    if (model_create(&t.m, dim, n_dims - 1, &c, t.run.batch, err, sizeof err)) exit(1);
    t.train = device_data_create(&d, task == TASK_CLASSIFY);
    dataset_free(&d);
    model_init(&t.m, &c);

    double published_seconds;
    const double F_published = time_published(&t.m, &published_seconds);
    const timing rescale = time_rescale(&t, at_least, &report);
    static rescale_group group[MAX_LAYERS];
    static rescale_tensor tensors[4 * MAX_LAYERS];
    const rescale_net net = {group, t.m.n_layers - 1, tensors, describe(&t.m, group, tensors)};
    const rescale_options o = rescale_default_options();
    const timing step = time_steps(&t, at_least);
    t.m.gemm.timed = 1;
    t.m.gemm.seconds = t.m.gemm.flops = 0;
    const double start = log_seconds(), fixed_steps = step.runs;
    for (int i = 0; i < (int)fixed_steps; i++) next_step(&t);
    device_synchronize();
    const double timed = log_seconds() - start, flops = t.m.gemm.flops / fixed_steps;
    t.m.gemm.timed = 0;
    const double gemm_rate = t.m.gemm.flops / t.m.gemm.seconds * 1e-9, ceiling = gemm_ceiling(&t.m.gemm) * 1e-9;
    printf("%s,%lld,%.4f,%.4f,%.4f,%d,%.4f,%.4f,%.4f,%d,%.4f,", name, (long long)train_parameter_count(&t.m.net),
           1e3 * step.median, 1e3 * step.p10, 1e3 * step.p90, step.runs, 1e3 * rescale.median, 1e3 * rescale.p10,
           1e3 * rescale.p90, rescale.runs, rescale.median / step.median);
    printf("%.4f,%.4f,%.4f,%d,%.3g,%.3g,%.2f,", 1e3 * report.seconds_diag_g, 1e3 * report.seconds_solve,
           1e3 * report.seconds_apply, report.iterations, report.grad_inf, report.grad_tolerance,
           1e3 * published_seconds);
    printf("%.10g,%.10g,%.10g,%zu,%.3f,%.1f,%.1f,%.1f\n", report.objective_before, F_published, report.objective_after,
           rescale_arena_bytes(&net, &o), t.m.gemm.seconds / timed, flops / step.median * 1e-9, gemm_rate, ceiling);
    fflush(stdout);
    model_free(&t.m);
    device_data_free(&t.train);
}

int main(int argc, char **argv) {
    const double at_least = argc > 1 ? atof(argv[1]) : 1;
    const char *only = argc > 2 ? argv[2] : NULL;
    message_guard("bench_rescale");
    device_require("bench_rescale");
    char device[256];
    device_describe(device, sizeof device);
    printf("# %s, %s, batch 128, SGD\n", device, gemm_backend());
    printf("net,parameters,step_ms,step_p10,step_p90,step_runs,rescale_ms,rescale_p10,rescale_p90,rescale_runs,"
           "rescale_over_step,diag_g_ms,solve_ms,apply_ms,newton_steps,grad_inf,grad_tolerance,published_ms,F_start,"
           "F_published,F_exact,arena_bytes,gemm_share,step_gflops,gemm_gflops,ceiling_gflops\n");
    const int a[] = {784, 512, 512, 512, 10}, b[] = {3072, 500, 500, 500, 10};
    const int c[] = {3072, 500, 500, 500, 500, 500, 10};
    const int d[] = {3072, 500, 500, 500, 500, 500, 500, 500, 500, 10}, e[] = {784, 1000, 100, 30, 100, 1000, 784};
    const int f[] = {2048, 2048, 2048, 2048, 2048, 2048, 10};
    const struct {
        const char *name;
        const int *dim;
        int n_dims, task;
    } nets[] = {{"784-512x3-10", a, 5, TASK_CLASSIFY},
                {"3072-500x3-10", b, 5, TASK_CLASSIFY},
                {"3072-500x5-10", c, 7, TASK_CLASSIFY},
                {"3072-500x8-10", d, 10, TASK_CLASSIFY},
                {"784-1000-100-30-100-1000-784", e, 7, TASK_AUTOENCODE},
                {"2048x5-10", f, 7, TASK_CLASSIFY}};
    int found = 0;
    for (size_t i = 0; i < sizeof nets / sizeof *nets; i++) {
        if (only && strcmp(only, nets[i].name)) continue;
        bench_net(nets[i].name, nets[i].dim, nets[i].n_dims, nets[i].task, at_least);
        found = 1;
    }
    if (found) return 0;
    fprintf(stderr, "bench_rescale: no net is called '%s'\n", only);
    return 2;
}
