# bash completion of weave-compute(1)
_weave_compute() {
    mapfile -t COMPREPLY < <(compgen -f -W '--config --system --socket --socket-path --record --check-config --version' -- "${COMP_WORDS[COMP_CWORD]}")
}
complete -F _weave_compute weave-compute
