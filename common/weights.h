// weights.h -- a network's tensors by name, and their files: safetensors with PyTorch's names.
//
//     train_upload, train_download, train_host_copy, train_alloc        memory
//     train_net: train_add_parameter, train_add_statistic, train_add_counter, train_net_free
//     train_describe                                                    what the function depends on and no shape shows
//     train_save_weights, train_load_weights                            files
//
// A network's arrays are device memory where HAVE_CUDA_API is 1 (CUDA, or its stand-in on a CPU) and host memory in
// plain C. train_upload and train_download are the only place that knows.
//
// Errors: functions with err[n] return 0, or -1 with a one-line message. Being out of memory ends the program,
// status 1. C11, C++17, CUDA. POSIX. C programs compile with -D_GNU_SOURCE (or -std=gnu11).
#pragma once
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "rescale.cuh"
#include "cli.h"
#include "cuda_common.h"
#include "log.h"
#include "safetensors.h"

// -------------------------------------------------------------------------------------------------------------- memory

// Copies bytes from host memory to where the network's arrays are, and back.
#if HAVE_CUDA_API
static inline void train_upload(void *to, const void *host, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(to, host, bytes, cudaMemcpyHostToDevice));
}
static inline void train_download(void *host, const void *from, size_t bytes) {
    CUDA_CHECK(cudaMemcpy(host, from, bytes, cudaMemcpyDeviceToHost));
}
#else
static inline void train_upload(void *to, const void *host, size_t bytes) {
    if (bytes) memcpy(to, host, bytes);
}
static inline void train_download(void *host, const void *from, size_t bytes) {
    if (bytes) memcpy(host, from, bytes);
}
#endif

// Zeroed host memory for n elements of a size, freed with free(); old != NULL: that memory, grown (new elements not
// zeroed).
static inline void *train_alloc(void *old, size_t n, size_t size) {
    if (n == 0) n = 1;
    void *p = old ? realloc(old, n * size) : calloc(n, size);
    if (p) return p;
    message_print("weights.h", "out of memory: %zu elements of %zu bytes", n, size);
    exit(1);
}

// Copies n floats of a network's array into fresh host memory.
static inline float *train_host_copy(const float *from, size_t n) {
    float *host = (float *)train_alloc(NULL, n, sizeof(float));
    train_download(host, from, n * sizeof(float));
    return host;
}

// ------------------------------------------------------------------------------------------------------------- tensors

enum { TRAIN_NAME = 80, TRAIN_MAX_DIMS = 4 };
enum { TRAIN_ALIGN = 64 };                             // floats; every tensor starts on a 256-byte boundary
enum { TRAIN_STATISTIC = 1000, TRAIN_COUNTER = 1001 };  // roles of buffers; those of parameters are rescale.cuh's

// A named piece of a network's arrays.
typedef struct train_tensor {
    // PyTorch's: fc1.weight, layer1.0.bn1.running_mean, transformer.h.0.attn.c_attn.weight
    char name[TRAIN_NAME];
    // in floats, into params, grads, moment1, moment2 or stats; of a counter its index in counts
    size_t offset;
    int n_dims, dim[TRAIN_MAX_DIMS];  // shape as in the file, [out][in][kh][kw]; a counter has none
    int rows, cols;                // the same as a matrix: dim[0] and the product of the others, 1 for a vector
    int role;                      // RESCALE_WEIGHT, RESCALE_BIAS, RESCALE_GAIN; TRAIN_STATISTIC, TRAIN_COUNTER
    int layer;                     // what the trainer numbers its layers by
} train_tensor;

// What is saved of a network. The tables come first (train_add_...); then the trainer allocates the arrays, zeroed, of
// the sizes found here (padding between tensors has to stay finite: norms and optimizers run over it), and frees them
// itself.
typedef struct train_net {
    int n_tensors, n_buffers;
    train_tensor *tensors;         // [n_tensors] parameters, in the order of the files
    train_tensor *buffers;         // [n_buffers] running statistics and counters, PyTorch's buffers
    size_t n_params, n_stats;      // floats
    float *params, *grads;         // [n_params]
    float *moment1, *moment2;      // [n_params] optimizer state, or NULL: SGD has none, momentum only the first
    float *stats;                  // [n_stats]
    int n_counts;
    int64_t *counts;               // [n_counts], host memory, grown by train_add_counter
    const char *hint;              // ends the message on a tensor that the network lacks: "layers or --norm differ"
    int n_about;                   // what the function depends on and no shape shows, by train_describe
    struct { char key[24], value[24]; } about[4];
    const char *prefix;            // that names in a file may lack: "transformer."; or NULL
    // another name of a tensor in files, lm_head.weight for transformer.wte.weight; or NULL
    const char *tied, *tied_to;
    struct analysis_rows *analysis;  // wants to know what a rescaling does to every tensor (analysis.h); or NULL
} train_net;

