// test_rescale_device.cu -- rescale.cuh in float: device memory against host memory, and what only float can show.
//
//     CPU:  the Makefile passes test/test_rescale_device.cu and rescale.cuh through common/cu2cpp.sh into build/cpu/;
//           c++ -std=c++17 -O2 -fopenmp -Ibuild/cpu -I. -Itest -x c++ build/cpu/test/test_rescale_device.cu -lm
//     GPU:  nvcc -std=c++17 -arch=native -I. -Itest test/test_rescale_device.cu
//
// Every description is solved twice from the same start, once on host memory and once on device memory: u, the report
// and all parameters and optimizer state must agree to rounding. test_rescale.c has the references in double precision.
// Exit 77 without a GPU in the CUDA build.
#include "common/cuda_common.h"

#include "rescale.cuh"

#include "test.h"

enum { MAX_LAYERS = 16, MAX_TENSORS = 64, CHUNK = 64 };

static size_t tensor_size(const rescale_tensor *t) { return (size_t)t->n_out * (size_t)t->n_in * (size_t)t->kernel; }

// ---------------------------------------------------------------------------------------------------------------
// A network with all its arrays in one piece of memory, so that it exists on the host and on the device

enum { DATA, MOMENT1, MOMENT2, FULL_G, REFERENCE, MEAN, VAR, N_ARRAYS };

typedef struct network {
    rescale_group group[MAX_LAYERS];
    rescale_tensor tensor[MAX_TENSORS];  // data and the like are set by bind
    char name[MAX_TENSORS][16];
    int n_groups, n_tensors;
    unsigned has[MAX_TENSORS];  // bit per array
    size_t at[MAX_TENSORS][N_ARRAYS], floats;
    float *start;               // [floats] all arrays at the start
} network;

// Adds a tensor; `has` says which arrays it comes with besides DATA.
static rescale_tensor *add(network *n, const char *name, rescale_tensor t, unsigned has) {
    const int i = n->n_tensors++;
    snprintf(n->name[i], sizeof n->name[i], "%s%d", name, i);
    n->tensor[i] = t;
    n->has[i] = has | 1u << DATA;
    for (int k = 0; k < N_ARRAYS; k++)
        if (n->has[i] >> k & 1) {  // odd alignment on purpose
            n->at[i][k] = n->floats;
            n->floats += tensor_size(&t) + 3;
        }
    return &n->tensor[i];
}

// Points the description into `memory`, laid out like n->start.
static rescale_net bind(network *n, float *memory) {
    for (int i = 0; i < n->n_tensors; i++) {
        rescale_tensor *t = &n->tensor[i];
        float *array[N_ARRAYS];
        t->name = n->name[i];
        for (int k = 0; k < N_ARRAYS; k++) array[k] = n->has[i] >> k & 1 ? memory + n->at[i][k] : NULL;
        t->data = array[DATA];
        t->moment1 = array[MOMENT1];
        t->moment2 = array[MOMENT2];
        t->g = array[FULL_G];
        t->reference_each = array[REFERENCE];
        t->mean = array[MEAN];
        t->var = array[VAR];
    }
    rescale_net net = {n->group, n->n_groups, n->tensor, n->n_tensors};
    return net;
}

// An element's initial value: weights within `width`, gains around 1, moments and means of any sign, else positive.
static double initial_value(int array, int role, double width) {
    const double v = test_random();
    if (array == DATA) return role == RESCALE_GAIN ? 1 + 0.3 * v : width * v;
    if (array == MOMENT1 || array == MEAN) return v;
    if (array == FULL_G && v < -0.98) return 0;
    return exp(1.5 * v);
}

// Fills all arrays: weights uniform within scale / sqrt(fan_in), the rest positive where it has to be.
static void fill_network(network *n, double scale) {
    n->start = (float *)calloc(n->floats, sizeof(float));
    for (int i = 0; i < n->n_tensors; i++) {
        const rescale_tensor *t = &n->tensor[i];
        const double width = t->role == RESCALE_WEIGHT ? scale / sqrt((double)t->n_in * t->kernel) : 0.1;
        for (int k = 0; k < N_ARRAYS; k++)
            for (size_t j = 0; n->has[i] >> k & 1 && j < tensor_size(t); j++)
                n->start[n->at[i][k] + j] = (float)initial_value(k, t->role, width);
    }
}

