# bash completion of weavectl(1)
_weavectl() {
    local word=${COMP_WORDS[COMP_CWORD]} verb candidate
    for candidate in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $candidate in
        status | models | load | unload | generate | cancel | doctor | check-config) verb=$candidate && break ;;
        esac
    done
    case $verb in
    '') mapfile -t COMPREPLY < <(compgen -W 'status models load unload generate cancel doctor check-config --socket --json --version' -- "$word") ;;
    load) mapfile -t COMPREPLY < <(compgen -W "$(weavectl models 2>/dev/null | cut -d' ' -f1)" -- "$word") ;;
    generate) mapfile -t COMPREPLY < <(compgen -f -W '--output --force --model --negative-prompt --width --height --steps --cfg-scale --seed --scheduler --images --format --preview' -- "$word") ;;
    cancel) mapfile -t COMPREPLY < <(compgen -W '--all' -- "$word") ;;
    doctor | check-config) mapfile -t COMPREPLY < <(compgen -f -W '--config' -- "$word") ;;
    esac
}
complete -F _weavectl weavectl