// Appends a zeroed tensor to a table, which doubles when it is full.
LOG_PRINTF(4, 0)
static inline train_tensor *train_new_tensor(train_tensor **table, int *n, int role, const char *format, va_list args) {
    if ((*n & (*n - 1)) == 0) *table = (train_tensor *)train_alloc(*table, *n ? 2 * (size_t)*n : 1, sizeof **table);
    train_tensor *t = &(*table)[(*n)++];
    memset(t, 0, sizeof *t);
    t->role = role;
    t->rows = t->cols = 1;
    if (vsnprintf(t->name, sizeof t->name, format, args) >= (int)sizeof t->name) {
        fprintf(stderr, "weights.h: the name of tensor '%s' is too long\n", t->name);
        abort();
    }
    return t;
}

// Adds a parameter [d0][d1][d2][d3], with 0 for dimensions that it does not have; its name is formatted as by printf.
// Returns its place in net->tensors (pointers into the table do not survive the next call).
LOG_PRINTF(8, 9)
static inline int train_add_parameter(train_net *net, int role, int layer, int d0, int d1, int d2, int d3,
                                      const char *format, ...) {
    const int dim[TRAIN_MAX_DIMS] = {d0, d1, d2, d3};
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->tensors, &net->n_tensors, role, format, args);
    va_end(args);
    t->offset = net->n_params;
    t->layer = layer;
    t->rows = d0;
    for (int i = 0; i < TRAIN_MAX_DIMS && dim[i]; i++) {
        t->dim[t->n_dims++] = dim[i];
        t->cols *= i ? dim[i] : 1;
    }
    net->n_params += ((size_t)t->rows * (size_t)t->cols + TRAIN_ALIGN - 1) / TRAIN_ALIGN * TRAIN_ALIGN;
    return net->n_tensors - 1;
}

// Adds a running statistic [n]; returns its place in net->buffers.
LOG_PRINTF(4, 5) static inline int train_add_statistic(train_net *net, int layer, int n, const char *format, ...) {
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->buffers, &net->n_buffers, TRAIN_STATISTIC, format, args);
    va_end(args);
    t->offset = net->n_stats;
    t->layer = layer;
    t->n_dims = 1;
    t->dim[0] = t->rows = n;
    net->n_stats += ((size_t)n + TRAIN_ALIGN - 1) / TRAIN_ALIGN * TRAIN_ALIGN;
    return net->n_buffers - 1;
}

// Adds a 64-bit integer, 0 until it is set; returns its place in net->buffers.
LOG_PRINTF(3, 4) static inline int train_add_counter(train_net *net, int layer, const char *format, ...) {
    va_list args;
    va_start(args, format);
    train_tensor *t = train_new_tensor(&net->buffers, &net->n_buffers, TRAIN_COUNTER, format, args);
    va_end(args);
    t->offset = (size_t)net->n_counts;
    t->layer = layer;
    net->counts = (int64_t *)train_alloc(net->counts, (size_t)net->n_counts + 1, sizeof *net->counts);
    net->counts[net->n_counts++] = 0;
    return net->n_buffers - 1;
}

// Names a number that the network's function depends on and no shape of a tensor shows, by its option: heads. It is
// stored with the weights, and weights with another number are refused.
static inline void train_describe(train_net *net, const char *option, int64_t value) {
    if (net->n_about == (int)(sizeof net->about / sizeof *net->about)) abort();  // a mistake of the trainer
    snprintf(net->about[net->n_about].key, sizeof net->about->key, "%s", option);
    snprintf(net->about[net->n_about].value, sizeof net->about->value, "%lld", (long long)value);
    net->n_about++;
}

// Adds one to every counter: num_batches_tracked after a training pass.
static inline void train_count_batch(train_net *net) {
    for (int i = 0; i < net->n_counts; i++) net->counts[i]++;
}

// Parameters without the padding.
static inline int64_t train_parameter_count(const train_net *net) {
    int64_t n = 0;
    for (int i = 0; i < net->n_tensors; i++) n += (int64_t)net->tensors[i].rows * net->tensors[i].cols;
    return n;
}

// Frees the tables and the counters; the arrays are the trainer's.
static inline void train_net_free(train_net *net) {
    free(net->tensors);
    free(net->buffers);
    free(net->counts);
    memset(net, 0, sizeof *net);
}