// An MLP of n_layers linear layers; bn: BatchNorm behind the hidden ones; has: extra arrays of every tensor.
static network make_mlp(const int *dims, int n_layers, int bn, unsigned has, double scale) {
    network n;
    memset(&n, 0, sizeof n);
    for (int l = 0; l < n_layers; l++) {
        const int last = l + 1 == n_layers, group = last ? RESCALE_NONE : l;
        const int enters = bn ? RESCALE_NONE : group;
        if (!last) n.group[n.n_groups++] = rescale_units("hidden", dims[l + 1], RESCALE_RELU);
        add(&n, "w", rescale_weight("", NULL, dims[l + 1], dims[l], 1, enters, l > 0 ? l - 1 : RESCALE_NONE), has);
        add(&n, "b", rescale_bias("", NULL, dims[l + 1], enters), has);
        if (last || !bn) continue;
        add(&n, "gamma", rescale_gain("", NULL, dims[l + 1], group, NULL, NULL, 1e-5), has | 1u << MEAN | 1u << VAR);
        add(&n, "beta", rescale_bias("", NULL, dims[l + 1], group), has);
    }
    fill_network(&n, scale);
    return n;
}

// Convolutions with a full g: 3x3 kernels, a residual stream, a flattened linear layer with a rank-one g.
static network make_conv(unsigned has) {
    network n;
    memset(&n, 0, sizeof n);
    static const int channels[] = {24, 40, 33};
    for (int k = 0; k < 3; k++) n.group[n.n_groups++] = rescale_units("channels", channels[k], RESCALE_RELU);
    const unsigned full = has | 1u << FULL_G;
    add(&n, "stem", rescale_weight("", NULL, 24, 3, 9, 0, RESCALE_NONE), full);
    add(&n, "bias", rescale_bias("", NULL, 24, 0), full);
    add(&n, "up", rescale_weight("", NULL, 40, 24, 9, 1, 0), full);
    add(&n, "down", rescale_weight("", NULL, 24, 40, 1, 0, 1), full);
    add(&n, "next", rescale_weight("", NULL, 33, 24, 9, 2, 0), full);
    rescale_tensor *t = add(&n, "fc", rescale_weight("", NULL, 10, 33, 16, RESCALE_NONE, 2), has);
    double *out = (double *)malloc((10 + 33 * 16) * sizeof(double));  // rank one: host vectors
    for (int i = 0; i < 10 + 33 * 16; i++) out[i] = exp(test_random());
    t->g_out = out;
    t->g_in = out + 10;
    add(&n, "out", rescale_bias("", NULL, 10, RESCALE_NONE), full);
    fill_network(&n, 1);
    return n;
}

static void free_network(network *n) {
    for (int i = 0; i < n->n_tensors; i++) free((void *)n->tensor[i].g_out);
    free(n->start);
}

// ---------------------------------------------------------------------------------------------------------------
// Host against device

static int units_of(const network *n) {
    int units = 0;
    for (int i = 0; i < n->n_groups; i++) units += n->group[i].n;
    return units;
}

