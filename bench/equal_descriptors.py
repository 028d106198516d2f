"""Equal inotify descriptors: reads them in a plain loop, and by the survey, which compares them.

`python equal_descriptors.py NUMBER`: µs of the loop and of the survey, and the numbers it found.
"""

from __future__ import annotations

import os
import resource
import sys
import time

from irmapdb.kernel import syscalls
from irmapdb.kernel.proc.survey import read_survey
from irmapdb.kernel.proc.tasks import require_task


def main() -> None:
    """Make them, time both."""
    number = int(sys.argv[1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fds = [syscalls.inotify_init() for _ in range(number)]
    begun = time.perf_counter()
    for fd in fds:
        os.readlink(f"/proc/self/fd/{fd}")
        file = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY)
        while os.read(file, 1 << 20):
            pass
        os.close(file)
    read = time.perf_counter()
    survey = read_survey([require_task(os.getpid())])
    done = time.perf_counter()
    found = len(survey.files)
    sys.stdout.write(f"{(read - begun) * 1e6:.0f} {(done - read) * 1e6:.0f} {found}\n")


if __name__ == "__main__":
    main()
