# cu2cpp.sed -- turns CUDA source into C++ for the CPU build (run by cu2cpp.sh, read that first).
#
#     kernel<<<grid, block, smem, stream>>>(args)   ->  LAUNCH((kernel), grid, block, smem, stream)(args)
#     extern __shared__ float tile[];               ->  float *tile = (float *)cuda_cpu::dynamic_shared();
#
# Comments, strings and character constants stay as they are. What looks like one of the two but cannot be rewritten
# becomes a line `#error cu2cpp: why`. Lines are never added or removed. Raw strings R"(...)" are not understood.
#
# Where a pattern has a / its delimiter is #, because BusyBox's sed ends a pattern at a / in brackets.
#
# How: a newline in the pattern space is the cursor; what is left of it is done. The hold space is "comment" between
# the lines of a block comment and empty elsewhere.

# a line without any of these is copied
/<<<|__shared__|\/\*|\*\//!b
s/^/\
/
t start
: start
x
/comment/{
    x
    b comment
}
x

: code
/\n$/b finish
# white space, numbers (' separates digits), punctuation that starts nothing
s#\n([[:space:]]+|[0-9]([A-Za-z0-9_.]|'[A-Za-z0-9])*|[^[:alnum:][:space:]_"'/<]+)#\1\
#
t code
# strings and character constants; one that does not end on its line takes the rest of it
s/\n("([^"\\]|\\.)*"|'([^'\\]|\\.)+')/\1\
/
t code
s/\n(".*|')/\1\
/
t code
# a launch; the template arguments of the kernel may nest once
s/\n([A-Za-z_][A-Za-z0-9_:]*(<([^<>;]|<[^<>;]*>)*>)?)[[:space:]]*<<<(([^>]|>[^>]|>>[^>])+)>>>[[:space:]]*\(/LAUNCH((\1), \4)(\
/
t code
# dynamic shared memory
s/\nextern[[:space:]]+__shared__[[:space:]]+(__align__\([^()]*\)[[:space:]]*)?([A-Za-z_][A-Za-z0-9_:* ]*[* ])[[:space:]]*([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*\[[[:space:]]*\][[:space:]]*;/\2*\3 = (\2*)cuda_cpu::dynamic_shared();\
/
t code
# any other identifier
/\nextern[[:space:]]+__shared__/b bad_shared
s/\n([A-Za-z_][A-Za-z0-9_]*)/\1\
/
t code
/\n<<</b bad_launch
s/\n(<+)/\1\
/
t code
# comments
s#\n(//.*)#\1\
#
t finish
s#\n(/\*([^*]|\*+[^*/])*\*+/)#\1\
#
t code
/\n\/\*/{
    x
    s/.*/comment/
    x
    b finish
}
s/\n(.)/\1\
/
t code
b finish

: comment
s#\n(([^*]|\*+[^*/])*\*+/)#\1\
#
t leave
b finish
: leave
x
s/.*//
x
b code

: bad_launch
s/.*/#error cu2cpp: a launch needs its kernel's name, <<<...>>> and the opening parenthesis on one line/
b
: bad_shared
s/.*/#error cu2cpp: dynamic shared memory must read: extern __shared__ T name[];/
b
: finish
s/\n//
