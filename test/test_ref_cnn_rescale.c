// test_ref_cnn_rescale.c -- checks of ref_cnn_rescale.h: groups, diag(G) and solvers for convolutional networks.
//
//     cc -O2 -std=c11 -D_GNU_SOURCE -Wall -Wextra -Itest test/test_ref_cnn_rescale.c -o build/test_ref_cnn_rescale -lm
//
// Independent routes to the same number: enumerated paths against one squared pass, the graph of scalar units against
// the network, the sum that enters a unit against the sum that leaves it, sweeps and Newton on pairs against the
// definition parameter by parameter, and the network's function before and after a random rescaling in both modes.
#include "ref_cnn_parity.h"
#include "test.h"

static void fill(double *x, size_t n, double centre, double spread) {
    for (size_t i = 0; i < n; i++) x[i] = centre + spread * test_random();
}

// Random parameters and statistics, of a size that keeps activations alive.
static void fill_net(RefCnn *m) {
    m->track_running = 0;
    for (int t = 0; t < m->n_tensors; t++) {
        const int matrix = m->shapes[t].rank > 1;
        const double spread = matrix ? 2 / sqrt(m->tensors[t].cols) : 0.5;
        fill(m->tensors[t].data, m->tensors[t].n, matrix ? 0.02 : 0.1, spread);
    }
    for (int l = 0; l < m->n_layers; l++) {
        const RefCnnLayer *layer = &m->layers[l];
        if (layer->kind != REF_LAYER_NORM) continue;
        fill(m->tensors[layer->weight].data, (size_t)layer->win.out_c, 1, 0.6);
        fill(layer->running_mean, (size_t)layer->win.out_c, 0, 0.7);
        fill(layer->running_var, (size_t)layer->win.out_c, 1.2, 0.8);
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Groups

typedef struct {
    const char *tensor;
    int enter, leave; // groups
} Membership;

static void check_membership(const char *name, const RefCnnConfig *config, int n_groups, int n_units,
                             const Membership *want, size_t n) {
    RefCnn m = ref_cnn_create(config);
    RefCnnGroups gr = ref_cnn_groups(&m);
    char what[160];
    snprintf(what, sizeof what, "%s: number of groups and units", name);
    CHECK(gr.n_groups == n_groups && gr.n_units == n_units, what);
    for (size_t k = 0; k < n; k++) {
        const RefTensor *t = ref_cnn_tensor(&m, want[k].tensor);
        const int at = t ? (int)(t - m.tensors) : 0;
        snprintf(what, sizeof what, "%s: %s enters and leaves the right groups", name, want[k].tensor);
        CHECK(t && gr.tensor_enter[at] == want[k].enter && gr.tensor_leave[at] == want[k].leave, what);
    }
    // every unit is entered and left; a row or a column belongs to one unit of the tensor's group
    int *in = (int *)calloc((size_t)n_units, sizeof *in), *out = (int *)calloc((size_t)n_units, sizeof *out), bad = 0;
    for (int t = 0, i = 0; t < m.n_tensors; t++)
        for (int row = 0; row < m.tensors[t].rows; row++)
            for (int col = 0; col < m.tensors[t].cols; col++, i++) {
                const int e = gr.tensor_enter[t], l = gr.tensor_leave[t];
                const int channel = m.shapes[t].rank == 4 ? col / (m.shapes[t].dim[2] * m.shapes[t].dim[3]) : -1;
                bad += gr.enter[i] != (e < 0 ? -1 : gr.first_unit[e] + row);
                if (channel >= 0) bad += gr.leave[i] != (l < 0 ? -1 : gr.first_unit[l] + channel);
                const int outside = l < 0 || gr.leave[i] < gr.first_unit[l] || gr.leave[i] >= gr.first_unit[l + 1];
                bad += gr.leave[i] >= 0 && outside;
                if (in && gr.enter[i] >= 0) in[gr.enter[i]]++;
                if (out && gr.leave[i] >= 0) out[gr.leave[i]]++;
            }
    for (int h = 0; h < gr.n_units; h++) bad += !in || !out || in[h] == 0 || out[h] == 0;
    snprintf(what, sizeof what, "%s: rows enter, columns leave, no unit is left out", name);
    CHECK(bad == 0, what);
    free(in);
    free(out);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&m);
}

static void check_groups(void) {
    const RefCnnConfig allconv = {REF_ALLCONV, 3, 32, 32, 10, 1, 0, 1, 1, 0};
    const Membership in_allconv[] = {
        {"conv1.weight", 0, -1}, {"conv1.bias", 0, -1}, {"conv2.weight", 1, 0}, {"conv4.weight", 3, 2},
        {"conv8.weight", 7, 6}, {"conv8.bias", 7, -1}, {"conv9.weight", -1, 7}, {"conv9.bias", -1, -1}};
    check_membership("allconv", &allconv, 8, 1792, in_allconv, 8);
    const RefCnnConfig allconv_bn = {REF_ALLCONV, 3, 32, 32, 10, 1, 1, 1, 1, 0};
    const Membership in_allconv_bn[] = {
        {"conv2.weight", 1, 0}, {"conv3.weight", -1, 1}, {"conv3.bias", -1, -1}, {"bn1.weight", 2, -1},
        {"bn1.bias", 2, -1}, {"conv4.weight", 3, 2}, {"conv6.weight", -1, 4}, {"bn2.weight", 5, -1},
        {"conv7.weight", 6, 5}, {"conv9.weight", -1, 7}};
    check_membership("allconv with BatchNorm", &allconv_bn, 8, 1792, in_allconv_bn, 10);
    const RefCnnConfig resnet = {REF_RESNET18, 3, 32, 32, 10, 1, 1, 1, 1, 0};
    const Membership in_resnet[] = {
        {"conv1.weight", -1, -1}, {"bn1.weight", 0, -1}, {"layer1.0.conv1.weight", -1, 0},
        {"layer1.0.bn1.weight", 1, -1}, {"layer1.0.conv2.weight", -1, 1}, {"layer1.0.bn2.weight", 0, -1},
        {"layer1.1.conv1.weight", -1, 0}, {"layer1.1.bn1.bias", 2, -1}, {"layer1.1.bn2.bias", 0, -1},
        {"layer2.0.conv1.weight", -1, 0}, {"layer2.0.bn1.weight", 3, -1}, {"layer2.0.bn2.weight", 4, -1},
        {"layer2.0.downsample.0.weight", -1, 0}, {"layer2.0.downsample.1.weight", 4, -1},
        {"layer2.1.conv1.weight", -1, 4}, {"layer2.1.bn1.weight", 5, -1}, {"layer2.1.bn2.weight", 4, -1},
        {"layer4.0.downsample.1.bias", 10, -1}, {"layer4.1.bn2.weight", 10, -1}, {"fc.weight", -1, 10},
        {"fc.bias", -1, -1}};
    check_membership("resnet18", &resnet, 12, 2880, in_resnet, sizeof in_resnet / sizeof in_resnet[0]);
    const RefCnnConfig resnet_c = {REF_RESNET18, 3, 32, 32, 10, 1, 1, 1, 1, 1};
    const Membership in_resnet_c[] = {
        {"bn1.weight", 0, -1}, {"layer1.0.conv1.weight", -1, 0}, {"layer1.0.bn1.weight", 1, -1},
        {"layer1.0.bn2.weight", 2, -1}, {"layer1.0.downsample.0.weight", -1, 0},
        {"layer1.0.downsample.1.weight", 2, -1},
        {"layer1.1.conv1.weight", -1, 2}, {"layer1.1.bn2.weight", 4, -1}, {"layer2.0.conv1.weight", -1, 4},
        {"fc.weight", -1, 16}};
    check_membership("resnet18, projections", &resnet_c, 17, 64 * 5 + 128 * 4 + 256 * 4 + 512 * 4, in_resnet_c, 10);
    const RefCnnConfig plain = {REF_RESNET18, 3, 32, 32, 10, 1, 0, 1, 1, 0};
    const Membership in_plain[] = {
        {"conv1.weight", 0, -1}, {"conv1.bias", 0, -1}, {"layer1.0.conv1.weight", 1, 0},
        {"layer1.0.conv2.weight", 0, 1},
        {"layer1.0.conv2.bias", 0, -1}, {"layer2.0.conv1.weight", 3, 0}, {"layer2.0.conv2.weight", 4, 3},
        {"layer2.0.downsample.0.weight", 4, 0}, {"layer2.0.downsample.0.bias", 4, -1},
        {"layer4.1.conv2.weight", 10, 11}};
    check_membership("resnet18 without norm", &plain, 12, 2880, in_plain, 10);
    const RefCnnConfig small = {REF_SMALL, 1, 28, 28, 10, 1, 1, 1, 1, 0};
    const Membership in_small[] = {
        {"conv1.weight", -1, -1}, {"bn1.weight", 0, -1}, {"conv2.weight", -1, 0}, {"bn3.bias", 2, -1},
        {"fc.weight", -1, 2}};
    check_membership("small with BatchNorm", &small, 3, 160, in_small, 5);
    RefCnn m = ref_cnn_create(&small);
    RefCnnGroups gr = ref_cnn_groups(&m);
    const size_t fc = ref_cnn_offset(&m, (int)(ref_cnn_tensor(&m, "fc.weight") - m.tensors));
    const int *of_fc = gr.leave + fc;
    CHECK(of_fc[48] == 96 && of_fc[49] == 97 && of_fc[3135] == 159, "a channel owns 49 columns of fc");
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------
// The function before and after

typedef struct {
    const char *name;
    RefCnnConfig config;
} NetCase;

static void check_invariance(const NetCase *c) {
    RefCnn m = ref_cnn_create(&c->config);
    RefCnnGroups gr = ref_cnn_groups(&m);
    enum { N = 4 };
    const size_t p = (size_t)gr.n_params, inputs = (size_t)(N * m.in_c * m.in_h * m.in_w);
    const size_t outputs = (size_t)(N * c->config.classes);
    double *x = ref_doubles(inputs), *u = ref_doubles((size_t)gr.n_units), *before = ref_doubles(outputs);
    double *grad = ref_doubles(p), *theta = ref_doubles(p), *half = ref_doubles(p), *moved = ref_doubles(p);
    const int labels[N] = {0, 1, 2, 0};
    const RefProblem q = ref_cnn_problem(&gr, NULL);
    char what[160];
    for (int round = 0; round < 2; round++)
        for (int mode = 0; mode < 2; mode++) {
            double scale = 0, grad_scale = 0, change = 0;
            fill_net(&m);
            fill(x, inputs, 0.1, 1.5);
            fill(u, (size_t)gr.n_units, 0, 2);
            ref_cnn_get_theta(&m, theta);
            ref_cnn_forward(&m, mode, x, labels, N);
            ref_cnn_backward(&m);
            for (int t = 0, i = 0; t < m.n_tensors; t++) // gradients scale inversely
                for (size_t k = 0; k < m.tensors[t].n; k++, i++)
                    grad[i] = m.tensors[t].grad[k] * exp(ref_bu(&q, u, i) / 2);
            for (size_t k = 0; k < outputs; k++) {
                before[k] = m.logits[k];
                scale = fmax(scale, fabs(before[k]));
            }
            for (size_t i = 0; i < p; i++) grad_scale = fmax(grad_scale, fabs(grad[i]));
            ref_cnn_rescale(&m, &gr, u);
            ref_cnn_get_theta(&m, moved);
            for (size_t i = 0; i < p; i++) change = fmax(change, fabs(moved[i] - theta[i]) / (1e-3 + fabs(theta[i])));
            CHECK(change > 0.5, "the parameters move");
            ref_cnn_forward(&m, mode, x, labels, N);
            ref_cnn_backward(&m);
            const char *in_mode = mode == REF_TRAIN ? "training" : "evaluation";
            snprintf(what, sizeof what, "%s, outputs after rescaling, %s", c->name, in_mode);
            test_close_d(what, m.logits, before, outputs, 0, 1e-12 * scale);
            for (int t = 0, i = 0; t < m.n_tensors; i += (int)m.tensors[t++].n)
                memcpy(&moved[i], m.tensors[t].grad, m.tensors[t].n * sizeof *moved);
            snprintf(what, sizeof what, "%s, gradients after rescaling, %s", c->name, in_mode);
            test_close_d(what, moved, grad, p, 1e-9, 1e-11 * grad_scale);

            double largest = 0; // only what enters: another function
            for (size_t i = 0; i < p; i++) half[i] = theta[i] * (gr.enter[i] >= 0 ? exp(u[gr.enter[i]] / 2) : 1);
            ref_cnn_set_theta(&m, half);
            ref_cnn_forward(&m, mode, x, labels, N);
            for (size_t k = 0; k < outputs; k++) largest = fmax(largest, fabs(m.logits[k] - before[k]));
            CHECK(largest > 1e-3 * scale, "half a rescaling changes the function");
        }
    free(x);
    free(u);
    free(before);
    free(grad);
    free(theta);
    free(half);
    free(moved);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&m);
}

// ---------------------------------------------------------------------------------------------------------------
// diag(G) on networks whose paths can be counted

// Networks that no family has: overlapping pools behind BatchNorm, kernels that are not square, a stream of two blocks.
static RefCnn tiny_net(int which) {
    RefCnn m;
    int l;
    switch (which) {
    case 0: // convolution, BatchNorm, max-pool, 2x2 convolution, average, linear
        m = ref_cnn_empty(2, 4, 4);
        l = ref_cnn_relu(&m, ref_cnn_norm(&m, "bn1", ref_cnn_conv(&m, "conv1", -1, 2, 3, 3, 1, 1, 1)));
        l = ref_cnn_relu(&m, ref_cnn_conv(&m, "conv2", ref_cnn_max_pool(&m, l, 2, 2, 0), 2, 2, 2, 1, 0, 1));
        ref_cnn_linear(&m, "fc", ref_cnn_avg_pool(&m, l), 2, 1);
        break;
    case 1: // overlapping max-pool, 1x3 and 3x2 kernels, stride 2, flatten of 2x2 maps
        m = ref_cnn_empty(1, 5, 6);
        l = ref_cnn_relu(&m, ref_cnn_conv(&m, "conv1", -1, 2, 1, 3, 1, 0, 0));
        l = ref_cnn_max_pool(&m, l, 3, 2, 1);
        l = ref_cnn_relu(&m, ref_cnn_norm(&m, "bn1", ref_cnn_conv(&m, "conv2", l, 3, 3, 2, 2, 1, 1)));
        ref_cnn_linear(&m, "fc", l, 2, 1);
        break;
    case 2: { // a stream of two blocks with BatchNorm on 2x2 maps, then a projection with stride 2
        m = ref_cnn_empty(1, 2, 2);
        int stream = ref_cnn_relu(&m, ref_cnn_norm(&m, "bn1", ref_cnn_conv(&m, "conv1", -1, 2, 3, 3, 1, 1, 0)));
        l = ref_cnn_relu(&m, ref_cnn_norm(&m, "a.bn1", ref_cnn_conv(&m, "a.conv1", stream, 1, 3, 3, 1, 1, 0)));
        l = ref_cnn_norm(&m, "a.bn2", ref_cnn_conv(&m, "a.conv2", l, 2, 3, 3, 1, 1, 0));
        ref_cnn_add_residual(&m, l, stream);
        stream = ref_cnn_relu(&m, l);
        const int main_path = ref_cnn_norm(&m, "b.bn1", ref_cnn_conv(&m, "b.conv1", stream, 3, 3, 3, 2, 1, 0));
        l = ref_cnn_norm(&m, "b.bn2", ref_cnn_conv(&m, "b.conv2", stream, 3, 1, 1, 2, 0, 0));
        ref_cnn_add_residual(&m, l, main_path);
        ref_cnn_linear(&m, "fc", ref_cnn_avg_pool(&m, ref_cnn_relu(&m, l)), 2, 1);
        break;
    }
    default: { // two blocks without norm, biases everywhere, a max-pool inside the stream's reader
        m = ref_cnn_empty(2, 3, 2);
        int stream = ref_cnn_relu(&m, ref_cnn_conv(&m, "conv1", -1, 2, 1, 1, 1, 0, 1));
        int inner = ref_cnn_relu(&m, ref_cnn_conv(&m, "a.conv1", stream, 2, 3, 3, 1, 1, 1));
        l = ref_cnn_conv(&m, "a.conv2", inner, 2, 1, 1, 1, 0, 1);
        ref_cnn_add_residual(&m, l, stream);
        stream = ref_cnn_max_pool(&m, ref_cnn_relu(&m, l), 3, 2, 1);
        inner = ref_cnn_relu(&m, ref_cnn_conv(&m, "b.conv1", stream, 2, 1, 1, 1, 0, 1));
        l = ref_cnn_conv(&m, "b.conv2", inner, 2, 1, 1, 1, 0, 1);
        ref_cnn_add_residual(&m, l, stream);
        ref_cnn_linear(&m, "fc", ref_cnn_relu(&m, l), 2, 1);
    }
    }
    return m;
}

// In evaluation mode the graph of scalar units computes the network's function, once the winners of max-pools are
// known.
static void check_graph_function(const char *name, RefCnn *m, const RefCnnGroups *gr) {
    const size_t inputs = (size_t)(m->in_c * m->in_h * m->in_w);
    double *x = ref_doubles(inputs + 1), *theta = ref_doubles((size_t)gr->n_params), outputs[16];
    const int labels[1] = {0};
    fill(x, inputs, 0, 2);
    x[inputs] = 1;
    ref_cnn_get_theta(m, theta);
    ref_cnn_forward(m, REF_EVAL, x, labels, 1);
    RefNet net = ref_cnn_graph(m, gr, 1);
    double *value = ref_doubles((size_t)net.n_nodes);
    ref_net_forward(&net, theta, x, value);
    size_t n = 0;
    for (int k = 0; k < net.n_nodes && n < 16; k++)
        if (net.kind[k] == REF_OUTPUT) outputs[n++] = value[k];
    test_close_d(name, outputs, m->logits, n, 1e-12, 1e-13);
    ref_net_free(&net);
    free(x);
    free(theta);
    free(value);
}

static void check_tiny(const char *name, RefCnn *m) {
    RefCnnGroups gr = ref_cnn_groups(m);
    const size_t p = (size_t)gr.n_params;
    double *theta = ref_doubles(p), *after = ref_doubles(p), *by_pass = ref_doubles(p), *by_paths = ref_doubles(p);
    double *by_graph = ref_doubles(p), *u = ref_doubles((size_t)gr.n_units), *want = ref_doubles(p);
    char what[160];
    fill_net(m);
    check_graph_function(name, m, &gr);
    ref_cnn_get_theta(m, theta);
    for (int pool = REF_PATHS_SUM; pool <= REF_PATHS_MAX; pool++) {
        ref_cnn_diag_g(m, pool, by_pass);
        ref_cnn_get_theta(m, after);
        test_close_d("diag(G) leaves the parameters alone", after, theta, p, 0, 0);
        RefNet net = ref_cnn_graph(m, &gr, pool == REF_PATHS_MAX);
        const long paths = ref_net_walk_diag_g(&net, theta, by_paths);
        ref_net_diag_g(&net, theta, by_graph);
        const char *kind = pool == REF_PATHS_MAX ? "arg-max" : "all";
        snprintf(what, sizeof what, "%s, diag(G), %ld paths, %s", name, paths, kind);
        CHECK(paths > 50 && paths < 3000000, what);
        test_close_d(what, by_pass, by_paths, p, 1e-10, 1e-300);
        test_close_d(what, by_graph, by_paths, p, 1e-10, 1e-300);
        // Squares of square roots: the same enumeration adds up absolute values.
        for (int e = 0; e < net.n_edges; e++) net.edges[e].factor = sqrt(fabs(net.edges[e].factor));
        for (size_t i = 0; i < p; i++) want[i] = sqrt(fabs(theta[i]));
        ref_net_walk_diag_g(&net, want, by_paths);
        ref_cnn_path_sums(m, pool, 1, by_graph);
        test_close_d("sums of absolute values", by_graph, by_paths, p, 1e-10, 1e-300);
        ref_net_free(&net);
        // under a rescaling g becomes g exp(Bu), also along arg-max paths: a channel keeps its winners
        const RefProblem q = ref_cnn_problem(&gr, by_pass);
        fill(u, (size_t)gr.n_units, 0, 1.5);
        for (size_t i = 0; i < p; i++) want[i] = by_pass[i] * exp(ref_bu(&q, u, (int)i));
        ref_cnn_rescale(m, &gr, u);
        ref_cnn_diag_g(m, pool, by_graph);
        test_close_d("g exp(Bu) after rescaling", by_graph, want, p, 1e-11, 1e-300);
        ref_cnn_set_theta(m, theta);
    }
    free(theta);
    free(after);
    free(by_pass);
    free(by_paths);
    free(by_graph);
    free(u);
    free(want);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(m);
}

// In a network without shortcuts every path that enters a unit leaves it: the sums of g theta^2 are equal, at any size.
// (With a running mean, paths from the constant enter in front of gamma and are in gamma's g.) Returns the number of
// units.
static int check_flow(const char *name, RefCnn *m, int pool) {
    RefCnnGroups gr = ref_cnn_groups(m);
    const size_t n = (size_t)gr.n_units, p = (size_t)gr.n_params;
    double *g = ref_doubles(p), *theta = ref_doubles(p), *in = ref_doubles(n), *out = ref_doubles(n);
    ref_cnn_get_theta(m, theta);
    ref_cnn_diag_g(m, pool, g);
    for (int i = 0; i < gr.n_params; i++) {
        if (gr.enter[i] >= 0) in[gr.enter[i]] += g[i] * theta[i] * theta[i];
        if (gr.leave[i] >= 0) out[gr.leave[i]] += g[i] * theta[i] * theta[i];
    }
    test_close_d(name, out, in, n, 1e-12, 0);
    free(g);
    free(theta);
    free(in);
    free(out);
    ref_cnn_groups_free(&gr);
    return (int)n;
}

// ---------------------------------------------------------------------------------------------------------------
// Solvers

// A network as pairs and by ref_rescale.h's definition, parameter by parameter; room for n values each.
typedef struct {
    const char *name;
    RefCnn m;
    RefCnnGroups gr;
    RefProblem q;
    RefPairs pairs;
    size_t n;
    double *g, *u, *v, *grad, *want;
} Both;

// Energies of one tensor as the pairs have them.
static void check_energies(Both *b) {
    for (int t = 0, k = 0; t < b->m.n_tensors; t++) {
        const int in = b->gr.tensor_leave[t], out = b->gr.tensor_enter[t];
        if (in < 0 || out < 0) continue;
        const int *first = b->gr.first_unit;
        const size_t count = (size_t)(b->m.tensors[t].rows * (first[in + 1] - first[in]));
        double *M = ref_doubles(count);
        ref_cnn_pair_energies(&b->m, t, b->g, M);
        while (b->pairs.enter[k] != first[out] || b->pairs.leave[k] != first[in]) k++;
        test_close_d("energy of every pair of channels", &b->pairs.energy[k], M, count, 1e-14, 0);
        free(M);
        break;
    }
}

// F, its gradient and its Hessian at a random u.
static void check_derivatives(Both *b) {
    const size_t n = b->n;
    double *u = b->u, *v = b->v, *grad = b->grad, *want = b->want;
    fill(u, n, 0, 1);
    const double F = ref_pairs_F(&b->pairs, u), want_F = ref_F(&b->q, u);
    test_close_d("F on pairs", &F, &want_F, 1, 1e-13, 0);
    ref_pairs_grad(&b->pairs, u, grad, NULL);
    ref_grad_F(&b->q, u, want);
    test_close_d("gradient on pairs", grad, want, n, 1e-10, 1e-8);

    double *H = ref_doubles(n * n), *w = ref_doubles((size_t)b->pairs.n_pairs), sum = 0;
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, n + 1);
    CHECK(ref_pairs_pinned(&b->pairs, pinned) == 0, "no unit is dead");
    ref_hess_F(&b->q, u, H);
    fill(v, n, 0, 1);
    for (int k = 0; k < b->pairs.n_pairs; k++) {
        w[k] = b->pairs.energy[k] * exp(ref_pairs_bu(&b->pairs, u, k));
        sum += w[k];
    }
    ref_pairs_hessian(&b->pairs, w, sum, pinned, v, grad);
    for (size_t h = 0; h < n; h++) {
        want[h] = 0;
        for (size_t k = 0; k < n; k++) want[h] += H[h * n + k] * v[k];
    }
    test_close_d("Hessian times a vector", grad, want, n, 1e-9, 1e-8);
    free(H);
    free(w);
    free(pinned);
}

