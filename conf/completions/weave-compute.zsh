#compdef weave-compute
# Made by scripts/completions.py with shtab, from the options themselves; do not edit.

_shtab_weave_compute_commands() {
  local _commands=(

  )
  _describe 'weave-compute commands' _commands
}

_shtab_weave_compute_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  "--config[read this config file instead of the default one]:FILE:_files"
  "--system[serve other users too, as the config allows]"
  "--socket[listen on this socket instead of the default one]:PATH:_files"
  {-s,--socket-path}"[serve only the program that listens on PATH, and exit with it]:PATH:_files"
  "--record[record the worker\'s forbidden calls and allow them]"
  "--check-config[check the config, then exit]"
  "(- : *)--version[show program\'s version number and exit]"
)

# guard to ensure default positional specs are added only once per session
_shtab_weave_compute_defaults_added=0


_shtab_weave_compute() {
  local context state line curcontext="$curcontext" one_or_more='(*)' remainder='(-)*:' default='*::: :->weave-compute'

  # Add default positional/remainder specs only if none exist, and only once per session
  if (( ! _shtab_weave_compute_defaults_added )); then
    if (( ${_shtab_weave_compute_options[(I)${(q)one_or_more}*]} +          ${_shtab_weave_compute_options[(I)${(q)remainder}*]} +          ${_shtab_weave_compute_options[(I)${(q)default}]} == 0 )); then
      _shtab_weave_compute_options+=(': :_shtab_weave_compute_commands' '*::: :->weave-compute')
    fi
    _shtab_weave_compute_defaults_added=1
  fi
  _arguments -C -s $_shtab_weave_compute_options

  case $state in
    weave-compute)
      words=($line[1] "${words[@]}")
      (( CURRENT += 1 ))
      curcontext="${curcontext%:*:*}:_shtab_weave_compute-$line[1]:"
      case $line[1] in

      esac
  esac
}



typeset -A opt_args

if [[ $zsh_eval_context[-1] == eval ]]; then
  # eval/source/. command, register function for later
  compdef _shtab_weave_compute -N weave-compute
else
  # autoload from fpath, call function directly
  _shtab_weave_compute "$@"
fi
