"""The methods that drop or merge experts, by name. A new one is a file here.

A file has one function, of a form that `prune.inputs.method` describes, and ends in
`METHOD = Method(...)`. Its docstring is published in docs/methods.md.
"""

from prune.inputs.discovery import discovered

METHODS = discovered(__name__, __path__)
