# Made by scripts/completions.py with shtab, from the options themselves; do not edit.

_shtab_weavectl_subparsers=(status models load unload generate repeat cancel add plan doctor check-config)

_shtab_weavectl_status_option_strings=(-h --help -s --socket --json --timeout --watch)
_shtab_weavectl_models_option_strings=(-h --help -s --socket --json --timeout)
_shtab_weavectl_load_option_strings=(-h --help -s --socket --json --timeout)
_shtab_weavectl_unload_option_strings=(-h --help -s --socket --json --timeout)
_shtab_weavectl_generate_option_strings=(-h --help -s --socket --json --timeout -o --output -f --force --negative-prompt --model --width --height --steps --cfg-scale --seed --scheduler --cache --lora --embedding --image --strength --mask --mask-padding --control --reference --enlarge --images --batch --format --preview)
_shtab_weavectl_repeat_option_strings=(-h --help -s --socket --json --timeout -o --output -f --force --set --model --image)
_shtab_weavectl_cancel_option_strings=(-h --help -s --socket --json --timeout --all)
_shtab_weavectl_add_option_strings=(-h --help -s --socket --json --timeout --part --layout --id --title -n --dry-run --known --config)
_shtab_weavectl_plan_option_strings=(-h --help -s --socket --json --timeout --config)
_shtab_weavectl_doctor_option_strings=(-h --help -s --socket --json --timeout --config)
_shtab_weavectl_check_config_option_strings=(-h --help -s --socket --json --timeout --config)
_shtab_weavectl_option_strings=(-h --help -s --socket --json --timeout --version)

_shtab_weavectl_status__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_status___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_models__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_models___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_load_pos_0_COMPGEN=_weavectl_models
_shtab_weavectl_load__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_load___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_unload__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_unload___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate__o_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate___output_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate___model_COMPGEN=_weavectl_models
_shtab_weavectl_generate___lora_COMPGEN=_weavectl_loras
_shtab_weavectl_generate___embedding_COMPGEN=_weavectl_embeddings
_shtab_weavectl_generate___image_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate___mask_COMPGEN=_shtab_compgen_files
_shtab_weavectl_generate___control_COMPGEN=_weavectl_controls
_shtab_weavectl_generate___reference_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat_pos_0_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat__o_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat___output_COMPGEN=_shtab_compgen_files
_shtab_weavectl_repeat___model_COMPGEN=_weavectl_models
_shtab_weavectl_repeat___image_COMPGEN=_shtab_compgen_files
_shtab_weavectl_cancel_pos_0_COMPGEN=_weavectl_jobs
_shtab_weavectl_cancel__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_cancel___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_add_pos_0_COMPGEN=_shtab_compgen_files
_shtab_weavectl_add__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_add___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_add___config_COMPGEN=_shtab_compgen_files
_shtab_weavectl_plan_pos_0_COMPGEN=_weavectl_models
_shtab_weavectl_plan__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_plan___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_plan___config_COMPGEN=_shtab_compgen_files
_shtab_weavectl_doctor__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_doctor___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_doctor___config_COMPGEN=_shtab_compgen_files
_shtab_weavectl_check_config__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl_check_config___socket_COMPGEN=_shtab_compgen_files
_shtab_weavectl_check_config___config_COMPGEN=_shtab_compgen_files
_shtab_weavectl__s_COMPGEN=_shtab_compgen_files
_shtab_weavectl___socket_COMPGEN=_shtab_compgen_files

_shtab_weavectl_generate___cache_choices=(none first_block taylorseer magcache)
_shtab_weavectl_generate___format_choices=(png raw)
_shtab_weavectl_pos_0_choices=(status models load unload generate repeat cancel add plan doctor check-config)

