# test.sh [arguments for pytest]: runs all tests, most of them in parallel. PYTHON is the program.
#
# First those that may run beside each other, then those marked `alone`.
# IRMAPDB_TEST_WORKERS: how many run at once; many wait, so by itself one more than there are cores.
set -u

workers=${IRMAPDB_TEST_WORKERS:-$(($(nproc) + 1))}
none=5 # pytest's exit code where no test was chosen, as by -k

"$PYTHON" -m pytest --phase together -n "$workers" --dist loadgroup "$@"
together=$?
case $together in
0 | 1 | "$none") ;;
*) exit "$together" ;;
esac
"$PYTHON" -m pytest --phase alone "$@"
alone=$?
if [ "$alone" -eq "$none" ]; then
    exit "$together"
fi
if [ "$together" -eq "$none" ]; then
    exit "$alone"
fi
exit $((together > alone ? together : alone))
