"""ComfyUI's models folder on disk: what exists there, who uses it, and how files are placed, checked and removed.

model_folder ──┬─▶ records      one small JSON file a model: source, size, hashes, last use; its locks and users
               ├─▶ file_state   does a file match an entry? one stat and the record decide
               └─▶ place        names, links, files set aside
checks: is a file a whole model? hashes   upkeep: `utils.py verify` and `prune`
"""
