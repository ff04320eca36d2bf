// bench_cnn.cu -- training steps of the convolutional nets, how well they use the machine, what rescaling costs.
//
//     make bench                       builds, runs (beside PyTorch, where torch is installed), prints tables
//     build/cpu/dev/bench/bench_cnn    this program alone; CSV on stdout. Arguments: [seconds per measurement] [net]
//
// For every net, PyTorch-default init, SGD with momentum, random images:
//     step_ms             one training step (batch, forward, loss, backward, update); on a GPU by events over 64 steps
//     effective_gflops    the multiplications and additions of the direct algorithm over that time: Winograd does fewer
//     gemm_share          part of the step inside gemm();  gemm_gflops: what was really multiplied there over that part
//     ceiling_gflops      the best rate of gemm() on 1024^3, measured in the same run
//     model_mib           device memory of parameters, gradients, optimizer state, activations and scratch;  peak_mib:
//                         largest resident set of a process that runs this net alone (0 on a GPU)
//     rescale_ms          exact PathCond as the trainer calls it (diag(G) + solve + apply), from the initial weights
//                         each time; rescale_over_step128: over one training step at batch 128, measured in the same
//                         run
// Medians with p10 and p90, of at least 20 runs and one second. Not a test: it asserts nothing about time.
#define TESTING
#include "train_cnn.cu"
#include "bench.h"

// A trainer on random images.
static void prepare(trainer *t, const config *c, int channels, int size, int batch) {
    char err[256];
    memset(t, 0, sizeof *t);
    dataset d = random_data(batch > 256 ? batch : 256, channels, size, size, 10);
    t->c = c;
    t->ordered = -1;
    train_run_init(&t->run, "bench_cnn", VERSION, &c->train);
    train_set_length(&t->run, d.n);
    if (model_create(&t->m, c, channels, size, size, 10, batch, err, sizeof err)) {
        fprintf(stderr, "bench_cnn: %s\n", err);
        exit(1);
    }
    t->train = device_data_create(&d, 1);
    dataset_free(&d);
    model_init(&t->m, c);
}
static void release(trainer *t) {
    model_free(&t->m);
    device_data_free(&t->train);
}

// Multiplications and additions of the direct algorithm for one image: forward, and backward but for the gradient of
// the image.
static double direct_flops(const model *m) {
    double sum = 0;
    for (int k = 0; k < m->n_layers; k++) {
        const layer *l = &m->layers[k];
        if (l->kind == LAYER_CONV)
            sum += (l->input == IMAGE ? 2 : 3) * 2.0 * l->h * l->w * l->c * conv_columns(&l->conv);
    }
    return sum;
}

static void bench_net(const char *name, int which, int norm, int channels, int size, int batch, double at_least) {
    static trainer t;
    config c = default_config();
    rescale_report report;
    c.model = which;
    c.norm = norm;
    c.train.batch_size = batch;
    prepare(&t, &c, channels, size, batch);
    const timing rescale = time_rescale(&t, at_least, &report);  // first: training moves parameters and optimizer state
    const timing step = time_steps(&t, at_least);
    const double peak_mib = DEVICE_IS_GPU ? 0.0 : (double)log_peak_mib();
    gemm_context *g = &t.m.gemm;
    g->timed = 1;
    g->seconds = g->flops = 0;
    const double start = log_seconds();
    for (int i = 0; i < MIN_RUNS; i++) next_step(&t);
    device_synchronize();
    const double share = g->seconds / (log_seconds() - start), gemm_rate = g->flops / g->seconds;
    const double flops = batch * direct_flops(&t.m);
    g->timed = 0;
    const double mebibytes = model_mebibytes(&t.m), ceiling = gemm_ceiling(g);
    const long long parameters = (long long)train_parameter_count(&t.m.net);
    release(&t);
    c.train.batch_size = 128;
    prepare(&t, &c, channels, size, 128);
    const timing step128 = time_steps(&t, at_least);
    release(&t);
    printf("%s,%d,%lld,%.4f,%.4f,%.4f,%d,%.1f,%.3f,%.1f,%.1f,%.1f,%.1f,", name, batch, parameters, 1e3 * step.median,
           1e3 * step.p10, 1e3 * step.p90, step.runs, flops / step.median * 1e-9, share, gemm_rate * 1e-9,
           ceiling * 1e-9, mebibytes, peak_mib);
    printf("%.4f,%.4f,%.4f,%d,%.4f,%.4f,%.4f,%d,%d,%.3g,%.3g,%.10g,%.10g,", 1e3 * rescale.median, 1e3 * rescale.p10,
           1e3 * rescale.p90, rescale.runs, 1e3 * report.seconds_diag_g, 1e3 * report.seconds_solve,
           1e3 * report.seconds_apply, report.iterations, report.cg_steps, report.grad_inf, report.grad_tolerance,
           report.objective_before, report.objective_after);
    printf("%.4f,%.4f\n", 1e3 * step128.median, rescale.median / step128.median);
    fflush(stdout);
}

int main(int argc, char **argv) {
    const double at_least = argc > 1 ? atof(argv[1]) : 1;
    message_guard("bench_cnn");
    device_require("bench_cnn");
    static const struct {
        const char *name;
        int model, norm, channels, size, batch;
    } net[] = {{"allconv", MODEL_ALLCONV, NORM_NONE, 3, 32, DEVICE_IS_GPU ? 512 : 32},
               {"allconv-bn", MODEL_ALLCONV, NORM_BATCH, 3, 32, DEVICE_IS_GPU ? 512 : 32},
               {"resnet18", MODEL_RESNET18, NORM_BATCH, 3, 32, DEVICE_IS_GPU ? 512 : 32},
               {"small", MODEL_SMALL, NORM_NONE, 1, 28, 128}};
    if (argc < 3) {  // a process for each net, so that the peaks of memory are its own
        char device[256];
        device_describe(device, sizeof device);
        printf("# %s, %s, SGD with momentum\n", device, gemm_backend());
        printf("net,batch,parameters,step_ms,step_p10,step_p90,step_runs,effective_gflops,gemm_share,gemm_gflops,"
               "ceiling_gflops,model_mib,peak_mib,rescale_ms,rescale_p10,rescale_p90,rescale_runs,diag_g_ms,solve_ms,"
               "apply_ms,newton_steps,cg_steps,grad_inf,grad_tolerance,F_start,F_exact,step128_ms,"
               "rescale_over_step128\n");
        fflush(stdout);
    }
    for (size_t i = 0; i < sizeof net / sizeof *net; i++) {
        char command[4096];
        if (argc > 2 && strcmp(argv[2], net[i].name)) continue;
        if (argc > 2) {
            bench_net(net[i].name, net[i].model, net[i].norm, net[i].channels, net[i].size, net[i].batch, at_least);
            continue;
        }
        snprintf(command, sizeof command, "'%s' %g %s", argv[0], at_least, net[i].name);
        if (system(command)) return 1;
    }
    return 0;
}
