# Completion of irmapdb for fish 3.1 or newer.

function __irmapdb_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l lines (_IRMAPDB_COMPLETE=fish $words[1] $words[2..-1] "$current" 2>/dev/null)
    switch "$lines[1]"
        case files
            __fish_complete_path $current
        case directories
            __fish_complete_directories $current
        case '*'
            printf '%s\n' $lines
    end
end

complete --command irmapdb --no-files --arguments '(__irmapdb_complete)'
