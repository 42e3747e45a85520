# Made by scripts/completions.py with shtab, from the options themselves; do not edit.

function _weavectl_models
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^([a-z0-9][a-z0-9._-]{0,63}) .*$' '$1'
end
function _weavectl_loras
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(LoRA, [^()]*\)$' '$1'
end
function _weavectl_embeddings
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(embedding\)$' '$1'
end
function _weavectl_controls
  weavectl --timeout 2 models 2>/dev/null | string replace -rf '^  ([a-z0-9][a-z0-9._-]{0,63}) .*\(ControlNet\)$' '$1'
end
function _weavectl_jobs
  weavectl --timeout 2 status 2>/dev/null | string replace -rf '^job ([0-9]{1,19}) .*$' '$1'
end

# End Custom Preamble

# Parse current commandline:
# - _shtab_weavectl_cmdpath=(sub)command path seen so far
# - _shtab_weavectl_npos=number of positional arguments given after it
# - options are skipped based on _shtab_weavectl_opts_with_value & _shtab_weavectl_commands lists
function _shtab_weavectl_scan
  set -g _shtab_weavectl_cmdpath ''
  set -g _shtab_weavectl_npos 0
  set -l tokens (commandline -opc)
  set -e tokens[1]
  set -l expect_value 0
  for t in $tokens
    if test $expect_value -eq 1
      set expect_value 0
      continue
    end
    switch "$t"
      case '--*=*'
        continue
      case '-*'
        if contains -- $t $_shtab_weavectl_opts_with_value
          set expect_value 1
        end
        continue
      case '*'
        if test $_shtab_weavectl_npos -eq 0
          set -l candidate $t
          if test -n "$_shtab_weavectl_cmdpath"
            set candidate "$_shtab_weavectl_cmdpath $t"
          end
          if contains -- $candidate $_shtab_weavectl_commands
            set -g _shtab_weavectl_cmdpath $candidate
            continue
          end
        end
        set -g _shtab_weavectl_npos (math $_shtab_weavectl_npos + 1)
    end
  end
end

# Condition helper: true if the current (sub)command path equals the given one.
function _shtab_weavectl_using
  _shtab_weavectl_scan
  test "$_shtab_weavectl_cmdpath" = "$argv"
end

set -g _shtab_weavectl_commands status models load unload generate repeat cancel add plan doctor check-config
set -g _shtab_weavectl_opts_with_value --batch --cache --cfg-scale --config --control --embedding --enlarge --format --height --id --image --images --layout --lora --mask --mask-padding --model --negative-prompt --output --part --preview --reference --scheduler --seed --set --socket --steps --strength --timeout --title --watch --width -o -s

complete -c weavectl -e
complete -c weavectl -f

