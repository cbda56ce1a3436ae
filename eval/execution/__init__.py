"""Runs generated code against test cases. This is NOT a security sandbox.

Limited, for each program:

- Wall time (10 s, compiling 120 s) and processor time (twice the wall time and a second); after a timeout the whole
  process group is killed.
- Memory: 1 GiB of address space in Python and C++, a heap of 512 MiB in Java and JavaScript. Compilers are not limited.
- File size: 64 MiB for each file; of standard output and error the first 4 MiB are read. No core dumps.
- Environment: an empty temporary directory as working and home directory, no standard input, no shell, and only
  ``PATH``, ``HOME``, ``TMPDIR`` and ``LANG`` as environment variables. Python runs isolated (``-I``).

Not limited:

- Files: the code reads and writes whatever the user who started it may.
- Network: the code may open connections.
- Processes: their number is not limited, and one that starts a session of its own survives the kill.
- Total disk space and number of files; the memory of several processes together.
- System calls, devices and kernel interfaces (no seccomp, namespaces or containers).

Run code from models that you do not trust in a container or a virtual machine.
"""

from eval.execution.cases import CaseTests, ProgramTests
from eval.execution.judge import Job, judge, judge_many
from eval.execution.limits import Limits
from eval.execution.toolchains import PACKAGES, STATUSES, Status, Verdict, missing_tools

__all__ = [
    "PACKAGES",
    "STATUSES",
    "CaseTests",
    "Job",
    "Limits",
    "ProgramTests",
    "Status",
    "Verdict",
    "judge",
    "judge_many",
    "missing_tools",
]
