"""Names of models to files on this machine: names, choice among files, download, cache.

names.py      what the user typed -> a path, or a repository and a file
choose.py     which GGUF of several
fetch.py      the door: name -> LocalModel
cache.py      find and verify cached files
download.py   receive files into the cache, with resume and checksum
remote.py     what is asked of the hub, and its failures in one line
inventory.py  list and remove what is cached
progress.py   how long work is shown
"""

from phlite.hub.cache import cache_dir
from phlite.hub.fetch import LocalModel, fetch
from phlite.hub.inventory import CachedModel, cached_models, remove_model
from phlite.hub.names import Source, known_names, resolve
from phlite.hub.progress import NoProgress, Progress, TerminalProgress, format_bytes

__all__ = [
    "CachedModel",
    "LocalModel",
    "NoProgress",
    "Progress",
    "Source",
    "TerminalProgress",
    "cache_dir",
    "cached_models",
    "fetch",
    "format_bytes",
    "known_names",
    "remove_model",
    "resolve",
]
