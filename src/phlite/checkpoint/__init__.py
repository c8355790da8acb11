"""Hugging Face checkpoint folders: config.json and safetensors files, read without torch and without copying.

json_file.py    JSON of a bounded size, each key once
safetensors.py  the header of one file -> where its tensors lie
folder.py       a folder -> config and tensors under their Hugging Face names
"""

from phlite.checkpoint.folder import Checkpoint, is_checkpoint, load_checkpoint
from phlite.checkpoint.json_file import load_json, parse_json
from phlite.checkpoint.safetensors import map_safetensors

__all__ = ["Checkpoint", "is_checkpoint", "load_checkpoint", "load_json", "map_safetensors", "parse_json"]