// ------------------------------------------------------------------------------------------------------------- weights

// Tensors for a file, with the memory of their names.
typedef struct train_list {
    safetensors_tensor *tensors;
    char (*names)[TRAIN_NAME + 16];
    int n;
} train_list;

static inline train_list train_list_create(int room) {
    train_list l;
    l.tensors = (safetensors_tensor *)train_alloc(NULL, (size_t)room, sizeof *l.tensors);
    l.names = (char(*)[TRAIN_NAME + 16])train_alloc(NULL, (size_t)room, sizeof *l.names);
    l.n = 0;
    return l;
}
static inline void train_list_free(train_list *l) {
    free(l->tensors);
    free(l->names);
}

// Adds prefix + name.
static inline void train_list_add(train_list *l, const char *prefix, const char *name, safetensors_dtype dtype,
                                  int n_dims, const int *dim, const void *data) {
    int64_t shape[TRAIN_MAX_DIMS] = {0};
    for (int i = 0; i < n_dims; i++) shape[i] = dim[i];
    snprintf(l->names[l->n], sizeof *l->names, "%.15s%.79s", prefix, name);
    l->tensors[l->n] = safetensors_make(l->names[l->n], dtype, n_dims, n_dims ? shape : NULL, data);
    l->n++;
}

// Adds the parameter tensors of a family (host copy of params or of a moment) under prefix + name.
static inline void train_list_parameters(train_list *l, const train_net *net, const char *prefix, const float *host) {
    for (int i = 0; i < net->n_tensors; i++) {
        const train_tensor *t = &net->tensors[i];
        train_list_add(l, prefix, t->name, SAFETENSORS_F32, t->n_dims, t->dim, host + t->offset);
    }
}

// Adds the buffers (host copies of stats and counts).
static inline void train_list_buffers(train_list *l, const train_net *net, const float *stats, const int64_t *counts) {
    for (int i = 0; i < net->n_buffers; i++) {
        const train_tensor *t = &net->buffers[i];
        if (t->role == TRAIN_COUNTER) train_list_add(l, "", t->name, SAFETENSORS_I64, 0, NULL, counts + t->offset);
        else train_list_add(l, "", t->name, SAFETENSORS_F32, t->n_dims, t->dim, stats + t->offset);
    }
}

// Lists the weights and buffers of a network (host copies).
static inline train_list train_list_weights(const train_net *net, const float *params, const float *stats,
                                            const int64_t *counts) {
    train_list list = train_list_create(net->n_tensors + net->n_buffers);
    train_list_parameters(&list, net, "", params);
    train_list_buffers(&list, net, stats, counts);
    return list;
}

// Writes listed weights with what train_describe said and more metadata [n_more].
static inline int train_write_weights(const train_net *net, const train_list *list, const char *path,
                                      const safetensors_pair *more, int n_more, char *err, size_t n) {
    safetensors_pair pairs[8];
    int n_pairs = 0;
    for (int i = 0; i < net->n_about; i++, n_pairs++) {
        pairs[n_pairs].key = net->about[i].key;
        pairs[n_pairs].value = net->about[i].value;
    }
    for (int i = 0; i < n_more; i++) pairs[n_pairs++] = more[i];
    return safetensors_write(path, list->tensors, (size_t)list->n, pairs, (size_t)n_pairs, err, n);
}

// Whether weights could be written to path, as log_file_try. A device or pipe there, or standard output, is refused: it
// would be replaced.
static inline int train_try_weights(const char *path, char *err, size_t n) {
    struct stat info;
    if ((stat(path, &info) == 0 && !S_ISREG(info.st_mode)) || log_standard_stream(path))
        return log_error(err, n, "%s: is not a regular file", path);
    return log_file_try(path, err, n);
}

// Writes the weights and buffers. Returns 0, or -1 with a message. What train_try_weights refuses is refused.
static inline int train_save_weights(const train_net *net, const char *path, char *err, size_t n) {
    struct stat info;
    if ((stat(path, &info) == 0 && !S_ISREG(info.st_mode)) || log_standard_stream(path))
        return log_error(err, n, "%s: is not a regular file", path);
    float *params = train_host_copy(net->params, net->n_params), *stats = train_host_copy(net->stats, net->n_stats);
    train_list list = train_list_weights(net, params, stats, net->counts);
    const int status = train_write_weights(net, &list, path, NULL, 0, err, n);
    train_list_free(&list);
    free(params);
    free(stats);
    return status;
}

