#!/bin/bash
# The rules of the house, which no compiler knows; each is a test in TAP.
#
#   proto     includes proto
#   kernels   includes kernels, proto/base and proto/model/{kv_type,quant,sim}.h
#   worker    includes worker, proto and kernels/kernels.h; its comms between hosts kernels/comm.h
#   engine    includes engine and proto; worker only where a rank is run in this process, and the door of
#             kernels/bench where the machine is measured
#   tests     may include all
#
# usage: tests/lint/rooms.sh [SOURCE_ROOT]
set -euo pipefail
cd "${1:-$(dirname "$0")/../..}"

# A row: files that the pattern names may include what the second pattern names. The first that
# fits a file counts.
may_include=(
    '^proto/                              ^proto/'
    '^kernels/                            ^(kernels/|proto/base/|proto/model/(kv_type|quant|sim)\.h$)'
    '^worker/comm_(hosts|mpi|net)\.c$       ^(worker/|proto/|kernels/(kernels|comm)\.h$)'
    '^worker/                             ^(worker/|proto/|kernels/kernels\.h$)'
    '^engine/(cmd/worker|executor/uniproc)\.c$  ^(engine|proto|worker)/'
    '^engine/bench/(kernels|model)\.c$   ^(engine|proto)/|^kernels/bench/(limits|roofline)\.h$'
    '^engine/                             ^(engine|proto)/'
    '^tests/                              ^(proto|kernels|worker|engine|tests)/'
)
top_level='LICENSE README.md deploy engine kernels meson.build proto tests worker'

list_files() { # all that is ours, by the extensions given
    local names=()
    for name in "$@"; do names+=(-o -name "$name"); done
    find . \( -name .git -o -path './build*' -o -path ./.cache -o -path ./.venv \
        -o -name __pycache__ \) -prune -o -type f \( "${names[@]:1}" \) -print | sed 's|^\./||' | sort
}

includes_fit_the_rooms() {
    list_files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' | xargs grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' |
        sed -E 's/^([^:]*):([0-9]+):[^"]*"([^"]*)".*/\1 \2 \3/' |
        while read -r file line included; do
            for row in "${may_include[@]}"; do
                read -r from to <<<"$row"
                [[ $file =~ $from ]] || continue
                [[ $included =~ $to ]] || echo "$file:$line: ${file%%/*} must not include $included"
                break
            done
            [ -f "$included" ] || echo "$file:$line: no $included; includes are written from the root"
        done
}

the_top_level_holds_only_what_belongs_there() {
    diff <(tr ' ' '\n' <<<"$top_level") <(find . -mindepth 1 -maxdepth 1 ! -name '.*' ! -name 'build' \
        ! -name 'build-*' -printf '%f\n' | LC_ALL=C sort) |
        sed -nE 's/^< (.*)/\1: is missing/p; s/^> (.*)/\1: does not belong in the top level/p'
}

no_file_names_a_path_of_one_machine() { # the brackets keep this line from finding itself
    list_files '*' | xargs grep -IHnE '(^|[^[:alnum:]_.-])/(wor[k]|hom[e]|roo[t])(/|[^[:alnum:]_/-]|$)|\.\./share[d]' |
        grep -vE '^tests/data/.*\.jsonl?:' | cut -c1-160
}

headers_open_with_a_comment() {
    list_files '*.h' '*.cuh' | while read -r file; do
        [[ $(head -c 2 "$file") == '/*' ]] || echo "$file: does not say what it is"
    done
}

rooms_say_how_to_add_to_them() {
    for room in proto kernels worker engine tests deploy; do
        [ -f "$room/README.md" ] || echo "$room: has no README.md"
    done
}

the_build_knows_every_source() { # a merge can lose a row, and a test with it
    list_files '*.c' '*.py' | while read -r file; do
        local room=${file%%/*} name=${file#*/}
        case $name in
        main.c) continue ;; # the program itself, in the top meson.build
        fuzz/fuzz_*) name=${name#fuzz/fuzz_} ;;
        system/test_*) name=${name#system/} ;;
        *.py) continue ;;
        esac
        grep -qE "'${name%.*}(\.c)?'" "$room/meson.build" || echo "$file: is not built"
    done
}

checklists_name_tests_that_exist() {
    list_files '*_checklist.md' | while read -r file; do
        grep -oE '`[a-z0-9_]+`' "$file" | tr -d '`' | sort -u | while read -r name; do
            grep -rqE "^(static void|    def) $name\\(" tests || echo "$file: there is no test $name"
        done
    done
}

rules=(includes_fit_the_rooms the_top_level_holds_only_what_belongs_there
    no_file_names_a_path_of_one_machine headers_open_with_a_comment
    the_build_knows_every_source rooms_say_how_to_add_to_them
    checklists_name_tests_that_exist)
failed=0
echo "1..${#rules[@]}"
for i in "${!rules[@]}"; do
    found=$("${rules[i]}" || true)
    if [ -n "$found" ]; then
        sed 's/^/# /' <<<"$found"
        failed=1
        printf 'not '
    fi
    echo "ok $((i + 1)) - ${rules[i]}"
done
exit "$failed"
