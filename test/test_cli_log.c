// test_cli_log.c -- common/cli.h and common/log.h: every error and help path of the command line (exit status and
// exact text), cutting back a log on resume, JSON escapes, full disk, unwritable folders, signals, progress output.
#include "../common/cli.h"
#include "../common/log.h"
#include "test.h"
#include <sys/resource.h>
#include <sys/wait.h>

static char dir[1024];           // temporary folder of this run
static char out_text[1 << 16], err_text[1 << 16];

// Path of a file in the temporary folder; valid for the next four calls.
static const char *in_dir(const char *name) {
    static char path[4][1200];
    static int at;
    at = (at + 1) % 4;
    snprintf(path[at], sizeof path[at], "%s/%s", dir, name);
    return path[at];
}

// Reads a whole text file, empty when it is not there.
static void slurp(const char *path, char *text, size_t size) {
    FILE *f = fopen(path, "r");
    size_t n = 0;
    if (f) {
        n = fread(text, 1, size - 1, f);
        fclose(f);
    }
    text[n] = 0;
}

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    if (!f || fputs(text, f) < 0 || fclose(f)) {
        perror(path);
        exit(1);
    }
}

// Runs body(argument) in a child with stdout and stderr in out_text and err_text. Returns the exit status, or
// 128 + signal when one ended it.
static int in_child(void (*body)(void *), void *argument) {
    char out_path[1200], err_path[1200];
    int status = 0;
    snprintf(out_path, sizeof out_path, "%s/child.out", dir);
    snprintf(err_path, sizeof err_path, "%s/child.err", dir);
    fflush(stdout);
    fflush(stderr);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGINT, SIG_DFL);  // a shell that runs this in the background has it ignored
        if (!freopen(out_path, "w", stdout) || !freopen(err_path, "w", stderr)) _exit(99);
        body(argument);
        exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("fork");
        exit(1);
    }
    slurp(out_path, out_text, sizeof out_text);
    slurp(err_path, err_text, sizeof err_text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// Counts one check that two texts are the same, showing both when they are not.
static int same_text(const char *what, const char *got, const char *want) {
    const int ok = !strcmp(got, want);
    if (!ok) printf("got  <<%s>>\nwant <<%s>>\n", got, want);
    return CHECK(ok, what);
}

// ---------------------------------------------------------------------------------------------------------------------
// Command line

static double lr = 0.1, beta = 0.9, bound = 0, target = 0;
static int epochs = 20, bias = 1, quiet = 0, init = 0;
static int64_t seed = 1;
static const char *save = NULL, *data = "fashion-mnist";
static cli_ints layers = {3, {784, 512, 10}};
static cli_every every = {0, CLI_STEPS};
static cli_option options[] = {
    CLI_GROUP("Data and model"),
    CLI_STRING("data", &data, "NAME|PATH", "moons, fashion-mnist, mnist, or a folder"),
    CLI_INTS("layers", &layers, "N,N,...", 1, 1e6, "units of each layer, input first"),
    CLI_CHOICE("init", &init, "kaiming-uniform|kaiming-normal", "initialisation of the weights; kaiming-uniform is "
               "the default of PyTorch's linear and convolution layers"),
    CLI_NO_FLAG("no-bias", &bias, "leave out the biases"),
    CLI_GROUP("Training"),
    CLI_DOUBLE("lr", &lr, "X", 0, CLI_NO_MAX, CLI_ABOVE_MIN, "learning rate"),
    CLI_DOUBLE("momentum", &beta, "X", 0, 1, CLI_BELOW_MAX, "momentum"),
    CLI_DOUBLE("rescale-max-log", &bound, "X", 0, 10, 0, "bound on |log lambda|, 0: none"),
    CLI_DOUBLE("target-loss", &target, "X", CLI_NO_MIN, CLI_NO_MAX, CLI_ALLOW_NONFINITE, "stop there"),
    CLI_INT("epochs", &epochs, "N", 0, CLI_NO_MAX, "passes over the training set"),
    CLI_INT64("seed", &seed, "N", 0, CLI_NO_MAX, "seed of all random numbers"),
    CLI_EVERY("rescale-every", &every, "rescale again after that many steps or epochs, 0: only at init"),
    CLI_GROUP("Output"),
    CLI_STRING("save", &save, "FILE", "write the final weights"),
    CLI_FLAG("quiet", &quiet, "no progress line"),
};
enum { N_OPTIONS = sizeof options / sizeof *options };

static cli_rest rest;
static cli_option rest_options[] = {
    CLI_REST(&rest, "NAME=DIR ...", 1, 3, "runs to compare"),
    CLI_FLAG("quiet", &quiet, "no progress line"),
};

typedef struct {
    int argc;
    char **argv;
    int with_rest;
} arguments;

// Parses and prints what the variables hold.
static void child_parse(void *argument) {
    arguments *a = (arguments *)argument;
    if (a->with_rest) {
        cli_parse("compare", "Compares runs.", "1.2.3", rest_options, 2, a->argc, a->argv);
        printf("quiet %d rest", quiet);
        for (int i = 0; i < rest.n; i++) printf(" %s", rest.v[i]);
        return;
    }
    cli_parse("train_mlp", "Trains an MLP.", "1.2.3", options, N_OPTIONS, a->argc, a->argv);
    printf("lr %g momentum %g bound %g target %g epochs %d seed %lld bias %d quiet %d init %d save %s data %s layers",
           lr, beta, bound, target, epochs, (long long)seed, bias, quiet, init, save ? save : "-", data);
    for (int i = 0; i < layers.n; i++) printf(" %d", layers.v[i]);
    printf(" every %lld %d given", (long long)every.n, every.unit);
    for (int i = 0; i < N_OPTIONS; i++) {
        if (options[i].kind != CLI_KIND_GROUP && cli_given(options, N_OPTIONS, options[i].name)) {
            printf(" %s", options[i].name);
        }
    }
}

// Runs the parser on a command line: words separated by one blank, "" is an empty word.
static int run_cli(const char *line, int with_rest) {
    static char words[4096], program[] = "prog", empty[] = "";
    char *argv[64];
    arguments a = {1, argv, with_rest};
    argv[0] = program;
    snprintf(words, sizeof words, "%s", line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        argv[a.argc++] = strcmp(word, "\"\"") ? word : empty;
    }
    argv[a.argc] = NULL;
    return in_child(child_parse, &a);
}

// A command line that is refused: one line on stderr, nothing on stdout, status 2.
static void refused(const char *line, const char *message) {
    char want[2048];
    const int status = run_cli(line, 0);
    snprintf(want, sizeof want, "train_mlp: %s (see --help)\n", message);
    same_text(line, err_text, want);
    CHECK(status == 2 && !out_text[0], line);
}

// A command line that is accepted, and the part of the printed variables that it sets.
static void accepted(const char *line, const char *part) {
    const int status = run_cli(line, 0);
    if (!CHECK(status == 0 && !err_text[0], line)) printf("status %d, %s", status, err_text);
    if (!CHECK(strstr(out_text, part) != NULL, line)) printf("got '%s', want '%s'\n", out_text, part);
}

static void test_values(void) {
    accepted("",
             "lr 0.1 momentum 0.9 bound 0 target 0 epochs 20 seed 1 bias 1 quiet 0 init 0 save - data fashion-mnist "
             "layers 784 512 10 every 0 0 given");
    accepted("--lr 0.5 --epochs=3 --no-bias --quiet", "epochs 3 seed 1 bias 0 quiet 1");
    accepted("--lr=1e-3", "lr 0.001 ");
    accepted("--lr .5", "lr 0.5 ");
    accepted("--lr +2", "lr 2 ");
    accepted("--lr 1e-310", "lr 1e-310 ");
    accepted("--lr 1 --lr 2 --lr 3", "lr 3 ");
    accepted("--epochs 0", "epochs 0 ");
    accepted("--epochs 2147483647", "epochs 2147483647 ");
    accepted("--momentum 0", "momentum 0 ");
    accepted("--rescale-max-log 10", "bound 10 ");
    accepted("--target-loss -1", "target -1 ");
    accepted("--target-loss=-1.5e2", "target -150 ");
    accepted("--target-loss inf", "target inf ");
    accepted("--target-loss -inf", "target -inf ");
    accepted("--target-loss nan", "target nan ");
    accepted("--seed 9223372036854775807", "seed 9223372036854775807 ");
    accepted("--init kaiming-normal", "init 1 ");
    accepted("--layers 2,3", "layers 2 3 every");
    accepted("--layers=7", "layers 7 every");
    accepted("--rescale-every 100steps", "every 100 0 ");
    accepted("--rescale-every 1step", "every 1 0 ");
    accepted("--rescale-every 2epochs", "every 2 1 ");
    accepted("--rescale-every=1epoch", "every 1 1 ");
    accepted("--rescale-every 0", "every 0 0 ");
    accepted("--save -x", "save -x ");
    accepted("--save -", "save - ");
    accepted("--save=--odd", "save --odd ");
    const char *text = "before";
    cli_option table[] = {CLI_TEXT("prompt", &text, "TEXT", "what it continues")};
    char word[] = "--prompt", empty[] = "", joined[] = "--prompt=", program[] = "prog", message[200];
    char *apart[] = {program, word, empty, NULL}, *together[] = {program, joined, NULL};
    CHECK(cli_try(table, 1, 3, apart, message, sizeof message) == CLI_OK && !*text, "an empty text, apart");
    text = "before";
    CHECK(cli_try(table, 1, 2, together, message, sizeof message) == CLI_OK && !*text, "an empty text, together");
    accepted("--data=a=b", "data a=b ");
    accepted("--quiet --", "quiet 1 ");
    run_cli("--seed 4 --lr 1 --quiet", 0);
    CHECK(strstr(out_text, "given lr seed quiet") != NULL && strlen(strstr(out_text, "given")) == 19, "cli_given");
}

static void test_refused_numbers(void) {
    refused("--lr abc", "--lr: expected a number > 0, got 'abc'");
    refused("--lr 12abc", "--lr: expected a number > 0, got '12abc'");
    refused("--lr \"\"", "--lr: expected a number > 0, got ''");
    refused("--lr=", "--lr: expected a number > 0, got ''");
    refused("--lr -1", "--lr: expected a number > 0, got '-1'");
    refused("--lr 0", "--lr: expected a number > 0, got '0'");
    refused("--lr 1e999", "--lr: expected a number > 0, got '1e999'");
    refused("--lr 1e-999", "--lr: expected a number > 0, got '1e-999'");
    refused("--lr nan", "--lr: expected a number > 0, got 'nan'");
    refused("--lr inf", "--lr: expected a number > 0, got 'inf'");
    refused("--lr 0x10", "--lr: expected a number > 0, got '0x10'");
    refused("--lr 1,5", "--lr: expected a number > 0, got '1,5'");
    refused("--lr 1e", "--lr: expected a number > 0, got '1e'");
    refused("--lr -", "--lr: expected a number > 0, got '-'");
    refused("--lr", "--lr: expected a number > 0, got nothing");
    refused("--lr --epochs 3", "--lr: expected a number > 0, got the option '--epochs'");
    refused("--save --epochs 3", "--save: expected a value (FILE), got the option '--epochs'");
    refused("--save", "--save: expected a value (FILE), got nothing");
    refused("--save \"\"", "--save: expected a value (FILE), got ''");
    refused("--momentum 1", "--momentum: expected a number >= 0 and < 1, got '1'");
    refused("--momentum -0.1", "--momentum: expected a number >= 0 and < 1, got '-0.1'");
    refused("--rescale-max-log 10.5", "--rescale-max-log: expected a number between 0 and 10, got '10.5'");
    refused("--target-loss infinity", "--target-loss: expected a number, got 'infinity'");
    refused("--epochs 1.5", "--epochs: expected an integer >= 0, got '1.5'");
    refused("--epochs 1e3", "--epochs: expected an integer >= 0, got '1e3'");
    refused("--epochs -2", "--epochs: expected an integer >= 0, got '-2'");
    refused("--epochs \"\"", "--epochs: expected an integer >= 0, got ''");
    refused("--epochs +", "--epochs: expected an integer >= 0, got '+'");
    refused("--epochs --2", "--epochs: expected an integer >= 0, got the option '--2'");
    refused("--epochs 2147483648", "--epochs: expected an integer between 0 and 2147483647, got '2147483648'");
    refused("--epochs 99999999999999999999",
            "--epochs: expected an integer between 0 and 2147483647, got '99999999999999999999'");
    refused("--seed 9223372036854775808",
            "--seed: expected an integer between 0 and 9223372036854775807, got '9223372036854775808'");
}

static void test_refused_lists(void) {
    refused("--init xavier", "--init: expected one of kaiming-uniform, kaiming-normal, got 'xavier'");
    refused("--init kaiming",
            "--init: expected one of kaiming-uniform, kaiming-normal, got 'kaiming', did you mean kaiming-uniform?");
    refused(
        "--init kaiming-nromal",
        "--init: expected one of kaiming-uniform, kaiming-normal, got 'kaiming-nromal', did you mean kaiming-normal?");
    refused("--init=", "--init: expected one of kaiming-uniform, kaiming-normal, got ''");
    refused("--layers 784,,10",
            "--layers: expected a comma-separated list of integers between 1 and 1000000, got '784,,10'");
    refused("--layers 784,10,",
            "--layers: expected a comma-separated list of integers between 1 and 1000000, got '784,10,'");
    refused("--layers 784,0",
            "--layers: expected a comma-separated list of integers between 1 and 1000000, got '784,0'");
    refused("--layers \"\"", "--layers: expected a comma-separated list of integers between 1 and 1000000, got ''");
    refused("--layers 5x", "--layers: expected a comma-separated list of integers between 1 and 1000000, got '5x'");
    refused("--rescale-every 100",
            "--rescale-every: expected a count with its unit (100steps, 2epochs) or 0, got '100'");
    refused("--rescale-every steps",
            "--rescale-every: expected a count with its unit (100steps, 2epochs) or 0, got 'steps'");
    refused("--rescale-every -1steps",
            "--rescale-every: expected a count with its unit (100steps, 2epochs) or 0, got '-1steps'");
    refused("--rescale-every 99999999999999999999steps", "--rescale-every: expected a count with its unit (100steps, "
            "2epochs) or 0, got '99999999999999999999steps'");
}

static void test_refused_words(void) {
    static char long_line[2048], many[4096];
    refused("--quiet=1", "--quiet: takes no value, got '1'");
    refused("--no-bias=", "--no-bias: takes no value, got ''");
    refused("--help=all", "--help: takes no value");
    refused("--epo 3", "unknown option --epo, did you mean --epochs?");
    refused("--epo=3", "unknown option --epo, did you mean --epochs?");
    refused("--l 3", "unknown option --l");
    refused("--qiuet", "unknown option --qiuet, did you mean --quiet?");
    refused("--epoch 3", "unknown option --epoch, did you mean --epochs?");
    refused("--momentun 1", "unknown option --momentun, did you mean --momentum?");
    refused("--save-file x", "unknown option --save-file, did you mean --save?");
    refused("--vresion", "unknown option --vresion, did you mean --version?");
    refused("--frobnicate", "unknown option --frobnicate");
    refused("-q", "unknown option -q");
    refused("-lr 3", "unknown option -lr, did you mean --lr?");
    refused("-1", "unknown option -1");
    refused("train", "unexpected argument 'train'");
    refused("--quiet train --epochs 3", "unexpected argument 'train'");
    refused("--quiet -- train", "unexpected argument 'train'");
    refused("--lr abc --epochs def", "--lr: expected a number > 0, got 'abc'");
    refused("--lr a\nb\x01", "--lr: expected a number > 0, got 'a?b?'");
    refused("--lr \033[2J\xc2\x9b", "--lr: expected a number > 0, got '?[2J?'");

    memset(long_line, 'y', 1000);
    memcpy(long_line, "--lr ", 5);
    CHECK(run_cli(long_line, 0) == 2 && strstr(err_text, "yyy...' (see --help)\n") && strlen(err_text) < 200,
          "a long value is cut in the message");
    strcpy(many, "--layers 1");
    for (int i = 0; i < CLI_MAX_LIST; i++) strcat(many, ",1");
    CHECK(run_cli(many, 0) == 2 && strstr(err_text, ", at most 256 of them, got '1,1,"), "a list that is too long");
    memset(long_line + 2, 'y', 900);
    long_line[902] = 0;
    CHECK(run_cli(long_line, 0) == 2 && strstr(err_text, "unknown option --yyy"), "a long unknown option");
}

static void test_help(void) {
    static const char want[] =
        "Usage: train_mlp [--option value ...]\n"
        "\n"
        "Trains an MLP.\n"
        "\n"
        "Data and model\n"
        "  --data NAME|PATH            moons, fashion-mnist, mnist, or a folder (default fashion-mnist)\n"
        "  --layers N,N,...            units of each layer, input first (default 784,512,10)\n"
        "  --init kaiming-uniform|kaiming-normal\n"
        "                              initialisation of the weights; kaiming-uniform is the default of\n"
        "                              PyTorch's linear and convolution layers (default kaiming-uniform)\n"
        "  --no-bias                   leave out the biases\n"
        "\n"
        "Training\n"
        "  --lr X                      learning rate (default 0.1)\n"
        "  --momentum X                momentum (default 0.9)\n"
        "  --rescale-max-log X         bound on |log lambda|, 0: none (default 0)\n"
        "  --target-loss X             stop there (default 0)\n"
        "  --epochs N                  passes over the training set (default 20)\n"
        "  --seed N                    seed of all random numbers (default 1)\n"
        "  --rescale-every Nsteps|Nepochs\n"
        "                              rescale again after that many steps or epochs, 0: only at init\n"
        "                              (default 0)\n"
        "\n"
        "Output\n"
        "  --save FILE                 write the final weights\n"
        "  --quiet                     no progress line\n"
        "\n"
        "Help\n"
        "  --help                      show this text and exit\n"
        "  --version                   show the version and exit\n";
    CHECK(run_cli("--help", 0) == 0 && !err_text[0], "--help exits 0 with nothing on stderr");
    same_text("--help", out_text, want);
    for (const char *line = out_text; *line; line += strcspn(line, "\n") + 1) {
        CHECK(strcspn(line, "\n") <= 100, "help fits 100 columns");
    }
    CHECK(run_cli("-h", 0) == 0 && !strcmp(out_text, want), "-h");
    CHECK(run_cli("--lr 5 --epochs x --frob --help", 0) == 0 && !strcmp(out_text, want),
          "--help behind other options shows the defaults");
    CHECK(run_cli("--save --help", 0) == 0 && !strcmp(out_text, want), "--help in the place of a value");
    CHECK(run_cli("--save=--help", 0) == 0 && strstr(out_text, "save --help "), "--save=--help is a value");
    CHECK(run_cli("-- --help", 0) == 2, "--help behind -- is an argument");
    CHECK(run_cli("--version", 0) == 0 && !strcmp(out_text, "train_mlp 1.2.3\n") && !err_text[0], "--version");
    CHECK(run_cli("--version --help", 0) == 0 && !strcmp(out_text, "train_mlp 1.2.3\n"), "the first of the two counts");
}

static void test_rest(void) {
    CHECK(run_cli("a=1 --quiet b=2", 1) == 0 && !strcmp(out_text, "quiet 1 rest a=1 b=2"), "arguments between options");
    CHECK(run_cli("a -- --quiet -", 1) == 0 && !strcmp(out_text, "quiet 0 rest a --quiet -"), "arguments behind --");
    run_cli("--quiet", 1);
    same_text("too few", err_text, "compare: expected at least 1 argument: NAME=DIR ... (see --help)\n");
    run_cli("a b c d", 1);
    same_text("too many", err_text,
              "compare: expected at most 3 arguments (NAME=DIR ...), 'd' is one more (see --help)\n");
    CHECK(run_cli("--help", 1) == 0 && !strncmp(out_text, "Usage: compare [--option value ...] NAME=DIR ...\n", 48),
          "help names the arguments");
}

static void child_bad_given(void *unused) {
    (void)unused;
    cli_given(options, N_OPTIONS, "no-such-option");
}

static void child_help_to_full_disk(void *unused) {
    static char program[] = "prog", help[] = "--help";
    char *argv[] = {program, help, NULL};
    (void)unused;
    if (!freopen("/dev/full", "w", stdout)) _exit(99);
    cli_parse("train_mlp", "Trains an MLP.", "1.2.3", options, N_OPTIONS, 2, argv);
}

static void child_usage_error(void *unused) {
    (void)unused;
    cli_usage_error("train_mlp", "--load and --init exclude each other, got '%s'", "x");
}

static void test_cli_rest_of_api(void) {
    CHECK(in_child(child_usage_error, NULL) == 2, "cli_usage_error exits 2");
    same_text("cli_usage_error", err_text, "train_mlp: --load and --init exclude each other, got 'x' (see --help)\n");
    CHECK(in_child(child_bad_given, NULL) == 128 + SIGABRT, "cli_given of an unknown name aborts");
    if (access("/dev/full", W_OK)) {
        test_skip("no /dev/full here: --help on a full disk");
    } else {
        CHECK(in_child(child_help_to_full_disk, NULL) == 1 && strstr(err_text, "cannot write to standard output"),
              "--help that cannot be written exits 1");
    }
    char program[] = "p", flag[] = "--lr=7", *argv[] = {program, flag, NULL}, err[200];
    for (int i = 0; i < 2; i++) {
        lr = 0.1;
        CHECK(cli_try(options, N_OPTIONS, 2, argv, err, sizeof err) == CLI_OK && lr == 7, "parsing twice");
    }
    char text[40];
    cli_number(text, sizeof text, 1e-8);
    same_text("number", text, "1e-8");
    cli_number(text, sizeof text, 1e30);
    same_text("number", text, "1e30");
    cli_number(text, sizeof text, 1.0 / 3);
    same_text("number", text, "0.3333333333333333");
}

// ---------------------------------------------------------------------------------------------------------------------
// CSV log

// Values as words of a command line, and back through another table.
static void test_stored(void) {
    static const char *const want[] = {
        "--name=a b=c",           "--list=3,-4",     "--word=y", "--no-thing", "--x=0.10000000000000001",
        "--big=9007199254740993", "--every=2epochs", "--on"};
    const char *name = "a b=c", *none = NULL, *name2 = NULL, *none2 = NULL;
    cli_ints list = {2, {3, -4}}, list2 = {0, {0}}, empty = {0, {0}};
    int word = 1, word2 = 0, thing = 0, thing2 = 1, steps = -1, steps2 = 7, on = 1, on2 = 0, off = 0;
    double x = 0.1, x2 = 5, unknown = NAN;
    int64_t big = INT64_C(9007199254740993), big2 = 0;
    cli_every every = {2, CLI_EPOCHS}, every2 = {0, CLI_STEPS};
    cli_option from[] = {CLI_GROUP("G"),
                         CLI_STRING("name", &name, "S", ""),
                         CLI_STRING("none", &none, "S", ""),
                         CLI_INTS("list", &list, "N", -9, 9, ""),
                         CLI_INTS("empty", &empty, "N", 0, 9, ""),
                         CLI_CHOICE("word", &word, "x|y|z", ""),
                         CLI_NO_FLAG("no-thing", &thing, ""),
                         CLI_INT("steps", &steps, "N", 0, 9, ""),
                         CLI_DOUBLE("x", &x, "X", 0, 1, 0, ""),
                         CLI_DOUBLE("unknown", &unknown, "X", 0, 1, 0, ""),
                         CLI_INT64("big", &big, "N", 0, CLI_NO_MAX, ""),
                         CLI_EVERY("every", &every, ""),
                         CLI_FLAG("on", &on, ""),
                         CLI_FLAG("off", &off, "")};
    cli_option to[] = {CLI_STRING("name", &name2, "S", ""),      CLI_STRING("none", &none2, "S", ""),
                       CLI_INTS("list", &list2, "N", -9, 9, ""), CLI_CHOICE("word", &word2, "x|y|z", ""),
                       CLI_NO_FLAG("no-thing", &thing2, ""),     CLI_INT("steps", &steps2, "N", 0, 9, ""),
                       CLI_DOUBLE("x", &x2, "X", 0, 9, 0, ""),   CLI_INT64("big", &big2, "N", 0, CLI_NO_MAX, ""),
                       CLI_EVERY("every", &every2, ""),          CLI_FLAG("on", &on2, "")};
    enum { N_FROM = sizeof from / sizeof *from, N_TO = sizeof to / sizeof *to };
    char words[N_FROM][64], err[512];
    int n = 0;
    to[6].given = CLI_TYPED;
    for (int i = 0; i < N_FROM; i++) {
        if (from[i].kind == CLI_KIND_GROUP) continue;
        const size_t length = cli_store_word(&from[i], words[n], sizeof words[n]);
        if (!length) continue;
        CHECK(length == strlen(words[n]) && n < 8, "its length");
        if (i == 8) CHECK(strtod(words[n] + 4, NULL) == 0.1, "a number reads back exactly");
        else if (n < 8) same_text("a stored option", words[n], want[n]);
        CHECK(cli_restore(to, N_TO, words[n], err, sizeof err) == CLI_OK, "restored");
        n++;
    }
    CHECK(n == 8, "what is not set is not stored");
    CHECK(name2 && !strcmp(name2, name) && !none2 && list2.n == 2 && list2.v[1] == -4 && word2 == 1 && thing2 == 0 &&
              steps2 == 7 && big2 == big && every2.n == 2 && every2.unit == CLI_EPOCHS && on2 == 1,
          "values come back");
    CHECK(x2 == 5 && to[6].given == CLI_TYPED, "the command line comes first");
    CHECK(cli_given(to, N_TO, "list") == CLI_STORED && cli_given(to, N_TO, "steps") == 0,
          "stored ones are known as such");
    static const char *const bad[] = {"--nonsense=1", "--steps=99", "--word=w", "--on=1", "--steps", "steps=1", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(cli_restore(to, N_TO, bad[i], err, sizeof err) == CLI_ERROR && err[0], "refused");
}

// The folder of the logs below and the log in it.
static char long_dir[1200], csv[1300];

static void test_csv(void) {
    static char text[1 << 16], many[1 << 15], err[512];
    log_csv log;
    snprintf(long_dir, sizeof long_dir, "%s/a/b//c/", dir);
    snprintf(csv, sizeof csv, "%s/log.csv", long_dir);
    CHECK(log_open(&log, long_dir, -1, err, sizeof err) == 0, "log_open makes the folders");
    slurp(csv, text, sizeof text);
    same_text("header", text, LOG_CSV_HEADER "\n");

    log_row row = log_row_make(10, 0.5, "step", (double)0.1f);
    row.lr = 0.001;
    CHECK(log_write(&log, &row, err, sizeof err) == 0, "log_write");
    slurp(csv, text, sizeof text);
    same_text("a row is in the file at once", text, LOG_CSV_HEADER "\n10,0.5,step,0.100000001,n/a,0.001,n/a,n/a,n/a\n");
    row = log_row_make(20, 1, "train", INFINITY);
    row.accuracy = -(double)NAN;
    row.ms = 1.5;
    row.grad_norm = 3;
    row.samples_per_s = 12345678;
    log_write(&log, &row, err, sizeof err);
    row = log_row_make(20, 1, "test", 0.25);
    log_write(&log, &row, err, sizeof err);
    row = log_row_make(30, 1.5, "step", 0.125);
    log_write(&log, &row, err, sizeof err);
    CHECK(log_close(&log, err, sizeof err) == 0 && log_close(&log, err, sizeof err) == 0, "log_close, twice");
    const char *all = LOG_CSV_HEADER "\n10,0.5,step,0.100000001,n/a,0.001,n/a,n/a,n/a\n"
                      "20,1,train,inf,nan,n/a,3,1.5,12345678\n20,1,test,0.25,n/a,n/a,n/a,n/a,n/a\n"
                      "30,1.5,step,0.125,n/a,n/a,n/a,n/a,n/a\n";
    slurp(csv, text, sizeof text);
    same_text("all rows", text, all);

    srand(7);
    int exact = 1;
    for (int i = 0; i < 1000; i++) {
        const float v = (float)rand() / (float)(rand() + 1.0);
        snprintf(text, sizeof text, "%.9g", (double)v);
        exact &= strtof(text, NULL) == v;
    }
    CHECK(exact, "floats read back exactly");

    // A killed run: rows past the checkpoint and half a line.
    snprintf(many, sizeof many, "%s40,2,tra", all);
    write_text(csv, many);
    CHECK(log_open(&log, long_dir, 20, err, sizeof err) == 0, "resume at step 20");
    row = log_row_make(21, 1.05, "step", 1);
    log_write(&log, &row, err, sizeof err);
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("rows past the resumed step are gone", text,
              LOG_CSV_HEADER "\n10,0.5,step,0.100000001,n/a,0.001,n/a,n/a,n/a\n20,1,train,inf,nan,n/a,3,1.5,12345678\n"
              "20,1,test,0.25,n/a,n/a,n/a,n/a,n/a\n21,1.05,step,1,n/a,n/a,n/a,n/a,n/a\n");
    CHECK(access(in_dir("a/b/c/log.csv.tmp"), F_OK) != 0, "no temporary file is left");

}

// Logs that a killed run or an editor left.
static void test_csv_damage(void) {
    static char text[1 << 16], err[512];
    log_csv log;
    // An editor on another system left CR LF.
    write_text(csv, LOG_CSV_HEADER "\r\n10,1,train,0.5,n/a,n/a,n/a,n/a,n/a\r\n10,1,test,0.5,n/a,n/a,n/a,n/a,n/"
                                   "a\r\n11,1.1,step,1,n/a,n/a,n/a,n/a,n/a\r\n");
    CHECK(log_open(&log, long_dir, 10, err, sizeof err) == 0 && log.evaluated == 10, "a log with CR LF");
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("CR LF is read", text,
              LOG_CSV_HEADER "\n10,1,train,0.5,n/a,n/a,n/a,n/a,n/a\n10,1,test,0.5,n/a,n/a,n/a,n/a,n/a\n");

    // A row that is complete but for its end of line was cut off too.
    write_text(csv, LOG_CSV_HEADER "\n1,1,train,0.5,n/a,n/a,n/a,n/a,n/a\n2,2,train,0.25,n/a,n/a,n/a,n/a,12");
    log_open(&log, long_dir, 100, err, sizeof err);
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("a truncated last line goes", text, LOG_CSV_HEADER "\n1,1,train,0.5,n/a,n/a,n/a,n/a,n/a\n");
    log_open(&log, long_dir, 0, err, sizeof err);
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("resume at step 0 keeps no later row", text, LOG_CSV_HEADER "\n");

    // Killed between the two rows of an evaluation: the first one goes, the resumed run writes both.
    write_text(csv, LOG_CSV_HEADER "\n1,1,train,0.5,n/a,n/a,n/a,n/a,n/a\n1,1,test,0.5,n/a,n/a,n/a,n/a,n/a\n"
                    "2,2,step,0.5,n/a,n/a,n/a,n/a,n/a\n2,2,train,0.5,n/a,n/a,n/a,n/a,n/a\n");
    CHECK(log_open(&log, long_dir, 2, err, sizeof err) == 0 && log.evaluated == 1, "half of an evaluation is none");
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("half of an evaluation goes", text,
              LOG_CSV_HEADER "\n1,1,train,0.5,n/a,n/a,n/a,n/a,n/a\n1,1,test,0.5,n/a,n/a,n/a,n/a,n/a\n"
              "2,2,step,0.5,n/a,n/a,n/a,n/a,n/a\n");
    write_text(csv, "step,epo");
    CHECK(log_open(&log, long_dir, 5, err, sizeof err) == 0, "a truncated header is written anew");
    log_close(&log, err, sizeof err);
    slurp(csv, text, sizeof text);
    same_text("header again", text, LOG_CSV_HEADER "\n");

    remove(csv);
    CHECK(log_open(&log, long_dir, 5, err, sizeof err) == 0, "resume without a log begins one");
    log_close(&log, err, sizeof err);

}

// Files that are no logs are refused and left alone.
static void test_csv_refused(void) {
    static char text[1 << 16], err[512];
    log_csv log;
    const log_row row = log_row_make(21, 1.05, "step", 1);
    const char *bad[] = {"a,b,c\n1,2,3\n", LOG_CSV_HEADER "\nrubbish\n1,1,train,1,1,1,1,1,1\n",
                         LOG_CSV_HEADER "\n1,1,train\n", LOG_CSV_HEADER "\n99999999999999999999,1,train,1,1,1,1,1,1\n"};
    for (int i = 0; i < 4; i++) {
        write_text(csv, bad[i]);
        CHECK(log_open(&log, long_dir, 5, err, sizeof err) == -1, "not a log");
        CHECK(
            strstr(err, i ? "log.csv: line 2 is not a row of the log" : "log.csv: not a training log, its first line"),
            "message of a file that is not a log");
        CHECK(log_write(&log, &row, err, sizeof err) == 0 && log_close(&log, err, sizeof err) == 0,
              "a log that did not open takes rows in silence");
        slurp(csv, text, sizeof text);
        same_text("left alone", text, bad[i]);
        CHECK(access(in_dir("a/b/c/log.csv.tmp"), F_OK) != 0, "no temporary file is left");
    }
    CHECK(log_open(&log, long_dir, -1, err, sizeof err) == 0, "a new log replaces it");
    log_close(&log, err, sizeof err);
}

static void test_unwritable(void) {
    char err[512], want[1600];
    log_csv log;
    log_json json;
    write_text(in_dir("plain"), "x");
    CHECK(log_open(&log, in_dir("plain/run"), -1, err, sizeof err) == -1, "a folder below a file");
    snprintf(want, sizeof want, "%s: cannot create the folder: Not a directory", in_dir("plain/run"));
    same_text("message", err, want);
    CHECK(log_open(&log, in_dir("plain"), -1, err, sizeof err) == -1, "a file in the place of the folder");
    snprintf(want, sizeof want, "%s: cannot create the folder: Not a directory", in_dir("plain"));
    same_text("message", err, want);
    CHECK(log_json_open(&json, in_dir("plain/r.json"), err, sizeof err) == -1, "a report below a file");
    CHECK(log_json_open(&json, dir, err, sizeof err) == -1 && strstr(err, "cannot write: Is a directory"),
          "a report in the place of a folder");
    CHECK(log_json_open(&json, "", err, sizeof err) == -1 && strstr(err, "empty file name"), "a report without a name");
    CHECK(log_make_dirs("", err, sizeof err) == -1 && strstr(err, "empty folder name"), "a folder without a name");
    static char long_name[LOG_PATH + 100];
    memset(long_name, 'd', sizeof long_name - 1);
    CHECK(log_make_dirs(long_name, err, sizeof err) == -1 && strstr(err, "path too long"), "a folder's name too long");
    CHECK(log_open(&log, long_name, -1, err, sizeof err) == -1 && strstr(err, "path too long"),
          "a log's name too long");
    CHECK(log_json_open(&json, long_name, err, sizeof err) == -1 && strstr(err, "path too long"), "a report's, too");
    if (geteuid() == 0) {
        test_skip("running as root, who may write anywhere: folder without write permission");
        return;
    }
    log_make_dirs(in_dir("locked"), err, sizeof err);
    chmod(in_dir("locked"), 0500);
    CHECK(log_open(&log, in_dir("locked"), -1, err, sizeof err) == -1 && strstr(err, "Permission denied"),
          "log in a folder without write permission");
    CHECK(log_open(&log, in_dir("locked/sub"), -1, err, sizeof err) == -1 && strstr(err, "Permission denied"),
          "folder in a folder without write permission");
    chmod(in_dir("locked"), 0700);
}

// A log on a disk that takes no more than 4096 bytes: exactly one error, whole rows only.
static void child_full_log(void *unused) {
    char err[512];
    const struct rlimit limit = {4096, 4096};
    int errors = 0;
    log_csv log;
    (void)unused;
    if (log_open(&log, in_dir("full"), -1, err, sizeof err)) exit(90);
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit)) exit(91);
    for (int i = 0; i < 500; i++) {
        log_row row = log_row_make(i, i, "step", 1.0 / 3);
        if (log_write(&log, &row, err, sizeof err) == 0) continue;
        errors++;
        fputs(err, stderr);
    }
    if (!log.failed || log_close(&log, err, sizeof err)) exit(92);
    exit(errors);
}