// Reads the listed tensors, whose data point into host arrays that they fill, from an open file.
static inline int train_read_list(const safetensors_file *f, const train_list *l, char *err, size_t n) {
    for (int i = 0; i < l->n; i++) {
        const safetensors_tensor *t = &l->tensors[i];
        void *out = (void *)(uintptr_t)t->data;
        const int status = t->dtype == SAFETENSORS_F32
                               ? safetensors_read_f32(f, t->name, t->ndim, t->shape, (float *)out, err, n)
                               : safetensors_read(f, t->name, t->dtype, t->ndim, t->shape, out, err, n);
        if (status) return status;
    }
    return 0;
}

// Whether a file says of the network's function what train_describe says; files of other programs say nothing.
static inline int train_check_about(const train_net *net, const safetensors_file *f, char *err, size_t n) {
    for (int i = 0; i < net->n_about; i++) {
        const char *found = safetensors_metadata(f, net->about[i].key);
        char shown[24];
        if (!found || !strcmp(found, net->about[i].value)) continue;
        cli_printable(shown, sizeof shown, found);
        return log_error(err, n, "%s: was made with --%s %s, here it is %s", f->path, net->about[i].key, shown,
                         net->about[i].value);
    }
    return 0;
}

// A name without what torch.compile (_orig_mod.) and DataParallel (module.) put in front of it.
static inline const char *train_plain_name(const char *name) {
    for (;;) {
        if (!strncmp(name, "_orig_mod.", 10)) name += 10;
        else if (!strncmp(name, "module.", 7)) name += 7;
        else return name;
    }
}

// Whether a name in a file stands for the tensor `name` of the network.
static inline int train_same_name(const train_net *net, const char *in_file, const char *name) {
    const char *const plain = train_plain_name(in_file);
    const size_t n = net->prefix ? strlen(net->prefix) : 0;
    if (!strcmp(plain, name)) return 1;
    return n && !strncmp(name, net->prefix, n) && !strcmp(plain, name + n);
}

// Finds the tensor of a file whose name stands for `name`: *found, or NULL. Two of them are an error.
static inline int train_find_name(const train_net *net, const safetensors_file *f, const char *name,
                                  const safetensors_tensor **found, char *err, size_t n) {
    *found = NULL;
    for (size_t k = 0; k < f->n_tensors; k++) {
        const safetensors_tensor *const t = &f->tensors[k];
        if (!train_same_name(net, t->name, name)) continue;
        if (*found)
            return safetensors_error(err, n, f->path, "tensors '%.200s' and '%.200s' both stand for '%s'",
                                     (*found)->name, t->name, name);
        *found = t;
    }
    return 0;
}

// The same; a tied tensor may also stand there under its other name alone. The metadata that safetensors' save_model
// writes say so too: they map the name that was left out to the one that was kept.
static inline int train_find_tensor(const train_net *net, const safetensors_file *f, const char *name,
                                    const safetensors_tensor **found, char *err, size_t n) {
    if (train_find_name(net, f, name, found, err, n)) return -1;
    const int has_other = net->tied && !strcmp(name, net->tied_to);
    if (!*found && has_other && train_find_name(net, f, net->tied, found, err, n)) return -1;
    for (size_t k = 0; k < f->n_metadata && !*found; k++) {
        if (train_same_name(net, f->metadata[k].key, name)) *found = safetensors_find(f, f->metadata[k].value);
    }
    return 0;
}

// Reads a tensor of the network into host memory from the one in the file that stands for it (NULL: there is none).
static inline int train_read_tensor(const safetensors_file *f, const train_tensor *t, const safetensors_tensor *from,
                                    float *out, char *err, size_t n) {
    const size_t length = strlen(t->name);
    int64_t shape[TRAIN_MAX_DIMS] = {0};
    for (int i = 0; i < t->n_dims; i++) shape[i] = t->dim[i];
    const int matrices = from && t->n_dims == 2 && from->ndim == 2 && t->rows != t->cols;
    if (matrices && from->shape[0] == t->cols && from->shape[1] == t->rows)
        return safetensors_error(
            err, n, f->path,
            "tensor '%.200s': expected shape [%d,%d], found [%d,%d]: it is transposed, [in][out], like "
            "the Conv1D of Hugging Face's GPT-2 (c_attn, c_proj, c_fc); transpose every such weight, "
            "the square ones too",
            from->name, t->rows, t->cols, t->cols, t->rows);
    if (safetensors_read_f32(f, from ? from->name : t->name, t->n_dims, shape, out, err, n)) return -1;
    if (t->role != TRAIN_STATISTIC || length < 11 || strcmp(t->name + length - 11, "running_var")) return 0;
    for (int i = 0; i < t->rows; i++)
        if (out[i] < 0)
            return safetensors_error(err, n, f->path,
                                     "tensor '%.200s': element [%d] is %g, expected a variance, 0 or more", from->name,
                                     i, (double)out[i]);
    return 0;
}

