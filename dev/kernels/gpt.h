// gpt.h -- the layers of the language-model trainer (train_gpt_style.c, plain C for CPUs) for layernorm.cu and
// attention.cu. Include it before kernels.h, in the CPU build.
//
// The trainer's names are in the namespace gpt, since some of them are kernels.h's, too; its headers come first,
// outside of it.
#pragma once
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#include "common/real.h"
#include "common/gemm.h"
#include "common/rng.h"
#include "common/safetensors.h"
#include "common/cli.h"
#include "common/log.h"
#include "rescale.cuh"
#include "common/corpus.h"
#include "common/gpt_rescale.h"
#include "common/sample.h"
#include "common/train.h"
#undef RESCALE_REAL  // the trainer says so itself: float
#define TESTING
namespace gpt {
#include "train_gpt_style.c"
}

enum { GPT_WIDTH = 1024 };  // channels of a head, at most

// A model with nothing but what attention and LayerNorm of rows x C need: scratch memory, and sums of n floats.
static gpt::model *gpt_model(int NH, int C, size_t n) {
    static gpt::model m;
    static size_t room;
    char err[256];
    if (!m.scratch) {
        m.threads = device_threads();
        m.scratch = (gpt::scratch *)calloc((size_t)m.threads, sizeof *m.scratch);
        for (int t = 0; t < m.threads; t++) {
            gpt::scratch *s = &m.scratch[t];
            if (gemm_create(&s->gemm, GEMM_FP32, err, sizeof err)) {
                fprintf(stderr, "%s\n", err);
                exit(1);
            }
            s->gemm.threads = 1;
            s->scores = gpt::alloc_reals(gpt::KEYS * gpt::STRIP);
            s->dscores = gpt::alloc_reals(gpt::KEYS * gpt::STRIP);
            s->out = gpt::alloc_reals(gpt::STRIP * GPT_WIDTH);
            s->max = gpt::alloc_reals(gpt::STRIP);
            s->old = gpt::alloc_reals(gpt::STRIP);
            s->sum = gpt::alloc_reals(gpt::STRIP);
        }
    }
    if (n > room) {
        free(m.partial);
        m.partial = gpt::alloc_reals(n);
        room = n;
    }
    m.NH = NH;
    m.C = C;
    m.HS = C / NH;
    return &m;
}