// Sweeps of every kind, from u = v = 0.
static void check_sweeps(Both *b, int pool) {
    const size_t n = b->n;
    double *u = b->u, *v = b->v;
    char what[160];
    memset(u, 0, n * sizeof *u);
    memset(v, 0, n * sizeof *v);
    const int on_pairs = ref_pairs_unit_sweeps(&b->pairs, u, 10, 0, 0);
    const int by_definition = ref_unit_sweeps(&b->q, v, 10, 0, 0);
    CHECK(on_pairs == 10 && by_definition == 10, "ten sweeps");
    snprintf(what, sizeof what, "%s, ten unit sweeps on pairs", b->name);
    test_close_d(what, u, v, n, 0, 1e-10);
    memset(u, 0, n * sizeof *u);
    memset(v, 0, n * sizeof *v);
    ref_pairs_unit_sweeps(&b->pairs, u, 3, 0, 0.25);
    ref_unit_sweeps(&b->q, v, 3, 0, 0.25);
    test_close_d("bounded sweeps on pairs", u, v, n, 0, 1e-10);
    memset(u, 0, n * sizeof *u);
    memset(v, 0, n * sizeof *v);
    ref_pairs_block_sweeps(&b->pairs, u, b->gr.first_unit, b->gr.n_groups, 2);
    ref_block_sweeps(&b->q, v, b->gr.first_unit, b->gr.n_groups, 2);
    test_close_d("block sweeps on pairs", u, v, n, 0, 1e-9);

    memset(v, 0, n * sizeof *v);
    const int sweeps = ref_unit_sweeps(&b->q, v, 10, pool == REF_PATHS_MAX ? 1e-2 : 0, 0);
    if (pool == REF_PATHS_MAX) {
        CHECK(ref_cnn_published(&b->m, &b->gr, 1e-2, u) == sweeps, "published: as many sweeps");
        test_close_d("published: sweeps from diag(G) along arg-max paths", u, v, n, 0, 1e-10);
    }
}