static void check_same(const char *name, network *n, rescale_options o) {
    const size_t units = (size_t)units_of(n), bytes = n->floats * sizeof(float);
    double *u[2], *want = (double *)malloc(n->floats * sizeof(double));
    float *after[2], *device = NULL;
    rescale_report r[2];
    rescale_tensor_report each[2][MAX_TENSORS];
    const int with_each = o.method == RESCALE_PATHCOND;
    memset(each, 0, sizeof each);
    CUDA_CHECK(cudaMalloc((void **)&device, bytes));
    CUDA_CHECK(cudaMemcpy(device, n->start, bytes, cudaMemcpyHostToDevice));
    for (int where = 0; where < 2; where++) {
        u[where] = (double *)calloc(units + 1, sizeof(double));
        after[where] = (float *)malloc(bytes);
        memcpy(after[where], n->start, bytes);
        const rescale_net net = bind(n, where ? device : after[where]);
        o.on_device = where;
        o.u = u[where];
        o.each = with_each ? each[where] : NULL;
        const int status = rescale_run(&net, &o, &r[where]);
        if (!CHECK(status == RESCALE_OK, "rescale_run succeeds"))
            printf("    %s, %s: %s\n", name, where ? "device" : "host", r[where].message);
    }
    CUDA_CHECK(cudaMemcpy(after[1], device, bytes, cudaMemcpyDeviceToHost));
    CUDA_CHECK(cudaFree(device));
    test_close_d(name, u[1], u[0], units, 1e-9, 1e-9);
    for (size_t i = 0; i < n->floats; i++) want[i] = (double)after[0][i];
    test_close(name, after[1], want, n->floats, 3e-7, 0);  // factors differ by rounding, so floats by one unit at most
    test_close_d("objective before", &r[1].objective_before, &r[0].objective_before, 1, 1e-12, 0);
    test_close_d("objective after", &r[1].objective_after, &r[0].objective_after, 1, 1e-12, 0);
    const int same_size = r[0].parameters == r[1].parameters && r[0].tensors_touched == r[1].tensors_touched;
    const int same_units = r[0].units == r[1].units && r[0].pinned_units == r[1].pinned_units;
    CHECK(same_size && same_units && r[0].bounded_units == r[1].bounded_units, "the two reports agree");
    test_close_d("spread before", &r[1].spread_before, &r[0].spread_before, 1, 0, 1e-9);
    test_close_d("spread after", &r[1].spread_after, &r[0].spread_after, 1, 0, 1e-9);
    double share[2] = {0, 0};
    const double one[2] = {1, 1};
    for (int i = 0; i < n->n_tensors && with_each; i++) {
        test_close_d("share of a tensor", each[1][i].share, each[0][i].share, 2, 1e-9, 1e-12);
        test_close_d("spread of a tensor", each[1][i].spread, each[0][i].spread, 2, 0, 1e-9);
        CHECK(each[0][i].zeros == each[1][i].zeros, "zeros of a tensor");
        for (int k = 0; k < 2; k++) share[k] += each[1][i].share[k];
    }
    if (with_each) test_close_d("shares add up", share, one, 2, 1e-12, 0);
    if (with_each) CHECK(r[1].spread_before > 0, "some spread to begin with");
    if (!o.dry_run && r[0].max_abs_log_lambda > 0) CHECK(memcmp(after[0], n->start, bytes) != 0, "something moved");
    else CHECK(memcmp(after[1], n->start, bytes) == 0, "a dry run, or a solution u = 0, changes nothing on the device");
    for (int where = 0; where < 2; where++) {
        free(u[where]);
        free(after[where]);
    }
    free(want);
}

static void check_options(const char *name, network *n) {
    for (int k = 0; k < 11; k++) {
        rescale_options o = rescale_default_options();
        if (k == 1) o.solver = RESCALE_SWEEPS;
        if (k == 2) o.max_log = 0.2;
        if (k == 3) o.pow2 = 1;
        if (k == 4) {  // every cycle passes over all weights
            o.method = RESCALE_ENORM;
            o.solver = RESCALE_SWEEPS;
            o.sweeps = 3;
        }
        if (k == 5) o.dry_run = 1;
        if (k == 6) o.general = 1;
        if (k == 8 || k == 9) o.level = RESCALE_LAYER;
        if (k == 10) o.strength = 0.5;
        if (k == 7 || k > 8) o.power = 1;
        check_same(name, n, o);
    }
}

// An error on device memory: status, name in the message, no bit of memory changed.
static void check_device_error(const char *what, network *n, int tensor, int array, size_t element, float value,
                               int status) {
    const size_t bytes = n->floats * sizeof(float);
    float *device = NULL, *after = (float *)malloc(bytes), keep = n->start[n->at[tensor][array] + element];
    n->start[n->at[tensor][array] + element] = value;
    CUDA_CHECK(cudaMalloc((void **)&device, bytes));
    CUDA_CHECK(cudaMemcpy(device, n->start, bytes, cudaMemcpyHostToDevice));
    for (int where = 0; where < 2; where++) {
        memcpy(after, n->start, bytes);
        const rescale_net net = bind(n, where ? device : after);
        rescale_options o = rescale_default_options();
        rescale_report r;
        o.on_device = where;
        const int got = rescale_run(&net, &o, &r);
        if (where) CUDA_CHECK(cudaMemcpy(after, device, bytes, cudaMemcpyDeviceToHost));
        if (!CHECK(got == status && strstr(r.message, n->name[tensor]), what))
            printf("    %s: %d '%s'\n", what, got, r.message);
        CHECK(memcmp(after, n->start, bytes) == 0, "an error changes nothing");
    }
    n->start[n->at[tensor][array] + element] = keep;
    CUDA_CHECK(cudaFree(device));
    free(after);
}