_shtab_weavectl_status__h_nargs=0
_shtab_weavectl_status___help_nargs=0
_shtab_weavectl_status___json_nargs=0
_shtab_weavectl_status___watch_nargs='?'
_shtab_weavectl_models__h_nargs=0
_shtab_weavectl_models___help_nargs=0
_shtab_weavectl_models___json_nargs=0
_shtab_weavectl_load__h_nargs=0
_shtab_weavectl_load___help_nargs=0
_shtab_weavectl_load___json_nargs=0
_shtab_weavectl_unload__h_nargs=0
_shtab_weavectl_unload___help_nargs=0
_shtab_weavectl_unload___json_nargs=0
_shtab_weavectl_generate__h_nargs=0
_shtab_weavectl_generate___help_nargs=0
_shtab_weavectl_generate___json_nargs=0
_shtab_weavectl_generate__f_nargs=0
_shtab_weavectl_generate___force_nargs=0
_shtab_weavectl_repeat__h_nargs=0
_shtab_weavectl_repeat___help_nargs=0
_shtab_weavectl_repeat___json_nargs=0
_shtab_weavectl_repeat__f_nargs=0
_shtab_weavectl_repeat___force_nargs=0
_shtab_weavectl_cancel_pos_0_nargs='*'
_shtab_weavectl_cancel__h_nargs=0
_shtab_weavectl_cancel___help_nargs=0
_shtab_weavectl_cancel___json_nargs=0
_shtab_weavectl_cancel___all_nargs=0
_shtab_weavectl_add__h_nargs=0
_shtab_weavectl_add___help_nargs=0
_shtab_weavectl_add___json_nargs=0
_shtab_weavectl_add__n_nargs=0
_shtab_weavectl_add___dry_run_nargs=0
_shtab_weavectl_add___known_nargs=0
_shtab_weavectl_plan__h_nargs=0
_shtab_weavectl_plan___help_nargs=0
_shtab_weavectl_plan___json_nargs=0
_shtab_weavectl_doctor__h_nargs=0
_shtab_weavectl_doctor___help_nargs=0
_shtab_weavectl_doctor___json_nargs=0
_shtab_weavectl_check_config__h_nargs=0
_shtab_weavectl_check_config___help_nargs=0
_shtab_weavectl_check_config___json_nargs=0
_shtab_weavectl_pos_0_nargs=A...
_shtab_weavectl__h_nargs=0
_shtab_weavectl___help_nargs=0
_shtab_weavectl___json_nargs=0
_shtab_weavectl___version_nargs=0


# Custom Preamble

_weavectl_models() { _weavectl_lines models '^([a-z0-9][a-z0-9._-]{0,63}) ' "$1"; }
_weavectl_loras() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' "$1"; }
_weavectl_embeddings() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' "$1"; }
_weavectl_controls() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' "$1"; }
_weavectl_jobs() { _weavectl_lines status '^job ([0-9]{1,19}) ' "$1"; }
_weavectl_lines() {
    local LC_ALL=C line
    while IFS= read -r line; do
        [[ $line =~ $2 && ${BASH_REMATCH[1]} == "$3"* ]] && printf '%s\n' "${BASH_REMATCH[1]}"
    done < <(weavectl --timeout 2 "$1" 2>/dev/null)
}

# End Custom Preamble

# $1=COMP_WORDS[1]
_shtab_compgen_files() {
  compgen -f -- $1  # files
}

# $1=COMP_WORDS[1]
_shtab_compgen_dirs() {
  compgen -d -- $1  # recurse into subdirs
}

# $1=COMP_WORDS[1]
_shtab_replace_nonword() {
  echo "${1//[^[:word:]]/_}"
}

# set default values (called for the initial parser & any subparsers)
_set_parser_defaults() {
  local subparsers_var="${prefix}_subparsers[@]"
  sub_parsers=${!subparsers_var-}

  local current_option_strings_var="${prefix}_option_strings[@]"
  current_option_strings=${!current_option_strings_var}

  completed_positional_actions=0

  _set_new_action "pos_$completed_positional_actions" true
}

# $1=action identifier
# $2=positional action (bool)
# set all identifiers for an action's parameters
_set_new_action() {
  current_action="${prefix}_$(_shtab_replace_nonword $1)"

  local current_action_compgen_var=${current_action}_COMPGEN
  current_action_compgen="${!current_action_compgen_var-}"

  local current_action_choices_var="${current_action}_choices[@]"
  current_action_choices="${!current_action_choices_var-}"

  local current_action_nargs_var="${current_action}_nargs"
  if [ -n "${!current_action_nargs_var-}" ]; then
    current_action_nargs="${!current_action_nargs_var}"
  else
    current_action_nargs=1
  fi

  current_action_args_start_index=$(( $word_index + 1 - $pos_only ))

  current_action_is_positional=$2
}

