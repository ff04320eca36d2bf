# Makefile of rescale.c. `make help` lists every target with one line of why.
#
#     make run            trains with and without rescaling, side by side; no GPU needed
#     make test           runs all tests; make test T="test_rng test_gemm": these
#     make DEVICE=cuda    forces the GPU build, DEVICE=cpu the CPU build; default: a GPU where nvcc and a GPU are found
# Both builds live side by side in build/cpu and build/cuda.
# Options: CC, CXX, NVCC, OPENBLAS=0 or 1, ZLIB=0, CUDA_ARCH="80 90".

SHELL := /bin/sh
# The same sorting, numbers and messages in every locale.
export LC_ALL := C
# A script that calls make starts one of its own: without this one's jobs and options. Variables of the command line are
# in its environment.
unexport MAKEFLAGS MFLAGS
.DELETE_ON_ERROR:
.SUFFIXES:
.SECONDARY:

NVCC ?= nvcc
DEVICE ?= $(shell command -v $(NVCC) >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE must be cpu or cuda, not '$(DEVICE)')
endif
# A CUDA build, and nvcc-check, need nvcc: said once, before anything is built.
GOALS := $(or $(MAKECMDGOALS),all)
CUDA_GOALS := $(if $(filter cuda,$(DEVICE)),$(GOALS),$(filter nvcc-check build/nvcc/%,$(GOALS)))
NEEDS_NVCC := $(filter-out help clean gpu-check train_gpt_style compare build/c/%,$(CUDA_GOALS))
ifneq ($(NEEDS_NVCC),)
ifeq ($(shell command -v $(firstword $(NVCC)) 2>/dev/null),)
$(error no nvcc '$(NVCC)': install the CUDA Toolkit, set NVCC, or build with DEVICE=cpu)
endif
endif
B := build/$(DEVICE)

# What this machine has (compilers' flags, OpenBLAS, zlib) is probed once, by dev/configure.sh.
ifeq ($(filter help clean lint,$(MAKECMDGOALS)),)
include build/config.mk
endif

WARN := -Wall -Wextra -Wpedantic
SANITIZE := -O1 -g1 $(OPENMP) -fsanitize=address,undefined -fno-sanitize-recover=undefined
OPT ?= -O3 $(MARCH) $(OPENMP) -fno-math-errno -fno-trapping-math
EXTRA ?=
CFLAGS := -std=c11 -D_GNU_SOURCE $(WARN) $(OPT) $(EXTRA)
CXXFLAGS := -std=c++17 $(WARN) $(OPT) $(FCF) $(EXTRA)
CPU_DEFS := $(DEFS)
CPU_LIBS := $(LIBS) -lm
CUDA_ARCH ?= native
NVCC_ARCH := $(foreach a,$(CUDA_ARCH),$(if $(filter native,$a),-arch=native,-gencode arch=compute_$a,code=sm_$a))
NVCCFLAGS := -std=c++17 -O3 $(NVCC_ARCH) -Xcompiler -Wall,-Wextra,-fopenmp -Werror all-warnings
NVCC_DEFS := $(filter -DUSE_ZLIB,$(DEFS))
NVCC_LIBS := -lcublas $(filter -lz,$(LIBS)) -lgomp
NVCC_INCLUDES := -I. -Itest -Idev/bench

