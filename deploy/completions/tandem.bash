# bash completion for tandem ctl; made by: tandem ctl completion bash
_tandem() {
    local word=${COMP_WORDS[COMP_CWORD]} command= words= i
    [ "${COMP_WORDS[1]}" = ctl ] || return 0
    for ((i = 2; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        --socket|--key|--server-key|--timeout|--run-dir) ((i++)) ;;
        -*) ;;
        *) command=${COMP_WORDS[i]}; break ;;
        esac
    done
    case $command in
    '') words="status health workers requests metrics stacks config log-level drain pause resume abort reset-prefix-cache sleep wake restart-worker weights profile trace shutdown help keygen completion" ;;
    requests) words="--most" ;;
    config) words="get set" ;;
    log-level) words="error warn info debug" ;;
    drain) words="--wait" ;;
    pause) words="abort wait keep" ;;
    weights) words="reload rollback drop" ;;
    profile) words="start stop" ;;
    trace) words="start stop dump" ;;
    shutdown) words="drain now" ;;
    esac
    COMPREPLY=($(compgen -W "$words --socket --key --server-key --json --timeout --run-dir" -- "$word"))
}
complete -o default -F _tandem tandem
