"""The walls around the process that sees plaintext.

    child = spawn("package.module")          the starter: a process with one channel, namespaces of its own
    isolate()                                the module, first: what `spawn` set up, and its scratch space
    ...                                      imports, in one thread
    confine(read=[folder])                   every wall, before the first byte of data

`available` says in words what a machine lacks; a required wall that is missing is a refusal, never less.
"""

from cloister.enclave.sandbox.confinement import Confinement, confine
from cloister.enclave.sandbox.namespaces import Isolation, isolate
from cloister.enclave.sandbox.secretmem import SecretBytes
from cloister.enclave.sandbox.spawn import Child, spawn
from cloister.enclave.sandbox.walls import available, require

__all__ = [
    "Child",
    "Confinement",
    "Isolation",
    "SecretBytes",
    "available",
    "confine",
    "isolate",
    "require",
    "spawn",
]
