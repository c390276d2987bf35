# shellcheck shell=bash
# What deploy/quickstart, deploy/fetch-* and tests/run share. Sourced by bash, in the top folder.
# Each phase is one line on stderr: "[2/4] building ... 12 s"; what it printed is shown if it failed.

phase_number=0
num_phases=0 # set by the caller

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# phase SENTENCE COMMAND...: runs the command, silent while it goes well.
phase() {
    local sentence=$1 start=$SECONDS log status=0
    shift
    log=$(mktemp)
    phase_number=$((phase_number + 1))
    printf '[%d/%d] %s ... ' "$phase_number" "$num_phases" "$sentence" >&2
    ("$@") >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -eq 0 ]; then
        printf '%d s\n' $((SECONDS - start)) >&2
    else
        printf 'failed after %d s:\n' $((SECONDS - start)) >&2
        tail -80 "$log" >&2
    fi
    rm -f "$log"
    return "$status"
}

# The packages of some groups of deploy/packages.txt that this machine lacks.
packages_missing() {
    local wanted
    mapfile -t wanted < <(awk -v groups=" $* " '!/^#/ && index(groups, " " $1 " ") { print $2 }' \
        deploy/packages.txt)
    comm -23 <(printf '%s\n' "${wanted[@]}" | sort) \
        <(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null |
            awk '$2 == "installed" { print $1 }' | sort -u)
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

packages_install() {
    command -v apt-get >/dev/null ||
        die "this machine has no apt; install what deploy/packages.txt lists by hand"
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null ||
        die "installing needs root; run as root: apt-get install $*"
    as_root apt-get update -q || true # one dead mirror is no reason; the next line tells what lacks
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

# build_setup FOLDER NATIVE_FILE: sets it up if it is not, and keeps the options of one that is.
build_setup() {
    [ -f "$1/build.ninja" ] || meson setup "$1" --native-file "deploy/build/$2"
    [ ! -d .cache/grammar ] || link_grammars "$1"
}

# link_grammars BUILD_FOLDER: the engine looks for its grammar libraries in `grammar` beside itself.
link_grammars() {
    ln -sfnT ../.cache/grammar "$1/grammar"
}