// Newton's method on pairs, from where the sweeps left u, and the dense one from v.
static void check_optimum(Both *b) {
    const size_t n = b->n;
    double *u = b->u, *v = b->v;
    char what[160];
    const double left = ref_optimum(&b->q, v), left_pairs = ref_pairs_optimum(&b->pairs, u);
    CHECK(left < 1e-9, "the dense Newton's method converges");
    CHECK(left_pairs < 1e-8 && ref_grad_F(&b->q, u, b->grad) < 1e-8, "Newton's method on pairs converges");
    snprintf(what, sizeof what, "%s, optimum on pairs", b->name);
    test_close_d(what, u, v, n, 0, 1e-8);
    const double want_F = ref_F(&b->q, v), F = ref_F(&b->q, u);
    test_close_d("F at the optimum", &F, &want_F, 1, 1e-13, 0);
    memset(v, 0, n * sizeof *v);
    CHECK(F < ref_F(&b->q, v) - 1, "the optimum is better than no rescaling");
    for (int round = 0; round < 5; round++) {
        for (size_t h = 0; h < n; h++) v[h] = u[h] + 1e-2 * test_random();
        CHECK(ref_F(&b->q, v) > F, "a perturbed optimum is worse");
    }
}

static void check_solvers(const NetCase *c, int pool) {
    Both b;
    char what[160];
    b.name = c->name;
    b.m = ref_cnn_create(&c->config);
    b.gr = ref_cnn_groups(&b.m);
    b.n = (size_t)b.gr.n_units;
    b.g = ref_doubles((size_t)b.gr.n_params);
    b.u = ref_doubles(b.n);
    b.v = ref_doubles(b.n);
    b.grad = ref_doubles(b.n);
    b.want = ref_doubles(b.n);
    ref_cnn_parity_weights(&b.m);
    for (int l = 0; l < b.m.n_layers; l++) {
        const RefCnnLayer *layer = &b.m.layers[l];
        if (layer->kind == REF_LAYER_NORM) fill(layer->running_mean, (size_t)layer->win.out_c, 0, 0.5);
    }
    ref_cnn_diag_g(&b.m, pool, b.g);
    b.q = ref_cnn_problem(&b.gr, b.g);
    b.pairs = ref_pairs(&b.q);
    snprintf(what, sizeof what, "%s, %d parameters in %d pairs", b.name, b.q.n_params, b.pairs.n_pairs);
    CHECK(b.pairs.n_pairs < b.q.n_params / 2, what);
    check_energies(&b);
    check_derivatives(&b);
    check_sweeps(&b, pool);
    check_optimum(&b);
    ref_pairs_free(&b.pairs);
    free(b.g);
    free(b.u);
    free(b.v);
    free(b.grad);
    free(b.want);
    ref_cnn_groups_free(&b.gr);
    ref_cnn_free(&b.m);
}