// ---------------------------------------------------------------------------------------------------------------
// The function in float

// y[batch][last] of a bound MLP without BatchNorm, every sum in float and in one order.
static void forward(const network *n, const int *dims, int n_layers, const float *x, int batch, float *y) {
    const size_t bytes = (size_t)batch * 4096 * sizeof(float);
    float *a = (float *)malloc(bytes), *z = (float *)malloc(bytes);
    memcpy(a, x, (size_t)batch * (size_t)dims[0] * sizeof(float));
    for (int l = 0; l < n_layers; l++) {
        const float *w = n->tensor[2 * l].data, *b = n->tensor[2 * l + 1].data;
        for (int s = 0; s < batch; s++)
            for (int o = 0; o < dims[l + 1]; o++) {
                float sum = b[o];
                for (int i = 0; i < dims[l]; i++)
                    sum += w[(size_t)o * (size_t)dims[l] + (size_t)i] * a[s * dims[l] + i];
                z[s * dims[l + 1] + o] = l + 1 < n_layers && sum < 0 ? 0 : sum;
            }
        float *swap = a;
        a = z;
        z = swap;
    }
    memcpy(y, a, (size_t)batch * (size_t)dims[n_layers] * sizeof(float));
    free(a);
    free(z);
}

// Rescales an MLP in float; the outputs move by less than `limit` of the largest, or not at all with powers of two.
static void check_function(const int *dims, int n_layers, double scale, int pow2, double max_log) {
    enum { BATCH = 8 };
    network n = make_mlp(dims, n_layers, 0, 0, scale);
    const rescale_net net = bind(&n, n.start);
    const size_t n_y = (size_t)BATCH * (size_t)dims[n_layers], n_x = (size_t)BATCH * (size_t)dims[0];
    float *x = (float *)malloc(n_x * sizeof(float)), *y = (float *)malloc(2 * n_y * sizeof(float));
    for (size_t i = 0; i < n_x; i++) x[i] = (float)test_random();
    forward(&n, dims, n_layers, x, BATCH, y);
    rescale_options o = rescale_default_options();
    o.pow2 = pow2;
    o.max_log = max_log;
    rescale_report r;
    CHECK(rescale_run(&net, &o, &r) == RESCALE_OK && r.converged, "rescale_run succeeds");
    forward(&n, dims, n_layers, x, BATCH, y + n_y);
    double moved = 0, largest = 0;
    for (size_t i = 0; i < n_y; i++) {
        moved = fmax(moved, fabs((double)y[i] - (double)y[n_y + i]));
        largest = fmax(largest, fabs((double)y[i]));
    }
    printf("float, %d hidden layers of %d, scale %.1f%s: relative difference %.1e, max |log lambda| %.2f, "
           "%d Newton steps\n", n_layers - 1, dims[1], scale, pow2 ? ", powers of two" : "", moved / largest,
           r.max_abs_log_lambda, r.iterations);
    const int same_function = memcmp(y, y + n_y, n_y * sizeof *y) == 0;
    if (pow2) CHECK(same_function && r.max_abs_log_lambda > 0, "powers of two keep the function bit for bit");
    else CHECK(moved / largest < 1e-5, "the function is unchanged to float rounding");
    free(x);
    free(y);
    free_network(&n);
}

static const int usual[] = {784, 300, 100, 10}, odd[] = {33, 257, 255, 129, 1};
static const unsigned state = 1u << MOMENT1 | 1u << MOMENT2;