static void test_full_disk(void) {
    static char text[1 << 16], err[512];
    CHECK(in_child(child_full_log, NULL) == 1, "a full disk is reported once");
    CHECK(strstr(err_text, "full/log.csv: cannot write, the log ends here: File too large"), "message of a full disk");
    slurp(in_dir("full/log.csv"), text, sizeof text);
    const size_t len = strlen(text);
    CHECK(len > 3900 && len <= 4096 && text[len - 1] == '\n', "only whole rows are left");
    log_csv log;
    CHECK(log_open(&log, in_dir("full"), 10, err, sizeof err) == 0, "the log can be resumed");
    log_close(&log, err, sizeof err);
    if (access("/dev/full", W_OK)) {
        test_skip("no /dev/full here: report and log on a full device");
        return;
    }
    log_json json;
    CHECK(log_json_open(&json, "/dev/full", err, sizeof err) == 0, "a device is written directly");
    log_json_number(&json, "x", 1);
    CHECK(log_json_close(&json, err, sizeof err) == -1, "report on a full device");
    same_text("message", err, "/dev/full: cannot write: No space left on device");
    log_make_dirs(in_dir("fulldev"), err, sizeof err);
    if (symlink("/dev/full", in_dir("fulldev/log.csv"))) perror("symlink");
    CHECK(log_open(&log, in_dir("fulldev"), -1, err, sizeof err) == -1 && strstr(err, "No space left on device"),
          "the header on a full device");
    CHECK(log_write(&log, NULL, err, sizeof err) == 0, "rows are dropped then");
}

