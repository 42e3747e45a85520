# Made by scripts/completions.py with shtab, from the options themselves; do not edit.

function _shtab_weave_compute_scan
  set -g _shtab_weave_compute_cmdpath ''
  set -g _shtab_weave_compute_npos 0
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
        if contains -- $t $_shtab_weave_compute_opts_with_value
          set expect_value 1
        end
        continue
      case '*'
        if test $_shtab_weave_compute_npos -eq 0
          set -l candidate $t
          if test -n "$_shtab_weave_compute_cmdpath"
            set candidate "$_shtab_weave_compute_cmdpath $t"
          end
          if contains -- $candidate $_shtab_weave_compute_commands
            set -g _shtab_weave_compute_cmdpath $candidate
            continue
          end
        end
        set -g _shtab_weave_compute_npos (math $_shtab_weave_compute_npos + 1)
    end
  end
end

# Condition helper: true if the current (sub)command path equals the given one.
function _shtab_weave_compute_using
  _shtab_weave_compute_scan
  test "$_shtab_weave_compute_cmdpath" = "$argv"
end

set -g _shtab_weave_compute_commands
set -g _shtab_weave_compute_opts_with_value --config --socket --socket-path -s

complete -c weave-compute -e
complete -c weave-compute -f

complete -c weave-compute -n _shtab_weave_compute_using -s h -l help -d 'show this help message and exit'
complete -c weave-compute -n _shtab_weave_compute_using -l config -xka "(__fish_complete_path (commandline -ct))" -d 'read this config file instead of the default one'
complete -c weave-compute -n _shtab_weave_compute_using -l system -d 'serve other users too, as the config allows'
complete -c weave-compute -n _shtab_weave_compute_using -l socket -xka "(__fish_complete_path (commandline -ct))" -d 'listen on this socket instead of the default one'
complete -c weave-compute -n _shtab_weave_compute_using -s s -l socket-path -xka "(__fish_complete_path (commandline -ct))" -d 'serve only the program that listens on PATH, and exit with it'
complete -c weave-compute -n _shtab_weave_compute_using -l record -d 'record the worker'"'"'s forbidden calls and allow them'
complete -c weave-compute -n _shtab_weave_compute_using -l check-config -d 'check the config, then exit'
complete -c weave-compute -n _shtab_weave_compute_using -l version -d 'show program'"'"'s version number and exit'