CUH := $(wildcard *.cuh common/*.cuh)
HEADERS := $(wildcard common/*.h) $(CUH)
CU2CPP := common/cu2cpp.sh common/cu2cpp.sed
C_TESTS := $(patsubst test/%.c,%,$(wildcard test/test_*.c))
CU_TESTS := $(filter-out test_cuda_cpu_errors,$(patsubst test/%.cu,%,$(wildcard test/test_*.cu)))
C_BENCH := $(patsubst dev/bench/%.c,%,$(wildcard dev/bench/bench_*.c))
CU_BENCH := $(patsubst dev/bench/%.cu,%,$(wildcard dev/bench/bench_*.cu))
KERNELS := $(patsubst dev/kernels/%.cu,%,$(wildcard dev/kernels/*.cu))

TRAINERS := train_mlp train_cnn train_gpt_style
.PHONY: all help clean $(TRAINERS) compare run shakespeare test test-programs sanitize fuzz faults lint nvcc-check
.PHONY: gpu-check
.PHONY: kernels kernels-list kernels-test kernels-bench kernels-report sanitized orders
.PHONY: bench bench-programs tables paper-report

all: $(TRAINERS) compare           ## use: builds the trainers for this machine

# `target: ## group: why`; the groups are those who need it.
help:                              ## use: this list
	@for group in use kernels develop gpu; do \
	    case $$group in \
	    use) echo "To use rescale.c:" ;; \
	    kernels) printf '\nTo read the kernels:\n' ;; \
	    develop) printf '\nTo change the code:\n' ;; \
	    gpu) printf '\nWith a GPU or nvcc:\n' ;; \
	    esac; \
	    sed -n "s/^\([a-z_-]*\):.*## $$group: \(.*\)/  \1	\2/p" Makefile | expand -t 20; \
	done

# ---------------------------------------------------------------------------------------------------------- programs
# For the CPU, every .cu and .cuh passes through common/cu2cpp.sh and is compiled as C++17.

build/cpu/%.cu: %.cu $(CU2CPP)
	@mkdir -p $(@D)
	@sh common/cu2cpp.sh $< >$@
build/cpu/%.cuh: %.cuh $(CU2CPP)
	@mkdir -p $(@D)
	@sh common/cu2cpp.sh $< >$@

build/cpu/%: build/cpu/%.cu $(addprefix build/cpu/,$(CUH)) $(HEADERS) build/config.mk
	$(CXX) $(CXXFLAGS) $(CPU_DEFS) -Ibuild/cpu -I. -Itest -Idev/bench -x c++ $< -o $@ $(CPU_LIBS)
build/cuda/%: %.cu $(HEADERS) build/config.mk
	@mkdir -p $(@D)
	$(NVCC) $(NVCCFLAGS) $(NVCC_DEFS) $(NVCC_INCLUDES) $< -o $@ $(NVCC_LIBS)

# Plain C programs do not depend on the device.
build/c/%: %.c $(HEADERS) $(wildcard test/*.h) build/config.mk
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CPU_DEFS) -I. -Itest $< -o $@ $(CPU_LIBS)

# Kernel variants: convolution is compared with cuDNN where it is installed; max_pool, layernorm and attention include
# a trainer.
$(addprefix $(B)/dev/kernels/,$(KERNELS)): dev/kernels/kernels.h test/test.h
build/cuda/dev/kernels/convolution: NVCC_DEFS += $(CUDNN_DEFS)
build/cuda/dev/kernels/convolution: NVCC_LIBS += $(CUDNN_LIBS)
build/c/dev/compare build/c/dev/kernels/plot build/c/dev/paper/report: dev/plot.h
TIMED := $(addprefix $(B)/dev/kernels/,$(KERNELS)) $(addprefix $(B)/dev/bench/,$(CU_BENCH))
$(TIMED) $(addprefix build/c/dev/bench/,$(C_BENCH)): dev/timing.h

# Tests and benchmarks include a trainer.
$(addprefix $(B)/test/,$(CU_TESTS)): $(wildcard test/*.h) train_mlp.cu train_cnn.cu
$(addprefix $(B)/dev/bench/,$(CU_BENCH)): $(wildcard dev/bench/*.h) train_mlp.cu train_cnn.cu
build/cpu/test/test_mlp build/cpu/test/test_mlp_kernel build/cpu/dev/bench/bench_rescale: build/cpu/train_mlp.cu
build/cpu/test/test_cnn build/cpu/test/test_cnn_rescale build/cpu/test/test_cnn_kernel: build/cpu/train_cnn.cu
build/cpu/dev/bench/bench_cnn: build/cpu/train_cnn.cu
build/cpu/dev/kernels/max_pool: build/cpu/train_cnn.cu
GPT_PROGRAMS := test/test_gpt test/test_gpt_double test/test_gpt_kernel dev/bench/bench_gpt
$(addprefix build/c/,$(GPT_PROGRAMS)): train_gpt_style.c
build/cuda/dev/kernels/max_pool: train_cnn.cu
build/cpu/dev/kernels/layernorm build/cpu/dev/kernels/attention: train_gpt_style.c dev/kernels/gpt.h
build/sanitize/dev/kernels/layernorm build/sanitize/dev/kernels/attention: train_gpt_style.c dev/kernels/gpt.h

train_mlp: $(B)/train_mlp          ## use: the MLP trainer: ./train_mlp --help
	@ln -sf $(B)/train_mlp train_mlp
train_cnn: $(B)/train_cnn          ## use: the trainer of convolutional nets: ./train_cnn --help
	@ln -sf $(B)/train_cnn train_cnn
train_gpt_style: build/c/train_gpt_style ## use: the language-model trainer, on the CPU only: ./train_gpt_style --help
	@ln -sf build/c/train_gpt_style train_gpt_style
compare: build/c/dev/compare       ## use: the program that prints runs side by side and plots them

build/config.mk: dev/configure.sh Makefile
	@mkdir -p build
	@CC="$(CC)" CXX="$(CXX)" NVCC="$(NVCC)" OPENBLAS="$(OPENBLAS)" ZLIB="$(ZLIB)" sh dev/configure.sh >$@

# -------------------------------------------------------------------------------------------------------------- use

run: train_mlp compare             ## use: trains none / PathCond / ENorm side by side; table and plot in out/
	@sh dev/run.sh ./train_mlp build/c/dev/compare

shakespeare: train_gpt_style compare ## use: trains a language model on tiny Shakespeare in minutes, prints a sample
	@sh dev/shakespeare.sh ./train_gpt_style build/c/dev/compare

# The deliberate mistakes of test_cuda_cpu_errors.cu are for the CPU runtime, with and without sanitizers.
ERRORS := $(if $(filter cpu,$(DEVICE)),build/errors/test_cuda_cpu_errors build/errors/test_cuda_cpu_errors_san)
build/errors/test_cuda_cpu_errors: build/cpu/test/test_cuda_cpu_errors.cu $(HEADERS) build/config.mk
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -I. -x c++ $< -o $@ -lm
build/errors/test_cuda_cpu_errors_san: build/cpu/test/test_cuda_cpu_errors.cu $(HEADERS) build/config.mk
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 $(WARN) $(SANITIZE) -I. -x c++ $< -o $@ -lm 2>/dev/null || \
	    echo "no sanitizers for $(CXX): those checks are skipped"

# Variants of kernels (dev/kernels/README.md). OP=NAME: only that file, or the file of that operation.
OP_FILE = $(or $(wildcard dev/kernels/$(OP).cu),$(shell grep -l '{"$(OP)", ' dev/kernels/*.cu))
KERNELS_USED := $(if $(OP),$(patsubst dev/kernels/%.cu,%,$(OP_FILE)),$(filter-out broken,$(KERNELS)))
KERNEL_PROGRAMS := $(addprefix $(B)/dev/kernels/,$(KERNELS_USED) broken) build/c/dev/kernels/plot
export OP VARIANT SHAPE SECONDS_EACH
kernels-list kernels-report kernels-bench: $(KERNEL_PROGRAMS)
	@sh dev/kernels/run.sh $(@:kernels-%=%) $(B) $(KERNELS_USED)
KERNEL_OBJECTS := $(KERNELS_USED:%=build/nvcc/dev/kernels/%.o)
kernels-test: $(KERNEL_PROGRAMS) $(if $(shell command -v $(NVCC)),$(KERNEL_OBJECTS))
	@sh dev/kernels/run.sh test $(B) $(KERNELS_USED)
# For test/sanitize.sh: kernels and tests under sanitizers, without OpenBLAS and without fused multiply-adds, so that
# results have the same bits in every thread order.
KERNEL_HEADERS := dev/kernels/kernels.h dev/timing.h test/test.h
build/sanitize/dev/kernels/%: build/cpu/dev/kernels/%.cu $(addprefix build/cpu/,$(CUH) train_cnn.cu) $(HEADERS) \
                              $(KERNEL_HEADERS) build/config.mk
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 $(WARN) $(SANITIZE) -Ibuild/cpu -I. -Itest -x c++ $< -o $@ -lm
build/sanitize/test/%: test/%.c train_gpt_style.c $(HEADERS) $(wildcard test/*.h) build/config.mk
	@mkdir -p $(@D)
	@$(CC) -std=c11 -D_GNU_SOURCE $(WARN) $(SANITIZE) -DTEST_REDUCED $(filter -DUSE_ZLIB,$(DEFS)) -I. -Itest $< -o $@ \
	    $(filter -lz,$(LIBS)) -lm
CPU_CU := $(addprefix build/cpu/,$(CUH) train_mlp.cu train_cnn.cu)
build/sanitize/test/%: build/cpu/test/%.cu $(CPU_CU) $(HEADERS) $(wildcard test/*.h) build/config.mk
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 $(WARN) $(SANITIZE) -DTEST_REDUCED $(filter -DUSE_ZLIB,$(DEFS)) -Ibuild/cpu -I. -Itest \
	    -x c++ $< -o $@ $(filter -lz,$(LIBS)) -lm
build/sanitize/orders/%: build/cpu/test/%.cu $(CPU_CU) $(HEADERS) $(wildcard test/*.h) build/config.mk
	@mkdir -p $(@D)
	@$(CXX) -std=c++17 $(WARN) -O2 $(OPENMP) -Ibuild/cpu -I. -Itest -x c++ $< -o $@ -lm
sanitized: $(addprefix build/sanitize/test/,$(C_TESTS) $(CU_TESTS)) $(KERNELS:%=build/sanitize/dev/kernels/%)
orders: build/sanitize/orders/test_mlp build/sanitize/orders/test_cnn
kernels: kernels-test              ## kernels: checks all variants; make -C dev/kernels list, test, bench, report

# The fault campaign: a driver, and a library that it loads before a trainer's C library.
FAULTS := build/c/test/faults build/c/test/fault_lib.so
build/c/test/fault_lib.so: test/fault_lib.c build/config.mk
	@mkdir -p $(@D)
	$(CC) -std=c11 -D_GNU_SOURCE $(WARN) -O2 -shared -fPIC $< -o $@ -ldl

TEST_PROGRAMS := $(addprefix build/c/test/,$(C_TESTS)) $(addprefix $(B)/test/,$(CU_TESTS))
test-programs: $(TEST_PROGRAMS) $(KERNEL_PROGRAMS) $(ERRORS) build/c/test/damage $(FAULTS)
# T="NAME...": these tests, test/NAME.*, or dev/kernels. A program needs only itself, a script the trainers, and that of
# a trainer only this one.
ifneq ($(origin T),command line)
T :=
endif
ALL_TESTS := $(basename $(notdir $(wildcard test/test_*))) dev/kernels
UNKNOWN_TESTS := $(filter-out $(ALL_TESTS),$(T))
ifneq ($(UNKNOWN_TESTS),)
$(error T=$(firstword $(UNKNOWN_TESTS)): no test has this name; ls test/test_* shows them, and there is dev/kernels)
endif
NEEDED_dev/kernels := $(KERNEL_PROGRAMS)
$(foreach t,$(TRAINERS),$(eval NEEDED_test_$t := $t compare build/c/test/damage))
SCRIPTS_NEED := $(TRAINERS) compare build/c/dev/paper/report build/c/test/damage $(ERRORS) $(FAULTS)
needed = $(or $(filter %/test/$1,$(TEST_PROGRAMS)),$(NEEDED_$1),$(SCRIPTS_NEED))
TEST_NEEDS := $(if $(T),$(foreach t,$(T),$(call needed,$t)),$(SCRIPTS_NEED) test-programs)
test: $(TEST_NEEDS)                ## develop: runs every test and counts them; T="NAME...": these, such as T=test_rng
	@mkdir -p $(B)/test build/c/test
	@$(if $(T),ONLY="$(T)") sh test/run.sh $(B) build/c $(KERNELS_USED)

BENCH_PROGRAMS := $(addprefix $(B)/dev/bench/,$(CU_BENCH))
BENCH_PROGRAMS += $(if $(filter cpu,$(DEVICE)),$(addprefix build/c/dev/bench/,$(C_BENCH)))
bench-programs: $(BENCH_PROGRAMS)
bench: train_mlp train_cnn $(BENCH_PROGRAMS) ## develop: times steps and rescaling, beside PyTorch; BENCH=cnn: only it
	@sh dev/bench/run.sh $(B) build/c $(BENCH)

# The experiments of dev/paper (its Makefile is the way in); QUICK=1 is for a CPU.
PAPER := moons fc-depth allconv autoencoder scale held-out cost explosions
.PHONY: $(PAPER:%=paper-%)
$(PAPER:%=paper-%): train_mlp train_cnn
	@sh dev/paper/run.sh $(@:paper-%=%)
paper-report: build/c/dev/paper/report compare
	@sh dev/paper/run.sh plots && sh dev/tables.sh dev/paper/README.md

tables: build/c/dev/paper/report compare ## develop: writes the tables in the documents anew from their CSV files
	@sh dev/tables.sh README.md doc/results.md doc/house.md dev/kernels/README.md \
	    dev/paper/README.md dev/paper/criteria.md doc/faults.md

gpu-check:                         ## gpu: all checks in stages, STAGE=build|tests|compare|sanitizer|bench|kernels
	@DEVICE=cuda sh dev/gpu_check.sh $(or $(STAGE),all) $(or $(DIR),out/gpu)

NVCC_SOURCES := $(wildcard *.cu test/test_*.cu dev/bench/*.cu dev/kernels/*.cu)
NVCC_OBJECTS := $(NVCC_SOURCES:%.cu=build/nvcc/%.o)
# One call for both architectures reads a file once for the host; what the host's compiler optimises is of no interest.
NVCC_CHECK := $(filter-out $(NVCC_ARCH),$(NVCCFLAGS)) -Xcompiler -O1 \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
build/nvcc/%.o: %.cu $(HEADERS) $(wildcard *.cu test/*.h dev/*.h dev/bench/*.h dev/kernels/*.h) build/config.mk
	@mkdir -p $(@D)
	@echo "nvcc sm_80 sm_90 $<"
	@$(NVCC) $(NVCC_CHECK) $(NVCC_DEFS) $(CUDNN_DEFS) $(NVCC_INCLUDES) -c $< -o $@
nvcc-check: $(NVCC_OBJECTS)        ## gpu: compiles every .cu for sm_80 and sm_90, warnings are errors; needs no GPU

lint:                              ## develop: the rules of the house (dev/lint.c); every header compiles by itself
	@CC="$(CC)" CXX="$(CXX)" NVCC="$(NVCC)" sh dev/style.sh

sanitize:                          ## develop: all tests under AddressSanitizer and UBSan, and in other thread orders
	@sh test/sanitize.sh

fuzz:                              ## develop: a short deterministic fuzz of every file reader
	@sh test/fuzz.sh

faults: train_mlp train_gpt_style $(FAULTS) ## develop: every fault at every file operation of a run, and its table
	@mkdir -p test/results
	@$(FAULTS:%.so=--all --csv test/results/faults.csv %.so) ./train_mlp ./train_gpt_style
	@sh dev/tables.sh doc/faults.md

clean:                             ## use: removes build/ and out/, keeps data/
	rm -rf build out train_mlp train_cnn train_gpt_style
