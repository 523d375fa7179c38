"""Models: named once (MODELS, MODELS_FILE, a job's `models`), put where ComfyUI looks, whole or not at all.

spec, entry ──▶ orders ─▶ store ─▶ placing ──┬─▶ folder/     what exists in the models folder, and whether it is right
  the grammar     a job's   all    one model  ├─▶ sources/    where the bytes are: host cache, volume, Hub, S3, URL
                                              └─▶ transfer/   ranged, resumed, hashed downloads
required: the models that a workflow names      readahead: into the page cache before ComfyUI asks
"""
