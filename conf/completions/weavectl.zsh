#compdef weavectl
# Made by scripts/completions.py with shtab, from the options themselves; do not edit.

_shtab_weavectl_commands() {
  local _commands=(
    add:'add a model, embedding or ControlNet to the config'
    cancel:'cancel your jobs'
    check-config:'check the config and the files of its models, loras, embeddings and controlnets'
    doctor:'check the socket, config, models, loras, embeddings, controlnets, gpu and sandbox, and suggest fixes'
    generate:'generate images'
    load:'load a model, so that the next image starts without a wait'
    models:'list the models on offer'
    plan:'show how much device memory a model needs, and where it fits'
    repeat:'generate an image again from its PNG'
    status:'show the daemon'"'"'s state'
    unload:'end the worker, which frees all of its memory'
  )
  _describe 'weavectl commands' _commands
}

_shtab_weavectl_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "(- : *)--version[show program\'s version number and exit]"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_defaults_added=0

_shtab_weavectl_add_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "*--part[the file or folder of one component, such as vae, in place of the model\'s own\; may be repeated]:NAME=PATH:"
  "--layout[for a file\: a folder with other configs than the published model\'s]:FOLDER:"
  "--id[its ID (default\: made from the folder\'s or file\'s name)]:ID:"
  "--title[its title (default\: the folder\'s or file\'s name)]:TEXT:"
  {-n,--dry-run}"[write nothing]"
  "--known[list models that many people use, and how to get them]"
  "--config[the config file, instead of the default one]:FILE:_files"
  ":a model\'s or ControlNet\'s folder, also in the Hub\'s cache, or its .safetensors or (a model\'s) .gguf file, or an embedding\'s file:_files"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_add_defaults_added=0

_shtab_weavectl_cancel_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "--all[all of your jobs]"
  "(*)::the job\'s number in status:_weavectl_jobs"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_cancel_defaults_added=0

_shtab_weavectl_check_config_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "--config[the config file, instead of the default one]:FILE:_files"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_check_config_defaults_added=0

_shtab_weavectl_doctor_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "--config[the config file, instead of the default one]:FILE:_files"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_doctor_defaults_added=0

_shtab_weavectl_generate_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  {-o,--output}"[where to put the image, and its previews before it\; - is standard output]:FILE:_files"
  {-f,--force}"[overwrite FILE]"
  "--negative-prompt[what the image should not show (default\: none)]:PROMPT:"
  "--model[ID of the model (default\: the loaded model, else the default model)]:ID:_weavectl_models"
  "--width[width of the image, in pixels (default\: the model\'s)]:N:"
  "--height[height of the image, in pixels (default\: the model\'s)]:N:"
  "--steps[number of denoising steps (default\: the model\'s)]:N:"
  "--cfg-scale[how closely to follow the prompt (default\: the model\'s)]:X:"
  "--seed[seed of the first image\; image i (from 0) has seed \+ i mod 2\^64 (default\: random, below 2\^32)]:N:"
  "--scheduler[one of the model\'s schedulers (default\: the model\'s)]:NAME:"
  "--cache[one of the model\'s step caches, which reuse results of earlier steps\: faster, but pixels differ (default\: the model\'s)]:cache:(none first_block taylorseer magcache)"
  "--lora[LoRAs to apply, each with its weight (1 if left out) (default\: none)]:ID[\:WEIGHT]:_weavectl_loras"
  "--embedding[embeddings to use, whose IDs stand in the prompts as words (default\: none)]:ID:_weavectl_embeddings"
  "--image[image to start from (default\: none)]:FILE:_files"
  "--strength[how much of the image to change\: the fraction of the steps that run (default\: 0.75)]:X:"
  "--mask[what to repaint of the image\: white is repainted, black is kept exactly (default\: none)]:FILE:_files"
  "--mask-padding[repaint at full resolution only the masked part, with this margin around it, in pixels (default\: the whole image)]:N:"
  "--control[ControlNets to apply, each with the image that it sees (default\: none)]:ID[\:SCALE]=FILE:_weavectl_controls"
  "--reference[images that the prompt refers to (default\: none)]:FILE:_files"
  "--enlarge[enlarge the image by SCALE and refine it in a second pass (default\: none)]:SCALE[\:STRENGTH]:"
  "--images[number of images (default\: 1)]:N:"
  "--batch[number of images that one pass generates together\: faster, but pixels may differ slightly (default\: 1)]:N:"
  "--format[a PNG, or the pixels alone\: RGB, 8 bits a channel, rows from the top (default\: png)]:format:(png raw)"
  "--preview[an unfinished image after every N steps\; 0 is never (default\: 0)]:N:"
  ":what to generate:"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_generate_defaults_added=0

