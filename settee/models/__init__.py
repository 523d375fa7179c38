"""Models: named once (MODELS, MODELS_FILE, a job's `models`), put where ComfyUI looks, whole or not at all.

entry ──▶ store ──┬─▶ placed      what lies in the models folder, and whether it is right
                  ├─▶ sources     where the bytes are: host cache, volume, mirror, Hub, S3, URL
                  ├─▶ transfer    ranged, resumed, hashed downloads
                  └─▶ readahead   into the page cache before ComfyUI asks
"""
