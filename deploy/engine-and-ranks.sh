# shellcheck shell=bash
# An engine, and beside it a command of some launcher that starts its ranks. Sourced by bash, by the starters in
# mpi/ and slurm/.
#
#   engine_start LISTEN TOKEN RANKS OPTION...    tandem serve, in the background; sets $engine (its process) and
#                                                $address (where ranks join); $own_folder is
#                                                removed at the end
#   ranks_keep COMMAND...                        runs it, again when it ends before the engine; exits as the engine
#
# A launcher mostly ends all ranks for the one that died. The engine waits for new ones, and streams go on.
# SIGTERM and SIGINT go to the engine: it finishes what runs, and ends its ranks; and so it does when this
# script is killed.

tandem=${TANDEM_PROGRAM:-tandem}
engine='' ranks='' address='' # two processes; tcp://HOST:PORT

refuse() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

engine_start() {
    local listen=$1 token=$2 num_ranks=$3
    shift 3
    command -v "$tandem" >/dev/null || refuse "no $tandem: put it in PATH, or its path in TANDEM_PROGRAM"
    own_folder=${own_folder:-$(mktemp -d)}
    trap 'rm -rf "$own_folder"' EXIT
    setpriv --pdeathsig TERM "$tandem" serve --executor distributed --tp "$num_ranks" --listen "$listen" \
        --address-file "$own_folder/address" --token "$token" "$@" &
    engine=$!
    trap 'kill -TERM "$engine" 2>/dev/null' TERM INT HUP
    until [ -s "$own_folder/address" ]; do
        sleep 0.05 &
        await "$engine" $!
        [ "$ended" != "$engine" ] || exit "$status"
    done
    address=$(cat "$own_folder/address")
}

# await PROCESS...: until one of them has ended, whatever signals come meanwhile; sets $ended and $status.
await() {
    ended=''
    while [ -z "${ended-}" ]; do
        status=0
        wait -n -p ended "$@" || status=$?
        [ "$status" -ne 127 ] || ended=${ended:-none} # there is no such process of ours
    done
}

# The ranks end when their engine has told them, or is gone; a launcher that does not notice is told too.
ranks_stop() {
    local signal tenths
    for signal in 0 TERM KILL; do
        kill -"$signal" "$ranks" 2>/dev/null || return 0
        for ((tenths = 0; tenths < 100; tenths++)); do
            kill -0 "$ranks" 2>/dev/null || return 0
            sleep 0.1
        done
    done
}

ranks_keep() {
    local ended status code started failures=0
    while :; do
        started=$SECONDS
        # Out of the terminal's reach: Ctrl-C is for the engine.
        setsid "$@" </dev/null &
        ranks=$!
        await "$engine" "$ranks"
        if [ "$ended" != "$ranks" ]; then
            ranks_stop
            exit "$status"
        fi
        [ $((SECONDS - started)) -lt 60 ] || failures=0
        failures=$((failures + 1))
        case $status in
        2 | 76 | 77 | 126 | 127) break ;; # a setting, another build, a key, no program: so would the next
        esac
        code=$status
        sleep 1 & # and the engine may have been about to end: its status is the one to tell
        await "$engine" $!
        [ "$ended" != "$engine" ] || exit "$status"
        status=75
        [ "$failures" -le "${RESTARTS:-3}" ] || break
        printf '%s: the ranks have ended with %d; once more\n' "${0##*/}" "$code" >&2
    done
    code=$status
    printf '%s: the ranks have ended for good\n' "${0##*/}" >&2
    kill -TERM "$engine" 2>/dev/null
    await "$engine"
    exit "$code"
}
