# protos.sh [--check] DIR: generates DIR from protos/, or says how DIR differs from that.
set -eu

check=false
if test "$1" = --check; then
    check=true
    shift
fi
target=$1

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
trap 'exit 1' HUP INT TERM

# The files are mapped to where their code lives, so that one imports another from the package,
# and their names cannot meet CRIU's own in protobuf's pool of descriptors.
(cd protos && for proto in *.proto; do echo "$target/$proto"; done) |
    xargs "$PYTHON" -m grpc_tools.protoc "-I$target=protos" \
        "--python_out=$fresh" "--pyi_out=$fresh"

if $check; then
    if diff -ru -x __init__.py -x __pycache__ "$target" "$fresh/$target"; then
        echo "check-protos: $target is the output of protos/"
    else
        echo "check-protos: $target is not the output of protos/; run: make protos" >&2
        exit 1
    fi
else
    rm -f "$target"/*_pb2.py "$target"/*_pb2.pyi
    cp "$fresh/$target"/*_pb2.py "$fresh/$target"/*_pb2.pyi "$target"
fi