// BatchNorm with gamma = beta = 0 (zero-initialised residual branch): its unit is dead and pinned; everything stays
// finite.
static void check_pinned(void) {
    const RefCnnConfig config = {REF_ALLCONV, 3, 8, 8, 4, 0.04, 1, 1, 1, 0};
    RefCnn m = ref_cnn_create(&config);
    RefCnnGroups gr = ref_cnn_groups(&m);
    const size_t n = (size_t)gr.n_units;
    double *g = ref_doubles((size_t)gr.n_params), *u = ref_doubles(n), *v = ref_doubles(n);
    ref_cnn_parity_weights(&m);
    ref_cnn_tensor(&m, "bn1.weight")->data[2] = 0; // beta is 0 by default
    ref_cnn_diag_g(&m, REF_PATHS_SUM, g);
    const RefProblem q = ref_cnn_problem(&gr, g);
    RefPairs pairs = ref_pairs(&q);
    unsigned char *pinned = (unsigned char *)ref_grow(NULL, n + 1);
    const size_t dead = (size_t)gr.first_unit[2] + 2;
    CHECK(ref_pairs_pinned(&pairs, pinned) == 1 && pinned[dead], "the dead channel is pinned, and no other");
    const size_t gamma = ref_cnn_offset(&m, (int)(ref_cnn_tensor(&m, "bn1.weight") - m.tensors));
    CHECK(g[gamma + 2] > 0, "its gamma still lies on paths");
    CHECK(ref_pairs_optimum(&pairs, u) < 1e-8 && u[dead] == 0, "the others reach their optimum");
    CHECK(ref_optimum(&q, v) < 1e-8, "also in the dense version");
    test_close_d("optimum with a dead channel", u, v, n, 0, 1e-8);
    free(pinned);
    free(g);
    free(u);
    free(v);
    ref_pairs_free(&pairs);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&m);
}