// Plain MLPs with optimizer state, or without.
static void test_mlps(void) {
    static const int tall[] = {17, 2100, 65, 3}, tiny[] = {1, 1, 1};
    network n = make_mlp(usual, 3, 0, state, 1);
    check_options("784-300-100-10", &n);
    check_device_error("NaN in a weight", &n, 2, DATA, 29999, NAN, RESCALE_ERROR_NON_FINITE);
    check_device_error("infinity in a bias", &n, 3, DATA, 99, -INFINITY, RESCALE_ERROR_NON_FINITE);
    check_device_error("NaN in the optimizer state", &n, 4, MOMENT2, 0, NAN, RESCALE_ERROR_NON_FINITE);
    free_network(&n);
    n = make_mlp(tall, 3, 0, 0, 1);
    check_options("17-2100-65-3", &n);
    free_network(&n);
    n = make_mlp(tiny, 2, 0, state, 1);
    check_options("1-1-1", &n);
    free_network(&n);
}

// BatchNorm, references and diag(G) as the caller gives it.
static void test_extras(void) {
    network n = make_mlp(odd, 4, 1, state, 1);
    check_options("33-257-255-129-1 with BatchNorm", &n);
    check_device_error("NaN in the running variance", &n, 2, VAR, 256, NAN, RESCALE_ERROR_RANGE);
    check_device_error("negative running variance", &n, 2, VAR, 3, -1, RESCALE_ERROR_RANGE);
    check_device_error("infinite running mean", &n, 2, MEAN, 3, INFINITY, RESCALE_ERROR_RANGE);
    free_network(&n);
    n = make_mlp(odd, 4, 1, 1u << REFERENCE, 1);
    check_options("references with BatchNorm", &n);
    free_network(&n);
    n = make_mlp(odd, 4, 0, 1u << REFERENCE, 1);
    check_options("references", &n);
    check_device_error("negative reference", &n, 2, REFERENCE, 77, -1, RESCALE_ERROR_ARGUMENT);
    check_device_error("reference 0", &n, 0, REFERENCE, 77, 0, RESCALE_ERROR_ARGUMENT);
    free_network(&n);
    n = make_mlp(odd, 4, 0, 1u << FULL_G, 1);
    check_options("full g", &n);
    check_device_error("negative g", &n, 4, FULL_G, 128, -1e-3f, RESCALE_ERROR_RANGE);
    check_device_error("NaN in g", &n, 1, FULL_G, 256, NAN, RESCALE_ERROR_RANGE);
    free_network(&n);
}

static void test_convolutions(void) {
    network n = make_conv(state);
    check_options("convolutions", &n);
    free_network(&n);
    n = make_conv(1u << REFERENCE);
    check_options("convolutions with references", &n);
    check_device_error("negative g within a kernel", &n, 2, FULL_G, 4444, -1e-6f, RESCALE_ERROR_RANGE);
    free_network(&n);
}

// Tiny weights in front: lambda is about 1e10, and its square is too much for the second moment behind. Then, with g
// given, lambda 1e5 with a weight of 1e35. Nothing may have changed by the time it shows.
static void test_overflow(void) {
    static const int small[] = {4, 6, 5, 3};
    network n = make_mlp(small, 3, 0, state, 1);
    for (int i = 0; i < 24; i++) n.start[n.at[0][DATA] + i] *= 1e-20f;
    for (int i = 0; i < 6; i++) n.start[n.at[1][DATA] + i] *= 1e-20f;
    check_device_error("the second moment overflows", &n, 2, MOMENT2, 0, 1e38f, RESCALE_ERROR_RANGE);
    free_network(&n);
    n = make_mlp(small, 3, 0, 1u << FULL_G, 1);
    for (int i = 0; i < 30; i++) n.start[n.at[2][FULL_G] + i] *= 1e-20f;
    check_device_error("a parameter overflows", &n, 0, DATA, 5, 1e35f, RESCALE_ERROR_RANGE);
    free_network(&n);
}

int main(void) {
#if DEVICE_IS_GPU
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        printf("no GPU\n");
        return 77;
    }
#endif
    char line[256];
    device_describe(line, sizeof line);
    printf("%s\n", line);
    test_mlps();
    test_extras();
    test_convolutions();
    test_overflow();
    static const int eight[] = {100, 500, 500, 500, 500, 500, 500, 500, 500, 10};
    for (int pow2 = 0; pow2 < 2; pow2++) {
        check_function(usual, 3, 1, pow2, 0);
        check_function(eight, 9, 1, pow2, 0);
        check_function(eight, 9, 2.4, pow2, 0);
        check_function(eight, 9, 1, pow2, 1);
    }
    return test_summary();
}
