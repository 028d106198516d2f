# Installs the programs that the tests need, where apt-get and root can; else names them.
set -eu

wanted="bindfs btrfs-progs busybox chromium chromium-driver criu debian-archive-keyring e2fsprogs erofs-utils fish fuse3 man-db
        postgresql prometheus sqlite3 squashfs-tools strace uidmap util-linux xfsprogs zsh"
# The tests of container engines want these programs, from any package: docker has some of them
# in a package of its own, which conflicts with those of Debian.
engines="containerd podman runc"

if ! command -v apt-get >/dev/null; then
    echo "system-deps: no apt-get here; the tests want: $(echo $wanted $engines)" >&2
    exit 0
fi

missing=""
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    test "$status" = installed || missing="$missing $package"
done
for program in $engines; do
    PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing="$missing $program"
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
    # $missing is a list. Errors are on stderr.
    apt-get -qq $wait install --yes --no-remove --no-install-recommends $missing </dev/null >/dev/null
fi