// The real allconv: 2,617,610 parameters, 1,792 units.
static void check_full_size(int pool) {
    const RefCnnConfig config = {REF_ALLCONV, 3, 32, 32, 10, 1, 0, 1, 1, 0};
    RefCnn m = ref_cnn_create(&config);
    RefCnnGroups gr = ref_cnn_groups(&m);
    const size_t n = (size_t)gr.n_units;
    double *g = ref_doubles((size_t)gr.n_params), *u = ref_doubles(n), *grad = ref_doubles(n);
    ref_cnn_parity_weights(&m);
    ref_cnn_diag_g(&m, pool, g);
    const RefProblem q = ref_cnn_problem(&gr, g);
    RefPairs pairs = ref_pairs(&q);
    const double before = ref_F(&q, u);
    ref_pairs_unit_sweeps(&pairs, u, 10, 0, 0);
    const double swept = ref_F(&q, u), left = ref_pairs_optimum(&pairs, u), best = ref_F(&q, u);
    CHECK(left < 1e-6 && ref_grad_F(&q, u, grad) < 1e-6, "full size: the gradient of the definition vanishes");
    CHECK(before > swept && swept > best, "full size: sweeps improve, the optimum is better");
    printf("allconv, %s: F %.9g at 0, %.9g after 10 sweeps, %.9g at the optimum, gradient left %.1e\n",
           pool == REF_PATHS_MAX ? "arg-max" : "sum", before, swept, best, left);
    ref_pairs_free(&pairs);
    free(g);
    free(u);
    free(grad);
    ref_cnn_groups_free(&gr);
    ref_cnn_free(&m);
}

