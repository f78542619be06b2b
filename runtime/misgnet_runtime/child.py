"""Runs a module in a child process, after removing its own folder from the import path.

Every child process starts by the path of this file (``python child.py MODULE ...``; see
:mod:`misgnet_runtime.children`), because ``python -m`` and ``python -c`` search the working directory for every import,
and Python 3.10 has no option to prevent that. Nothing may be imported before the import path is cleaned.
"""

import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder of this file, whose modules are not top-level modules
    import runpy

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
