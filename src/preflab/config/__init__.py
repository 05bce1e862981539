"""Configuration: frozen dataclasses, one docstring a field, checked by `load.py`. No torch.

`training.py`, `preference.py` and `online.py` hold the settings of the methods, `commands.py` one object a command,
`load.py` turns YAML files and flags into such an object or into one sentence that says what is wrong.
"""