int main(void) {
    check_groups();
    const NetCase nets[] = {
        {"allconv", {REF_ALLCONV, 3, 9, 8, 4, 0.03, 0, 1, 1, 0}},
        {"allconv without biases", {REF_ALLCONV, 3, 8, 8, 4, 0.03, 0, 0, 1, 0}},
        {"allconv with BatchNorm", {REF_ALLCONV, 3, 8, 8, 4, 0.03, 1, 1, 1, 0}},
        {"resnet18", {REF_RESNET18, 3, 8, 8, 4, 0.03, 1, 1, 1, 0}},
        {"resnet18, projections", {REF_RESNET18, 3, 8, 8, 4, 0.03, 1, 1, 1, 1}},
        {"resnet18 without norm", {REF_RESNET18, 3, 8, 8, 4, 0.03, 0, 1, 1, 0}},
        {"resnet18 without norm, projections, no biases", {REF_RESNET18, 3, 8, 8, 4, 0.03, 0, 0, 0, 1}},
        {"small", {REF_SMALL, 1, 13, 10, 4, 0.1, 0, 1, 1, 0}},
        {"small with BatchNorm", {REF_SMALL, 3, 12, 12, 4, 0.1, 1, 1, 1, 0}},
    };
    for (size_t k = 0; k < sizeof nets / sizeof nets[0]; k++) check_invariance(&nets[k]);

    for (int which = 0; which < 4; which++) {
        char name[32];
        RefCnn m = tiny_net(which);
        snprintf(name, sizeof name, "tiny net %d", which);
        check_tiny(name, &m);
    }
    const NetCase counted[] = {
        {"allconv, one channel", {REF_ALLCONV, 1, 3, 2, 2, 0.001, 0, 1, 1, 0}},
        {"allconv with BatchNorm, one channel", {REF_ALLCONV, 2, 2, 2, 2, 0.001, 1, 1, 1, 0}},
        {"small", {REF_SMALL, 1, 4, 4, 2, 0.05, 0, 1, 1, 0}},
        {"small with BatchNorm", {REF_SMALL, 1, 4, 4, 2, 0.03, 1, 1, 1, 0}},
        {"resnet18, two pixels", {REF_RESNET18, 1, 2, 1, 2, 0.001, 1, 1, 1, 0}},
        {"resnet18 without norm, one pixel, projections", {REF_RESNET18, 2, 1, 1, 2, 0.001, 0, 1, 1, 1}},
    };
    for (size_t k = 0; k < sizeof counted / sizeof counted[0]; k++) {
        RefCnn m = ref_cnn_create(&counted[k].config);
        check_tiny(counted[k].name, &m);
    }
    for (int pool = REF_PATHS_SUM; pool <= REF_PATHS_MAX; pool++) {
        for (size_t k = 0; k < sizeof nets / sizeof nets[0]; k++) {
            RefCnn m = ref_cnn_create(&nets[k].config);
            fill_net(&m);
            const int flows = nets[k].config.model != REF_RESNET18;
            if (flows) CHECK(check_flow(nets[k].name, &m, pool) > 10, "units with paths");
            ref_cnn_free(&m);
            check_solvers(&nets[k], pool);
        }
        check_full_size(pool);
    }
    check_pinned();
    return test_summary();
}