// ---------------------------------------------------------------------------------------------------------------------
// JSON

static void test_json(void) {
    static char text[1 << 16], err[512];
    log_json j;
    CHECK(log_json_open(&j, in_dir("new/folder/report.json"), err, sizeof err) == 0, "log_json_open makes the folder");
    log_json_begin(&j, "rescale");
    log_json_string(&j, "method", "path\"cond\\\n\t\x01\x7f");
    log_json_string(&j, "nothing", NULL);
    log_json_string(&j, "utf8", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
    log_json_string(&j, "not utf8", "\xff|\xc3|\xc0\x80|\xed\xa0\x80|\xf5\x80\x80\x80|\xe2\x82");
    log_json_begin(&j, "empty");
    log_json_end(&j);
    log_json_end(&j);
    log_json_number(&j, "third", 1.0 / 3);
    log_json_number(&j, "tenth", 0.1);
    log_json_number(&j, "nan", (double)NAN);
    log_json_number(&j, "inf", -INFINITY);
    log_json_number(&j, "unknown", LOG_NA);
    log_json_int(&j, "steps", INT64_MIN);
    log_json_bool(&j, "yes", 1);
    log_json_bool(&j, "k\"ey", 0);
    log_json_begin(&j, "left open");
    CHECK(access(in_dir("new/folder/report.json"), F_OK) != 0, "the report is not there before it is complete");
    CHECK(log_json_close(&j, err, sizeof err) == 0 && log_json_close(&j, err, sizeof err) == 0,
          "log_json_close, twice");
    slurp(in_dir("new/folder/report.json"), text, sizeof text);
    same_text(
        "report", text,
        "{\n"
        "  \"rescale\": {\n"
        "    \"method\": \"path\\\"cond\\\\\\n\\t\\u0001\\u007f\",\n"
        "    \"nothing\": null,\n"
        "    \"utf8\": \"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\",\n"
        "    \"not utf8\": \"\\ufffd|\\ufffd|\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd\\ufffd|\\ufffd"
        "\\ufffd\",\n"
        "    \"empty\": {}\n"
        "  },\n"
        "  \"third\": 0.33333333333333331,\n"
        "  \"tenth\": 0.1,\n"
        "  \"nan\": null,\n"
        "  \"inf\": null,\n"
        "  \"unknown\": null,\n"
        "  \"steps\": -9223372036854775808,\n"
        "  \"yes\": true,\n"
        "  \"k\\\"ey\": false,\n"
        "  \"left open\": {}\n"
        "}\n");
    CHECK(access(in_dir("new/folder/report.json.tmp"), F_OK) != 0, "no temporary file is left");
    CHECK(log_json_open(&j, in_dir("e.json"), err, sizeof err) == 0 && log_json_close(&j, err, sizeof err) == 0, "{}");
    slurp(in_dir("e.json"), text, sizeof text);
    same_text("an empty report", text, "{}\n");
    CHECK(log_json_open(&j, in_dir("plain/x.json"), err, sizeof err) == -1, "a report that cannot be opened");
    log_json_begin(&j, "a");
    log_json_string(&j, "a", "b");
    log_json_end(&j);
    CHECK(log_json_close(&j, err, sizeof err) == 0, "its calls do nothing");
}

static void test_json_lists(void) {
    char err[512] = "", text[4096];
    log_json j;
    CHECK(log_json_open(&j, in_dir("list.json"), err, sizeof err) == 0, "a report with lists");
    log_json_list(&j, "none");
    log_json_end(&j);
    log_json_begin(&j, "within");
    log_json_list(&j, "rows");
    for (int i = 0; i < 2; i++) {
        log_json_row(&j);
        log_json_int(&j, "i", i);
        log_json_string(&j, "name", "a, b");
        log_json_end(&j);
    }
    log_json_row(&j);
    log_json_end(&j);
    log_json_end(&j);
    log_json_int(&j, "after", 1);
    log_json_end(&j);
    log_json_list(&j, "left open");
    log_json_row(&j);
    log_json_bool(&j, "yes", 1);
    CHECK(log_json_close(&j, err, sizeof err) == 0, "it is closed with its lists");
    slurp(in_dir("list.json"), text, sizeof text);
    same_text("lists", text,
              "{\n"
              "  \"none\": [],\n"
              "  \"within\": {\n"
              "    \"rows\": [\n"
              "      {\"i\": 0, \"name\": \"a, b\"},\n"
              "      {\"i\": 1, \"name\": \"a, b\"},\n"
              "      {}\n"
              "    ],\n"
              "    \"after\": 1\n"
              "  },\n"
              "  \"left open\": [\n"
              "    {\"yes\": true}\n"
              "  ]\n"
              "}\n");
    CHECK(log_json_open(&j, in_dir("plain/x.json"), err, sizeof err) == -1, "a report that cannot be opened");
    log_json_list(&j, "a");
    log_json_row(&j);
    log_json_end(&j);
    log_json_end(&j);
    CHECK(log_json_close(&j, err, sizeof err) == 0, "its lists do nothing");
}

// ---------------------------------------------------------------------------------------------------------------------
// Clock, signals, progress

static void test_clock(void) {
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0 us"}, {850e-6, "850 us"}, {0.0123, "12.3 ms"}, {0.9996, "1.00 s"}, {4.561, "4.56 s"},
                 {9.999, "10.0 s"}, {59.96, "1 min 00 s"}, {185, "3 min 05 s"}, {3599.7, "1 h 00 min"},
                 {7385, "2 h 03 min"}, {-1, "n/a"}, {INFINITY, "n/a"}, {(double)NAN, "n/a"}};
    char text[LOG_DURATION];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        same_text("duration", log_duration(text, cases[i].seconds), cases[i].text);
    }
    const double before = log_seconds();
    usleep(20000);
    const double passed = log_seconds() - before;
    CHECK(passed >= 0.0199 && passed < 10, "log_seconds");
}