_shtab_weavectl_load_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  ":its ID:_weavectl_models"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_load_defaults_added=0

_shtab_weavectl_models_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_models_defaults_added=0

_shtab_weavectl_plan_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "--config[the config file, instead of the default one]:FILE:_files"
  ":its ID in the config, or its folder or .safetensors file:_weavectl_models"
  ":(default\: the model\'s):"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_plan_defaults_added=0

_shtab_weavectl_repeat_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  {-o,--output}"[where to put the image\; - is standard output]:FILE:_files"
  {-f,--force}"[overwrite FILE]"
  "*--set[change one parameter\: a string as it is, everything else as JSON\; no VALUE takes the default]:NAME=VALUE:"
  "--model[ID of the model (default\: that of the original)]:ID:_weavectl_models"
  "--image[one of the images that it was generated from, in any order\; - is standard input]:FILE:_files"
  ":the PNG\; - is standard input:_files"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_repeat_defaults_added=0

_shtab_weavectl_status_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
  "--watch[show it again every so many seconds (default\: 1), until interrupted]:SECONDS:"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_status_defaults_added=0

_shtab_weavectl_unload_options=(
  "(- : *)"{-h,--help}"[show this help message and exit]"
  {-s,--socket}"[the daemon\'s socket]:PATH:_files"
  "--json[one JSON object a line]"
  "--timeout[how long to wait for the daemon\'s first answer (default\: 20)]:SECONDS:"
)

# guard to ensure default positional specs are added only once per session
_shtab_weavectl_unload_defaults_added=0


_shtab_weavectl() {
  local context state line curcontext="$curcontext" one_or_more='(*)' remainder='(-)*:' default='*::: :->weavectl'

  # Add default positional/remainder specs only if none exist, and only once per session
  if (( ! _shtab_weavectl_defaults_added )); then
    if (( ${_shtab_weavectl_options[(I)${(q)one_or_more}*]} +          ${_shtab_weavectl_options[(I)${(q)remainder}*]} +          ${_shtab_weavectl_options[(I)${(q)default}]} == 0 )); then
      _shtab_weavectl_options+=(': :_shtab_weavectl_commands' '*::: :->weavectl')
    fi
    _shtab_weavectl_defaults_added=1
  fi
  _arguments -C -s $_shtab_weavectl_options

  case $state in
    weavectl)
      words=($line[1] "${words[@]}")
      (( CURRENT += 1 ))
      curcontext="${curcontext%:*:*}:_shtab_weavectl-$line[1]:"
      case $line[1] in
        add) _arguments -C -s $_shtab_weavectl_add_options ;;
        cancel) _arguments -C -s $_shtab_weavectl_cancel_options ;;
        check-config) _arguments -C -s $_shtab_weavectl_check_config_options ;;
        doctor) _arguments -C -s $_shtab_weavectl_doctor_options ;;
        generate) _arguments -C -s $_shtab_weavectl_generate_options ;;
        load) _arguments -C -s $_shtab_weavectl_load_options ;;
        models) _arguments -C -s $_shtab_weavectl_models_options ;;
        plan) _arguments -C -s $_shtab_weavectl_plan_options ;;
        repeat) _arguments -C -s $_shtab_weavectl_repeat_options ;;
        status) _arguments -C -s $_shtab_weavectl_status_options ;;
        unload) _arguments -C -s $_shtab_weavectl_unload_options ;;
      esac
  esac
}

# Custom Preamble

_weavectl_models() { _weavectl_lines models '^([a-z0-9][a-z0-9._-]{0,63}) ' }
_weavectl_loras() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' }
_weavectl_embeddings() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' }
_weavectl_controls() { _weavectl_lines models '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' }
_weavectl_jobs() { _weavectl_lines status '^job ([0-9]{1,19}) ' }
_weavectl_lines() {
  local LC_ALL=C line MATCH
  local -a found match
  while IFS= read -r line; do
    [[ $line =~ $2 ]] && found+=("$match[1]")
  done < <(weavectl --timeout 2 "$1" 2>/dev/null)
  compadd -a found
}

# End Custom Preamble


typeset -A opt_args

if [[ $zsh_eval_context[-1] == eval ]]; then
  # eval/source/. command, register function for later
  compdef _shtab_weavectl -N weavectl
else
  # autoload from fpath, call function directly
  _shtab_weavectl "$@"
fi
