// trainer_mlp.h -- what tests of train_mlp share, beside trainer.h: a model, and a reference's values in it. Include it
// after the trainer, ref_mlp.h and trainer.h.
#pragma once
#include "ref_mlp.h"
#include "trainer.h"

// Builds a model for up to rows rows at a time; stops the program when it cannot.
static inline void build(model *m, const int *dims, int n_layers, const config *c, int rows) {
    char err[256];
    if (model_create(m, dims, n_layers, c, rows, err, sizeof err)) {
        fprintf(stderr, "trainer_mlp.h: %s\n", err);
        exit(1);
    }
}

// Copies parameters and running statistics of the reference into the model, tensor by tensor, by name.
static inline void copy_to_model(model *m, RefMlp *ref) {
    for (int i = 0; i < m->net.n_tensors; i++) {
        const train_tensor *t = &m->net.tensors[i];
        const RefTensor *r = ref_mlp_tensor(ref, t->name);
        if (CHECK(r && r->rows == t->rows && r->cols == t->cols, "the reference has the tensor"))
            upload(m->net.params + t->offset, r->data, r->n);
    }
    for (int l = 0; l < m->n_layers - 1 && m->norm == NORM_BATCH; l++) {
        upload(m->running_mean[l], ref->running_mean[l], (size_t)m->dim[l + 1]);
        upload(m->running_var[l], ref->running_var[l], (size_t)m->dim[l + 1]);
    }
}
