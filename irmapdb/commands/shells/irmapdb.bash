# Completion of irmapdb for bash 4.4 or newer.

_irmapdb() {
    # bash has split the line at each ":" and "=". Words that nothing separates are one.
    local line=$COMP_LINE words=() word glued=0 i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i)) && [[ $line != [[:space:]]* && -n $line ]]; then glued=1; else glued=0; fi
        line=${line#"${line%%[![:space:]]*}"}
        line=${line#"$word"}
        if ((glued)); then words[-1]+=$word; else words+=("$word"); fi
    done
    local current=${words[-1]} lines=()
    mapfile -t lines < <(_IRMAPDB_COMPLETE=bash "$1" "${words[@]:1}" 2>/dev/null)

    COMPREPLY=()
    case ${lines[0]-} in
    files)
        compopt -o default
        return
        ;;
    directories)
        compopt -o dirnames
        return
        ;;
    esac
    # bash puts in what comes after the last ":" or "=" alone.
    local typed=${current%"${COMP_WORDS[COMP_CWORD]}"}
    [[ ${COMP_WORDS[COMP_CWORD]} == [:=] ]] && typed=$current
    for word in "${lines[@]}"; do
        word=${word%%$'\t'*}
        [[ $word == *= ]] && compopt -o nospace
        word=${word#"$typed"}
        # Quoted, each one: readline also puts in what several have in common, and a name that
        # another user chose must not become a command.
        printf -v word %q "$word"
        COMPREPLY+=("$word")
    done
}

complete -F _irmapdb irmapdb