complete -c weavectl -n _shtab_weavectl_using -s h -l help -d 'show this help message and exit'
complete -c weavectl -n _shtab_weavectl_using -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n _shtab_weavectl_using -l json -d 'one JSON object a line'
complete -c weavectl -n _shtab_weavectl_using -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n _shtab_weavectl_using -l version -d 'show program'"'"'s version number and exit'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a status -d 'show the daemon'"'"'s state'
complete -c weavectl -n '_shtab_weavectl_using status' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using status' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using status' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using status' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using status' -l watch -x -d 'show it again every so many seconds (default: 1), until interrupted'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a models -d 'list the models on offer'
complete -c weavectl -n '_shtab_weavectl_using models' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using models' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using models' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using models' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a load -d 'load a model, so that the next image starts without a wait'
complete -c weavectl -n '_shtab_weavectl_using load' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using load' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using load' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using load' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using load; and test $_shtab_weavectl_npos -eq 0' -ka "(_weavectl_models)" -d 'its ID'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a unload -d 'end the worker, which frees all of its memory'
complete -c weavectl -n '_shtab_weavectl_using unload' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using unload' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using unload' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using unload' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a generate -d 'generate images'
complete -c weavectl -n '_shtab_weavectl_using generate' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using generate' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using generate' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using generate' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using generate' -s o -l output -xka "(__fish_complete_path (commandline -ct))" -d 'where to put the image, and its previews before it; - is standard output'
complete -c weavectl -n '_shtab_weavectl_using generate' -s f -l force -d 'overwrite FILE'
complete -c weavectl -n '_shtab_weavectl_using generate' -l negative-prompt -x -d 'what the image should not show (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l model -xka "(_weavectl_models)" -d 'ID of the model (default: the loaded model, else the default model)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l width -x -d 'width of the image, in pixels (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l height -x -d 'height of the image, in pixels (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l steps -x -d 'number of denoising steps (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l cfg-scale -x -d 'how closely to follow the prompt (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l seed -x -d 'seed of the first image; image i (from 0) has seed + i mod 2^64 (default: random, below 2^32)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l scheduler -x -d 'one of the model'"'"'s schedulers (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l cache -xka "none first_block taylorseer magcache" -d 'one of the model'"'"'s step caches, which reuse results of earlier steps: faster, but pixels differ (default: the model'"'"'s)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l lora -xka "(_weavectl_loras)" -d 'LoRAs to apply, each with its weight (1 if left out) (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l embedding -xka "(_weavectl_embeddings)" -d 'embeddings to use, whose IDs stand in the prompts as words (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l image -xka "(__fish_complete_path (commandline -ct))" -d 'image to start from (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l strength -x -d 'how much of the image to change: the fraction of the steps that run (default: 0.75)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l mask -xka "(__fish_complete_path (commandline -ct))" -d 'what to repaint of the image: white is repainted, black is kept exactly (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l mask-padding -x -d 'repaint at full resolution only the masked part, with this margin around it, in pixels (default: the whole image)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l control -xka "(_weavectl_controls)" -d 'ControlNets to apply, each with the image that it sees (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l reference -xka "(__fish_complete_path (commandline -ct))" -d 'images that the prompt refers to (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l enlarge -x -d 'enlarge the image by SCALE and refine it in a second pass (default: none)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l images -x -d 'number of images (default: 1)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l batch -x -d 'number of images that one pass generates together: faster, but pixels may differ slightly (default: 1)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l format -xka "png raw" -d 'a PNG, or the pixels alone: RGB, 8 bits a channel, rows from the top (default: png)'
complete -c weavectl -n '_shtab_weavectl_using generate' -l preview -x -d 'an unfinished image after every N steps; 0 is never (default: 0)'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a repeat -d 'generate an image again from its PNG'
complete -c weavectl -n '_shtab_weavectl_using repeat' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using repeat' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using repeat' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using repeat' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using repeat' -s o -l output -xka "(__fish_complete_path (commandline -ct))" -d 'where to put the image; - is standard output'
complete -c weavectl -n '_shtab_weavectl_using repeat' -s f -l force -d 'overwrite FILE'
complete -c weavectl -n '_shtab_weavectl_using repeat' -l set -x -d 'change one parameter: a string as it is, everything else as JSON; no VALUE takes the default'
complete -c weavectl -n '_shtab_weavectl_using repeat' -l model -xka "(_weavectl_models)" -d 'ID of the model (default: that of the original)'
complete -c weavectl -n '_shtab_weavectl_using repeat' -l image -xka "(__fish_complete_path (commandline -ct))" -d 'one of the images that it was generated from, in any order; - is standard input'
complete -c weavectl -n '_shtab_weavectl_using repeat; and test $_shtab_weavectl_npos -eq 0' -ka "(__fish_complete_path (commandline -ct))" -d 'the PNG; - is standard input'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a cancel -d 'cancel your jobs'
complete -c weavectl -n '_shtab_weavectl_using cancel' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using cancel' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using cancel' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using cancel' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using cancel' -l all -d 'all of your jobs'
complete -c weavectl -n '_shtab_weavectl_using cancel; and test $_shtab_weavectl_npos -ge 0' -ka "(_weavectl_jobs)" -d 'the job'"'"'s number in status'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a add -d 'add a model, embedding or ControlNet to the config'
complete -c weavectl -n '_shtab_weavectl_using add' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using add' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using add' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using add' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using add' -l part -x -d 'the file or folder of one component, such as vae, in place of the model'"'"'s own; may be repeated'
complete -c weavectl -n '_shtab_weavectl_using add' -l layout -x -d 'for a file: a folder with other configs than the published model'"'"'s'
complete -c weavectl -n '_shtab_weavectl_using add' -l id -x -d 'its ID (default: made from the folder'"'"'s or file'"'"'s name)'
complete -c weavectl -n '_shtab_weavectl_using add' -l title -x -d 'its title (default: the folder'"'"'s or file'"'"'s name)'
complete -c weavectl -n '_shtab_weavectl_using add' -s n -l dry-run -d 'write nothing'
complete -c weavectl -n '_shtab_weavectl_using add' -l known -d 'list models that many people use, and how to get them'
complete -c weavectl -n '_shtab_weavectl_using add' -l config -xka "(__fish_complete_path (commandline -ct))" -d 'the config file, instead of the default one'
complete -c weavectl -n '_shtab_weavectl_using add; and test $_shtab_weavectl_npos -eq 0' -ka "(__fish_complete_path (commandline -ct))" -d 'a model'"'"'s or ControlNet'"'"'s folder, also in the Hub'"'"'s cache, or its .safetensors or (a model'"'"'s) .gguf file, or an embedding'"'"'s file'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a plan -d 'show how much device memory a model needs, and where it fits'
complete -c weavectl -n '_shtab_weavectl_using plan' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using plan' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using plan' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using plan' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using plan' -l config -xka "(__fish_complete_path (commandline -ct))" -d 'the config file, instead of the default one'
complete -c weavectl -n '_shtab_weavectl_using plan; and test $_shtab_weavectl_npos -eq 0' -ka "(_weavectl_models)" -d 'its ID in the config, or its folder or .safetensors file'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a doctor -d 'check the socket, config, models, loras, embeddings, controlnets, gpu and sandbox, and suggest fixes'
complete -c weavectl -n '_shtab_weavectl_using doctor' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using doctor' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using doctor' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using doctor' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using doctor' -l config -xka "(__fish_complete_path (commandline -ct))" -d 'the config file, instead of the default one'
complete -c weavectl -n '_shtab_weavectl_using; and test $_shtab_weavectl_npos -eq 0' -a check-config -d 'check the config and the files of its models, loras, embeddings and controlnets'
complete -c weavectl -n '_shtab_weavectl_using check-config' -s h -l help -d 'show this help message and exit'
complete -c weavectl -n '_shtab_weavectl_using check-config' -s s -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'the daemon'"'"'s socket'
complete -c weavectl -n '_shtab_weavectl_using check-config' -l json -d 'one JSON object a line'
complete -c weavectl -n '_shtab_weavectl_using check-config' -l timeout -x -d 'how long to wait for the daemon'"'"'s first answer (default: 20)'
complete -c weavectl -n '_shtab_weavectl_using check-config' -l config -xka "(__fish_complete_path (commandline -ct))" -d 'the config file, instead of the default one'
