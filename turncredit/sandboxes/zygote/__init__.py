"""The program behind the local sandbox, run in a process of its own by the interpreter that candidates get.

It is loaded as a top-level package, without the rest of turncredit, so it imports the standard library and
itself alone. Four kinds of process, each the parent of the next:

    guard       watches the program that opened the sandbox; ends everything and removes the cgroups
    zygote      holds the preloaded modules; forks slots; PID 1 of the pool's pid namespace
    slot        owns a root file system, a network and a cgroup; PID 1 of its executions
    candidate   forked and confined ahead of its request; runs it; ends with everything it started
"""
