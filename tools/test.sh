# test.sh [arguments for pytest]: runs all tests, most of them in parallel. PYTHON is the program.
#
# First those that may run beside each other, then those marked `alone`. The tests share one kernel:
# if one fails beside the others, it runs again with nothing beside it, and that decides.
# IRMAPDB_TEST_WORKERS: how many run at once; many wait, so by itself one more than there are cores.
set -u

workers=${IRMAPDB_TEST_WORKERS:-$(($(nproc) + 1))}
none=5 # pytest's exit code where no test was chosen, as by -k

"$PYTHON" -m pytest --phase together -n "$workers" --dist loadgroup "$@"
together=$?
case $together in
0 | "$none") ;;
1)
    echo "test.sh: the tests that failed run again, with nothing beside them"
    "$PYTHON" -m pytest --phase together --last-failed --maxfail 1 -v "$@" && together=0
    ;;
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
