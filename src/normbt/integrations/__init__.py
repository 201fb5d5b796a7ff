"""NormBT inside other frameworks' own commands, one file for each; docs/integrations.md has the commands.

Each file imports its framework, and only that. No file is named like a framework's package: ms-swift puts the folder of
a plugin on the import path, where such a file would hide the package.
"""
