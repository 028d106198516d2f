# Builds sdist and wheel, installs the wheel where nothing else of the checkout is, and uses it.
#
# PYTHON: the Python of the development environment, which has the build tools.
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The wheel is built from the sdist, so the sdist is whole too.
"$PYTHON" -m build --no-isolation --outdir "$work/dist" . >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; exit 1; }
image=$PWD/tests/data/images/etc-hints.irmap-cache
version=$("$PYTHON" -c 'import irmapdb; print(irmapdb.__version__)')

"$PYTHON" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
pip install -qq --require-hashes -r requirements/run.txt
pip install -qq --no-deps --no-index "$work/dist/irmapdb-$version-py3-none-any.whl"
pip check

cd /
PATH=$work/venv/bin:$PATH
unset PYTHONPATH

# run WANTED COMMAND...: the command succeeds, and says WANTED.
run() {
    wanted=$1
    shift
    output=$("$@") || { echo "wheel-test: $*: exit code $?" >&2; exit 1; }
    case $output in
    *"$wanted"*) echo "wheel-test: $*: ok" ;;
    *)
        printf 'wheel-test: %s: no "%s" in:\n%s\n' "$*" "$wanted" "$output" >&2
        exit 1
        ;;
    esac
}

run "$version" irmapdb --version
run "$version" python -m irmapdb --version
run pre-dump irmapdb --help
run images checkpointctl-irmap --help
run images\\-dir cat "$work/venv/share/man/man1/irmapdb-pre-dump.1"
run IRMAP_CACHE cat "$work"/venv/lib/python3*/site-packages/irmapdb/schemas/show.json
run compdef cat "$work/venv/share/zsh/site-functions/_irmapdb"
run compopt irmapdb --show-completion bash
# The migrations are inside, and the generated code loads.
run 0001 irmapdb db history
# Without the extra: commands without a server work, the others name the extra.
run failing irmapdb sql --list --fleet
output=$(irmapdb fleet current --to postgresql:///nowhere 2>&1) && exit 1
case $output in
*"irmapdb[fleet]"*) echo "wheel-test: irmapdb fleet without psycopg: ok" ;;
*) echo "wheel-test: irmapdb fleet: $output" >&2; exit 1 ;;
esac
cat "$work"/venv/lib/python3*/site-packages/irmapdb/migrations/fleet/versions/0001_*.py >"$work/log"
run "" irmapdb import "$image" --db "$work/irmap.db"
run /etc irmapdb show "$work/irmap.db"
run "" irmapdb db upgrade --db "$work/irmap.db"
run "$(irmapdb db history | tail -n 1 | cut -d ' ' -f 1)" irmapdb db current --db "$work/irmap.db"
