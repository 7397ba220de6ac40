"""The commands of `neft`: each is one module with a `HELP` line, `add_options(parser)` and `run(options)`.

The modules import nothing heavy at the top, so that `--help` and wrong options answer at once.
"""
