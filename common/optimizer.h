// optimizer.h -- the kinds of optimizers, and the scalar factors of an AdamW step.
//
// Header-only; C11, C++17 and CUDA. common/options.h has the option that chooses a kind, common/layers.cuh the kernels.
//
//     OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW      in the order of --optimizer sgd|momentum|adamw
//     adamw_factors f = adamw_factors_of(lr, weight_decay, step);      step counts from 0
#pragma once
#include <math.h>
#include <stdint.h>

enum { OPTIMIZER_SGD, OPTIMIZER_MOMENTUM, OPTIMIZER_ADAMW };

// AdamW as torch.optim.AdamW, with t = step + 1:
//     m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
//     w = w (1 - lr decay) - lr m^ / (sqrt(v^) + eps)
// m and v start from zero, so after t steps their weights add up to 1 - beta^t only. The bias correction divides by
// that sum: m^ = m / (1 - beta1^t), v^ = v / (1 - beta2^t).
typedef struct adamw_factors {
    float keep;          // 1 - lr * weight decay: the decay is decoupled from the gradient
    float step_size;     // lr / (1 - beta1^t): the learning rate and the correction of m
    float root;          // sqrt(1 - beta2^t): sqrt(v^) = sqrt(v) / root
    float beta1, beta2;
    float rest1, rest2;  // 1 - beta1 and 1 - beta2, rounded from double: the float 1 - 0.999f is off by 1.3e-5
    float eps;
} adamw_factors;

// The factors of a step, with PyTorch's betas and eps.
static inline adamw_factors adamw_factors_of(double lr, double weight_decay, int64_t step) {
    const double beta1 = 0.9;
    const double beta2 = 0.999;
    const double t = (double)step + 1;
    adamw_factors f;
    f.keep = (float)(1 - lr * weight_decay);
    f.step_size = (float)(lr / (1 - pow(beta1, t)));
    f.root = (float)sqrt(1 - pow(beta2, t));
    f.beta1 = (float)beta1;
    f.beta2 = (float)beta2;
    f.rest1 = (float)(1 - beta1);
    f.rest2 = (float)(1 - beta2);
    f.eps = 1e-8f;
    return f;
}
