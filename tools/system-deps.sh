# Installs the programs that the kernel tests need, where apt-get and root can; else names them.
set -eu

wanted="bindfs btrfs-progs busybox criu debian-archive-keyring e2fsprogs erofs-utils fuse3 runc sqlite3
        squashfs-tools strace uidmap util-linux xfsprogs"

if ! command -v apt-get >/dev/null; then
    echo "system-deps: no apt-get here; the kernel tests want: $(echo $wanted)" >&2
    exit 0
fi

missing=""
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    test "$status" = installed || missing="$missing $package"
done

if test -z "$missing"; then
    echo "system-deps: all there"
elif test "$(id -u)" != 0; then
    echo "system-deps: as root, install:$missing" >&2
else
    echo "system-deps: installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    # Another apt may be at work on a machine that has just booted.
    wait="-o DPkg::Lock::Timeout=300"
    apt-get -qq $wait update </dev/null
    # $missing is a list. What goes wrong is on stderr.
    apt-get -qq $wait install --yes --no-install-recommends $missing </dev/null >/dev/null
fi