static void test_peak_memory(void) {
    enum { MIB = 1 << 20, SIZE = 200 };
    char *memory = (char *)malloc((size_t)SIZE * MIB);
    if (!memory) exit(1);
    volatile char *touched = memory;   // or the compiler would leave the stores out
    for (size_t i = 0; i < (size_t)SIZE * MIB; i += 1024) touched[i] = 1;
    const long peak = log_peak_mib();
    free(memory);
    CHECK(peak >= SIZE && peak < 50 * SIZE,
          "a process that has filled 200 MiB has had at least so many, not bytes or KiB");
}

// argument: number of signals to send and which; ends as a trainer would.
static void child_signals(void *argument) {
    const int *signals = (const int *)argument;
    log_signal_install();
    if (log_interrupted || log_interrupt_status()) exit(90);
    for (int i = 0; signals[i]; i++) raise(signals[i]);
    printf("step finished");
    exit(log_interrupt_status());
}

static void child_ignored_signal(void *unused) {
    (void)unused;
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    log_signal_install();
    raise(SIGINT);
    raise(SIGHUP);
    exit(log_interrupt_status());
}

static void test_signals(void) {
    int none[] = {0}, one[] = {SIGINT, 0}, term[] = {SIGTERM, 0}, two[] = {SIGINT, SIGINT, 0},
        mixed[] = {SIGINT, SIGTERM, 0};
    CHECK(in_child(child_signals, none) == 0, "no signal: status 0");
    CHECK(in_child(child_signals, one) == 130 && !strcmp(out_text, "step finished"),
          "Ctrl-C finishes the step, status 130");
    CHECK(in_child(child_signals, term) == 143 && !strcmp(out_text, "step finished"), "SIGTERM: status 143");
    int hangup[] = {SIGHUP, 0};
    CHECK(in_child(child_signals, hangup) == 129 && !strcmp(out_text, "step finished"), "SIGHUP: status 129");
    CHECK(in_child(child_signals, two) == 128 + SIGINT && !out_text[0], "a second Ctrl-C ends the process at once");
    CHECK(in_child(child_signals, mixed) == 128 + SIGTERM && !out_text[0], "SIGTERM after Ctrl-C too");
    CHECK(in_child(child_ignored_signal, NULL) == 0, "an ignored signal stays ignored");
}

