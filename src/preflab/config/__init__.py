"""Configuration: frozen dataclasses, one docstring a field, checked by `load.py`. No torch.

`methods.py` holds the settings of each method, `commands.py` one object a command, `load.py` turns YAML files and
flags into such an object or into one sentence that says what is wrong.
"""