# Notes:
# `COMPREPLY`: what will be rendered after completion is triggered
# `completing_word`: currently typed word to generate completions for
# `${!var}`: evaluates the content of `var` and expand its content as a variable
#     hello="world"
#     x="hello"
#     ${!x} -> ${hello} -> "world"
_shtab_weavectl() {
  local completing_word="${COMP_WORDS[COMP_CWORD]}"
  local previous_word="${COMP_WORDS[COMP_CWORD-1]}"
  local completed_positional_actions
  local current_action
  local current_action_args_start_index
  local current_action_choices
  local current_action_compgen
  local current_action_is_positional
  local current_action_nargs
  local current_option_strings
  local sub_parsers
  COMPREPLY=()

  local prefix=_shtab_weavectl
  local word_index=0
  local pos_only=0 # "--" delimiter not encountered yet
  _set_parser_defaults
  word_index=1

  # determine what arguments are appropriate for the current state
  # of the arg parser
  while [ $word_index -ne $COMP_CWORD ]; do
    local this_word="${COMP_WORDS[$word_index]}"

    if [[ $pos_only = 1 || " $this_word " != " -- " ]]; then
      if [[ -n $sub_parsers && " ${sub_parsers[@]} " == *" $this_word "* ]]; then
        # valid subcommand: add it to the prefix & reset the current action
        prefix="${prefix}_$(_shtab_replace_nonword $this_word)"
        _set_parser_defaults
      fi

      if [[ " ${current_option_strings[@]} " == *" $this_word "* ]]; then
        # a new action should be acquired (due to recognised option string or
        # no more input expected from current action);
        # the next positional action can fill in here
        _set_new_action $this_word false
      fi

      if [[ "$current_action_nargs" != "*" ]] && \
         [[ "$current_action_nargs" != "+" ]] && \
         [[ "$current_action_nargs" != "?" ]] && \
         [[ "$current_action_nargs" != *"..." ]] && \
         (( $word_index + 1 - $current_action_args_start_index - $pos_only >= \
            $current_action_nargs )); then
        $current_action_is_positional && let "completed_positional_actions += 1"
        _set_new_action "pos_$completed_positional_actions" true
      fi
    else
      pos_only=1 # "--" delimiter encountered
    fi

    let "word_index+=1"
  done

  # Generate the completions

  COMPREPLY=()
  if [[ $pos_only = 0 && "$completing_word" == -* &&
        ( -z "$current_action_compgen" || "$current_action_is_positional" = true ) ]]; then
    # optional argument started: use option strings
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_option_strings[*]}" -- "$completing_word")
  elif [[ "$previous_word" =~ ^[0-9\&]*[\<\>]\>?$ ]]; then
    # handle redirection operators
    compopt -o filenames 2>/dev/null || : # bash>=4
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$completing_word")
  else
    # use choices & compgen
    local action_compgen_word="$completing_word"
    # handle tab-completing in the middle of a line (#248 <- #116)
    [[ -n "$current_action_compgen" && "$completing_word" == -* ]] && action_compgen_word=""
    [ -n "$current_action_compgen" ] && {
      [[ "$current_action_compgen" =~ _(file|dir|glob|FILE|DIR|GLOB)|File|Dir|Glob ]] &&
        compopt -o filenames 2>/dev/null || : # bash>=4
      while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
        "$current_action_compgen" "$action_compgen_word")
    }
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
      compgen -W "${current_action_choices[*]}" -- "$completing_word")
  fi

  if [[ ${#COMPREPLY[@]} = 0 ]]; then
    # native fallback matches are not necessarily filenames (e.g. variables)
    compopt +o filenames 2>/dev/null || : # bash>=4
  fi

  return 0
}

complete -o bashdefault -F _shtab_weavectl weavectl
