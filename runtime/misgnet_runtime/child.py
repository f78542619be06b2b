"""The first file of every child process: forgets the folder that it was started in, then runs a module.

Run by its path (``python child.py MODULE ...``; see :mod:`misgnet_runtime.children`), because ``python -m`` and
``python -c`` search the working directory for every import, and Python 3.10 has no option against it.
Nothing may be imported before the import path is cleaned.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file, whose modules are no top-level ones
    import runpy

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
