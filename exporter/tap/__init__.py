"""
The tap: runs inside vLLM's process and keeps its statistics on a page in shared memory.

Imports the standard library alone (and vLLM, which is there). :mod:`.layout` is the page's binary
form, shared with the reader; :mod:`.writer` fills it; :mod:`.plugin` is what vLLM loads.
"""