// Where a file holds a tied tensor under both names, they must be equal. params: what was read from it.
static inline int train_check_tied(const train_net *net, const safetensors_file *f, const float *params, char *used,
                                   char *err, size_t n) {
    const safetensors_tensor *head = NULL;
    const train_tensor *t = NULL;
    for (int i = 0; i < net->n_tensors && net->tied; i++)
        if (!strcmp(net->tensors[i].name, net->tied_to)) t = &net->tensors[i];
    if (!t) return 0;
    if (train_find_name(net, f, net->tied, &head, err, n)) return -1;
    if (!head || used[head - f->tensors]) return 0;
    used[head - f->tensors] = 1;
    const size_t size = (size_t)t->rows * (size_t)t->cols;
    float *values = (float *)train_alloc(NULL, size, sizeof *values);
    int status = train_read_tensor(f, t, head, values, err, n);
    for (size_t i = 0; i < size && !status; i++)
        if (values[i] != params[t->offset + i])
            status = safetensors_error(
                err, n, f->path,
                "tensor '%.200s' does not belong to this network: here it is '%s', but they differ (%s)", head->name,
                t->name, net->hint ? net->hint : "its options differ");
    free(values);
    return status;
}

// Whether a tensor is a constant of GPT-2's attention, as old files hold: the causal mask [1][1][T][T], or its fill
// value.
static inline int train_is_mask(const safetensors_tensor *t) {
    static const char *const ending[] = {".attn.bias", ".attn.masked_bias"};
    const size_t length = strlen(t->name);
    for (int i = 0; i < 2; i++) {
        const size_t n = strlen(ending[i]);
        if (length <= n || strcmp(t->name + length - n, ending[i])) continue;
        if (i == 1) return t->numel == 1;
        return t->ndim == 4 && t->shape[0] == 1 && t->shape[1] == 1 && t->shape[2] == t->shape[3];
    }
    return 0;
}

// Takes weights and buffers from an open file, under the network's names or as PyTorch's world writes them
// (doc/reference.md). Every tensor of the network must be there with its shape, and no other; only a counter may be
// missing, it is 0 then. The network changes only when the whole file is good. Returns 0, or -1 with a message.
static inline int train_take_weights(train_net *net, const safetensors_file *f, char *err, size_t n) {
    float *params = train_host_copy(net->params, net->n_params), *stats = train_host_copy(net->stats, net->n_stats);
    int64_t *counts = (int64_t *)train_alloc(NULL, (size_t)net->n_counts, sizeof *counts);
    char *used = (char *)train_alloc(NULL, f->n_tensors, 1);
    int status = 0;
    for (int i = 0; i < net->n_tensors + net->n_buffers && !status; i++) {
        const train_tensor *t = i < net->n_tensors ? &net->tensors[i] : &net->buffers[i - net->n_tensors];
        const safetensors_tensor *from;
        status = train_find_tensor(net, f, t->name, &from, err, n);
        if (status) break;
        if (from) used[from - f->tensors] = 1;
        if (t->role != TRAIN_COUNTER)
            status = train_read_tensor(f, t, from, (t->role == TRAIN_STATISTIC ? stats : params) + t->offset, err, n);
        else if (from)
            status = safetensors_read_integer(f, from->name, counts + t->offset, err, n);
    }
    if (!status) status = train_check_tied(net, f, params, used, err, n);
    for (size_t k = 0; k < f->n_tensors && !status; k++)
        if (!used[k] && !train_is_mask(&f->tensors[k]))
            status = safetensors_error(err, n, f->path, "tensor '%.200s' does not belong to this network (%s)",
                                       f->tensors[k].name, net->hint ? net->hint : "its options differ");
    if (!status) status = train_check_about(net, f, err, n);
    if (!status) {
        train_upload(net->params, params, net->n_params * sizeof(float));
        train_upload(net->stats, stats, net->n_stats * sizeof(float));
        for (int i = 0; i < net->n_counts; i++) net->counts[i] = counts[i];
    }
    free(params);
    free(stats);
    free(counts);
    free(used);
    return status;
}

// Loads weights and buffers from a file, as train_take_weights does.
static inline int train_load_weights(train_net *net, const char *path, char *err, size_t n) {
    safetensors_file f;
    if (safetensors_open(&f, path, err, n)) return -1;
    const int status = train_take_weights(net, &f, err, n);
    safetensors_close(&f);
    return status;
}
