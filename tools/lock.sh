# lock.sh [--upgrade]: writes requirements/*.txt from pyproject.toml, for every Python we support.
#
# run: the needs of the package; dev: that and the checkers; protos: the code generator; lock: uv.
set -eu

# A package from another source than the index may be another build, with another hash.
unset UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_INDEX

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM

compile() {
    lock=requirements/$1.txt
    new=$fresh/$1.txt
    shift
    # Locked versions stay, unless --upgrade is given.
    test ! -e "$lock" || cp "$lock" "$new"
    "$UV" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' \
        --output-file "$new" "$@"
    # Names, versions and hashes: where they come from is each machine's own matter.
    if grep -nE '://|^ *-|@ ' "$new" | grep -v -- ' --hash=sha256:'; then
        echo "lock: $lock would hold more than names, versions and hashes" >&2
        exit 1
    fi
    # An unchanged lock keeps its time, so that make leaves the environments alone.
    cmp -s "$new" "$lock" || cp "$new" "$lock"
}

compile run pyproject.toml "$@"
compile dev --all-extras --group pyproject.toml:dev pyproject.toml "$@"
compile protos --group pyproject.toml:protos "$@"
compile lock --group pyproject.toml:lock "$@"