// Shows n updates and two lines on a stream that is, or passes for, a terminal.
static void show_progress(FILE *out, int terminal, int color, int quiet) {
    log_progress p;
    log_progress_init(&p, out, quiet);
    CHECK(!p.terminal && !p.color, "a file is not a terminal");
    if (terminal) {
        p.terminal = 1;
        p.color = color;
        p.last = -1e30;
    }
    p.interval = 1000;
    for (int i = 0; i < 5; i++) log_progress_update(&p, "step %d of %s", i, "five");
    log_progress_line(&p, "epoch %d", 1);
    p.interval = 0;
    log_progress_update(&p, "a long line");
    log_progress_update(&p, "short");
    log_progress_clear(&p);
    log_progress_clear(&p);
    log_progress_update(&p, "%0200d", 7);
    log_progress_line(&p, "done");
}

static void test_progress(void) {
    static char text[4096], want[4096];
    for (int mode = 0; mode < 4; mode++) {                     // plain, terminal without colour, with colour, quiet
        FILE *f = fopen(in_dir("progress"), "w");
        show_progress(f, mode == 1 || mode == 2, mode == 2, mode == 3);
        fclose(f);
        slurp(in_dir("progress"), text, sizeof text);
        const char *dim = mode == 2 ? "\033[2m" : "";
        const char *plain = mode == 2 ? "\033[0m" : "";
        if (mode == 0) {
            snprintf(want, sizeof want, "epoch 1\na long line\nshort\n%0200d\ndone\n", 7);
        } else if (mode == 3) {
            want[0] = 0;
        } else {
            snprintf(
                want, sizeof want,
                "\r%sstep 0 of five%s\r%14s\repoch 1\n\r%sa long line%s\r%sshort%s%6s\r%5s\r\r%s%079d%s\r%79s\rdone\n",
                dim, plain, "", dim, plain, dim, plain, "", "", dim, 0, plain, "");
        }
        same_text("progress", text, want);
    }
    log_progress p;
    FILE *steered = fopen(in_dir("progress"), "w");
    log_progress_init(&p, steered, 0);
    p.interval = 0;
    log_progress_update(&p, "loss of %s", "\033[31mred");
    log_progress_line(&p, "resumed from %s", "\033]0;title\007/x");
    fclose(steered);
    slurp(in_dir("progress"), text, sizeof text);
    same_text("progress lines are clean", text, "loss of ?[31mred\nresumed from ?]0;title?/x\n");
    setenv("NO_COLOR", "1", 1);
    log_progress_init(&p, stdout, 0);
    CHECK(!p.color, "NO_COLOR");
    unsetenv("NO_COLOR");
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages, standard output, files, folders

static void test_messages(void) {
    static const char *const pairs[][2] = {
        {"fc1.weight \xc3\xa9\xe2\x82\xac\xf0\x9f\x8c\x8d", "fc1.weight \xc3\xa9\xe2\x82\xac\xf0\x9f\x8c\x8d"},
        {"a\033[31mb\tc\nd\x7f" "e", "a?[31mb?c?d?e"},
        // C1 in UTF-8; a space that does not break
        {"\xc2\x9b" "31m \xc2\x80 \xc2\xa0", "?31m ? \xc2\xa0"},
        {"\x9b" "2J \xff \xc0\x80 \xed\xa0\x80", "?2J ? ?? ???"},                       // not UTF-8
        // other directions of writing, a line separator
        {"\xe2\x80\xae" "cod.exe\xe2\x81\xa6 \xe2\x80\xa8", "?cod.exe? ?"},
        {"cut \xe2\x82", "cut ??"},
        {"", ""}};
    for (int i = 0; i < 7; i++) {
        char text[100];
        snprintf(text, sizeof text, "%s", pairs[i][0]);
        message_clean(text);
        same_text("clean text", text, pairs[i][1]);
    }
    static const char *const words[][2] = {{"fashon-mnist", "fashion-mnist"},
                                           {"mnits", "mnist"},
                                           {"cifar", "cifar10"},
                                           {"cifar100", "cifar10"},
                                           {"imagenet", ""},
                                           {"xyz", ""},
                                           {"", ""}};
    for (int i = 0; i < 7; i++) {
        char near[MESSAGE_WORD] = "";
        CHECK(message_nearest(words[i][0], "moons|images|mnist|fashion-mnist|cifar10", near) == (words[i][1][0] != 0),
              "whether a name is near");
        same_text(words[i][0], near, words[i][1]);
    }
    char err[200];
    log_error(err, sizeof err, "%s: no", "a\033[2Jb");
    same_text("errors are clean", err, "a?[2Jb: no");
}

static void child_output_lost(void *unused) {
    (void)unused;
    if (!freopen("/dev/full", "w", stdout)) _exit(99);
    message_guard("program");
    message_guard("program");
    printf("a result");
}
static void child_output_lost_earlier(void *unused) {
    (void)unused;
    if (!freopen("/dev/full", "w", stdout)) _exit(99);
    message_guard("program");
    printf("a result");
    fflush(stdout);
    setvbuf(stdout, NULL, _IONBF, 0);
}
static void child_output_closed(void *argument) {
    close(1);
    message_guard("program");
    const int fd = open(in_dir("not-stdout"), O_WRONLY | O_CREAT, 0666);
    if (fd == 1) exit(50);
    if (argument) printf("a result");
}

// What is printed and lost makes a failure of every program that calls message_guard, as cli_parse does.
static void test_standard_output(void) {
    char text[100];
    CHECK(in_child(child_output_closed, dir) == 1, "printing to a closed standard output is a failure");
    same_text("and says why", err_text, "program: cannot write to standard output: Bad file descriptor\n");
    slurp(in_dir("not-stdout"), text, sizeof text);
    same_text("no file takes its place", text, "");
    CHECK(in_child(child_output_closed, NULL) == 0, "closed and not used: no failure");
    if (access("/dev/full", W_OK)) {
        test_skip("no /dev/full here: standard output on a full disk");
        return;
    }
    CHECK(in_child(child_output_lost, NULL) == 1, "standard output on a full disk: exit 1");
    same_text("and says why", err_text, "program: cannot write to standard output: No space left on device\n");
    CHECK(in_child(child_output_lost_earlier, NULL) == 1 &&
              strstr(err_text, "program: cannot write to standard output"),
          "lost earlier");
}

// Symbolic links that somebody planted where temporary files will be.
static void test_planted_links(void) {
    char link_name[1300], text[100], err[512];
    struct stat info;
    log_csv log;
    log_json json;
    log_make_dirs(in_dir("planted"), err, sizeof err);
    write_text(in_dir("victim"), "precious");
    for (int i = 0; i < 4; i++) {
        snprintf(link_name, sizeof link_name, "%s%s", in_dir(i % 2 ? "planted/report.json.tmp" : "planted/log.csv.tmp"),
                 i < 2 ? "" : ".");
        if (i >= 2) snprintf(link_name + strlen(link_name), 20, "%ld", (long)getpid());
        if (symlink(in_dir("victim"), link_name)) perror(link_name);
    }
    if (symlink(in_dir("victim"), in_dir("planted/log.csv"))) perror("log.csv");
    CHECK(log_open(&log, in_dir("planted"), -1, err, sizeof err) == 0 && log_close(&log, err, sizeof err) == 0,
          "a log beside planted links");
    CHECK(log_file_try(in_dir("planted/report.json"), err, sizeof err) == 0, "a trial of a file beside planted links");
    CHECK(log_json_open(&json, in_dir("planted/report.json"), err, sizeof err) == 0 &&
              log_json_close(&json, err, sizeof err) == 0,
          "a report beside planted links");
    slurp(in_dir("victim"), text, sizeof text);
    same_text("what the links point to", text, "precious");
    CHECK(lstat(in_dir("planted/log.csv"), &info) == 0 && S_ISREG(info.st_mode),
          "a link in the log's place is replaced");
}

static void child_report_to_stdout(void *unused) {
    char err[512];
    log_json json;
    (void)unused;
    printf("before\n");
    if (log_file_try("/dev/stdout", err, sizeof err) || log_json_open(&json, "/dev/stdout", err, sizeof err)) exit(90);
    log_json_int(&json, "x", 1);
    if (log_json_close(&json, err, sizeof err)) exit(91);
    printf("after\n");
}

static void test_trials(void) {
    char text[100], err[512];
    write_text(in_dir("kept"), "as it was");
    CHECK(log_file_try(in_dir("kept"), err, sizeof err) == 0, "a file that is there");
    slurp(in_dir("kept"), text, sizeof text);
    same_text("a trial leaves it", text, "as it was");
    CHECK(log_file_try(in_dir("tried/deep/file"), err, sizeof err) == 0, "folders are made");
    CHECK(access(in_dir("tried/deep/file"), F_OK) != 0 && rmdir(in_dir("tried/deep")) == 0,
          "a trial leaves nothing else");
    CHECK(log_file_try(dir, err, sizeof err) == -1 && strstr(err, "Is a directory"), "a folder");
    CHECK(log_file_try(in_dir("kept/x"), err, sizeof err) == -1 && strstr(err, "cannot create the folder"),
          "a file as a folder");
    CHECK(log_file_try("", err, sizeof err) == -1, "no name");
    struct stat info;
    if (lstat("/dev/stdout", &info) || !S_ISLNK(info.st_mode)) {
        test_skip("/dev/stdout is no link here: a report there");
        return;
    }
    CHECK(in_child(child_report_to_stdout, NULL) == 0, "a report on standard output that is a file");
    same_text("stands between what is printed", out_text, "before\n{\n  \"x\": 1\n}\nafter\n");
    CHECK(lstat("/dev/stdout", &info) == 0 && S_ISLNK(info.st_mode), "/dev/stdout is not replaced");
}

static void child_claims(void *purpose) {
    char err[512];
    const int lock = log_claim(in_dir("claimed"), *(int *)purpose, err, sizeof err);
    if (lock < 0) fputs(err, stderr);
    exit(lock < 0);
}

static void test_claims(void) {
    char err[512], want[1400];
    int new_run = LOG_NEW, overwrite = LOG_OVERWRITE, resume = LOG_RESUME;
    const int lock = log_claim(in_dir("claimed"), LOG_NEW, err, sizeof err);
    CHECK(lock >= 0, "a new folder");
    snprintf(want, sizeof want, "%s: another run is writing there, process %ld", in_dir("claimed"), (long)getpid());
    CHECK(in_child(child_claims, &new_run) == 1, "another run meanwhile");
    same_text("message", err_text, want);
    CHECK(in_child(child_claims, &overwrite) == 1 && in_child(child_claims, &resume) == 1,
          "--overwrite and --resume do not help");
    close(lock);
    CHECK(in_child(child_claims, &new_run) == 0, "given back; and a process that ended gave it back");
    write_text(in_dir("claimed/log.csv"), LOG_CSV_HEADER "\n");
    CHECK(in_child(child_claims, &new_run) == 0, "a log without rows is no run");
    write_text(in_dir("claimed/log.csv"), LOG_CSV_HEADER "\n1,1,step,1,n/a,n/a,n/a,n/a,n/a\n");
    CHECK(in_child(child_claims, &new_run) == 1 &&
              strstr(err_text, "holds a run: continue it with --resume, replace it with --overwrite"),
          "a log with rows is a run");
    CHECK(in_child(child_claims, &overwrite) == 0 && in_child(child_claims, &resume) == 0, "--overwrite and --resume");
    remove(in_dir("claimed/log.csv"));
    log_make_dirs(in_dir("claimed/checkpoint-7"), err, sizeof err);
    CHECK(in_child(child_claims, &new_run) == 1, "a checkpoint is a run");

    // Removing a run follows no link and leaves what it does not know.
    log_make_dirs(in_dir("elsewhere"), err, sizeof err);
    write_text(in_dir("elsewhere/model.safetensors"), "precious");
    write_text(in_dir("claimed/checkpoint-7/model.safetensors"), "old");
    write_text(in_dir("claimed/checkpoint-notes"), "mine");
    if (symlink(in_dir("elsewhere"), in_dir("claimed/checkpoint-9"))) perror("checkpoint-9");
    CHECK(log_remove_run(in_dir("claimed"), err, sizeof err) == 0, "a run is removed");
    CHECK(access(in_dir("claimed/checkpoint-7"), F_OK) != 0 && access(in_dir("claimed/checkpoint-9"), F_OK) != 0,
          "its checkpoints are gone");
    CHECK(access(in_dir("elsewhere/model.safetensors"), F_OK) == 0, "what a link pointed to is there");
    CHECK(access(in_dir("claimed/checkpoint-notes"), F_OK) == 0, "another file is there");
    if (unlink(in_dir("claimed/.lock")) || symlink(in_dir("victim2"), in_dir("claimed/.lock"))) perror(".lock");
    CHECK(in_child(child_claims, &new_run) == 1 && access(in_dir("victim2"), F_OK) != 0,
          "a link in the lock's place is not followed");
}

// Options whose bound is no exact double beside its neighbours.
static void test_wide_integers(void) {
    static int64_t wide = 0;
    static cli_option table[] = {CLI_INT64("seed", &wide, "N", 0, 9007199254740992.0, "up to 2^53")};
    char err[300], program[] = "p", good[] = "--seed=9007199254740992", bad[] = "--seed=9007199254740993",
                   negative[] = "--seed=-1";
    char *const values[3] = {good, bad, negative};
    for (int i = 0; i < 3; i++) {
        char *argv[] = {program, values[i], NULL};
        CHECK((cli_try(table, 1, 2, argv, err, sizeof err) == CLI_OK) == (i == 0), values[i]);
    }
    CHECK(wide == 9007199254740992, "2^53 itself");
    same_text("message", err, "--seed: expected an integer between 0 and 9007199254740992, got '-1'");
}

int main(void) {
    snprintf(dir, sizeof dir, "%s", test_make_dir());
    test_values();
    test_refused_numbers();
    test_refused_lists();
    test_refused_words();
    test_help();
    test_rest();
    test_cli_rest_of_api();
    test_stored();
    test_csv();
    test_csv_damage();
    test_csv_refused();
    test_unwritable();
    test_full_disk();
    test_json();
    test_json_lists();
    test_clock();
    test_peak_memory();
    test_signals();
    test_progress();
    test_messages();
    test_standard_output();
    test_planted_links();
    test_trials();
    test_claims();
    test_wide_integers();
    test_remove_dir(dir);
    return test_summary();
}
